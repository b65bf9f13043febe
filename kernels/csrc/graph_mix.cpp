// graph_mix: many sparse components applied to features and summed, without forming their sum. Each row of a
// result is written by one thread in one order: results do not depend on the number of threads. Here an edge costs
// a row of features; graph_stripes.cpp has the way for graphs with many edges.

#include <algorithm>
#include <vector>

#include "graph_stripes.h"
#include "kernels.h"
#include "simd.h"
#include "threads.h"

namespace glomo {
namespace {

constexpr std::int64_t ROWS = 32;  // rows of a result that a thread takes at a time

// Calls visit(group, first, last) for blocks of rows of every group, on several threads.
template <class Worker>
void for_each_block(std::int64_t groups, std::int64_t units, int threads, const Worker& worker) {
  const std::int64_t blocks = (units + ROWS - 1) / ROWS;
  parallel(groups * blocks, threads, [&](const auto& next) {
    auto visit = worker();
    for (std::int64_t item = next(); item >= 0; item = next()) {
      const std::int64_t first = item % blocks * ROWS;
      visit(item / blocks, first, std::min(first + ROWS, units));
    }
  });
}

// result_j = sum over the edges (i -> j) of c_edge * x_source, for every group of components of a sample: the
// transposed product. The edges are first sorted by column (counting sort, stable), then gathered.
//   groups_per_sample  each group has count / groups_per_sample components
//   factor(sample, component, unit), source(component, unit)   of an edge in row `unit` of the component
//   x_of(group)  the group's rows of x
template <class T, class Factor, class Source, class Rows>
void gather_transposed(const Graphs<T>& graphs, std::int64_t groups_per_sample, const Factor& factor,
                       const Source& source, const Rows& x_of, std::int64_t width, T* result, int threads) {
  const std::int64_t units = graphs.units, groups = graphs.batch * groups_per_sample;
  const std::int64_t in_group = graphs.count / groups_per_sample;
  std::vector<std::int64_t> start(static_cast<std::size_t>(groups + 1), 0);
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t row = graphs.row(g / groups_per_sample, g % groups_per_sample * in_group, 0);
    start[g + 1] = start[g] + graphs.offsets[row + in_group * units] - graphs.offsets[row];
  }
  std::vector<std::int64_t> column_start(static_cast<std::size_t>(groups * (units + 1)), 0);
  std::vector<T> coefficients(static_cast<std::size_t>(start[groups]));
  std::vector<std::int32_t> sources(static_cast<std::size_t>(start[groups]));

  parallel(groups, threads, [&](const auto& next) {
    std::vector<std::int64_t> cursor(static_cast<std::size_t>(units));
    for (std::int64_t g = next(); g >= 0; g = next()) {
      const std::int64_t sample = g / groups_per_sample, component0 = g % groups_per_sample * in_group;
      const std::int64_t row0 = graphs.row(sample, component0, 0);
      std::int64_t* begin = column_start.data() + g * (units + 1);
      for (std::int64_t e = graphs.offsets[row0]; e < graphs.offsets[row0 + in_group * units]; ++e) {
        ++begin[graphs.columns[e] + 1];
      }
      begin[0] = start[g];
      for (std::int64_t j = 0; j < units; ++j) begin[j + 1] += begin[j];
      std::copy(begin, begin + units, cursor.begin());
      for (std::int64_t c = 0; c < in_group; ++c) {
        for (std::int64_t i = 0; i < units; ++i) {
          const std::int64_t row = row0 + c * units + i;
          const T scale = factor(sample, component0 + c, i);
          for (std::int64_t e = graphs.offsets[row]; e < graphs.offsets[row + 1]; ++e) {
            const std::int64_t at = cursor[graphs.columns[e]]++;
            coefficients[at] = scale * graphs.values[e];
            sources[at] = static_cast<std::int32_t>(source(c, i));
          }
        }
      }
    }
  });
  for_each_block(groups, units, threads, [&] {
    return [&](std::int64_t g, std::int64_t first, std::int64_t last) {
      const std::int64_t* begin = column_start.data() + g * (units + 1);
      for (std::int64_t j = first; j < last; ++j) {
        simd<T>().combine(coefficients.data() + begin[j], sources.data() + begin[j], begin[j + 1] - begin[j],
                          x_of(g), width, result + (g * units + j) * width);
      }
    };
  });
}

}  // namespace

template <class T>
void mix(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* features, bool shared, std::int64_t width,
         T* result, int threads) {
  if (shared && nearly_dense(graphs)) return mix_dense(graphs, weights, per_unit, features, width, result, threads);
  const std::int64_t units = graphs.units;
  for_each_block(graphs.batch, units, threads, [&] {
    return [&, coefficients = std::vector<T>(), index = std::vector<std::int32_t>()](
               std::int64_t b, std::int64_t first, std::int64_t last) mutable {
      const T* x = features + (shared ? b : b * graphs.count) * units * width;
      for (std::int64_t i = first; i < last; ++i) {
        const T* w = per_unit ? weights + (b * units + i) * graphs.count : weights;
        coefficients.clear();
        index.clear();
        for (std::int64_t c = 0; c < graphs.count; ++c) {
          const std::int64_t row = graphs.row(b, c, i);
          const auto own = static_cast<std::int32_t>(shared ? 0 : c * units);
          for (std::int64_t e = graphs.offsets[row]; e < graphs.offsets[row + 1]; ++e) {
            coefficients.push_back(w[c] * graphs.values[e]);
            index.push_back(own + graphs.columns[e]);
          }
        }
        simd<T>().combine(coefficients.data(), index.data(), static_cast<std::int64_t>(index.size()), x, width,
                          result + (b * units + i) * width);
      }
    };
  });
}

template <class T>
void mix_backward_weights(const Graphs<T>& graphs, const T* grad, const T* features, bool shared, std::int64_t width,
                          T* d_weights, int threads) {
  if (shared && nearly_dense(graphs)) {
    return mix_dense_backward_weights(graphs, grad, features, width, d_weights, threads);
  }
  const std::int64_t units = graphs.units;
  for_each_block(graphs.batch, units, threads, [&] {
    return [&](std::int64_t b, std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        for (std::int64_t c = 0; c < graphs.count; ++c) {
          const std::int64_t row = graphs.row(b, c, i), edge = graphs.offsets[row];
          d_weights[(b * units + i) * graphs.count + c] = simd<T>().weighted_dots(
              graphs.values + edge, graphs.columns + edge, graphs.offsets[row + 1] - edge,
              features + (shared ? b : b * graphs.count + c) * units * width, width, grad + (b * units + i) * width);
        }
      }
    };
  });
}

template <class T>
void mix_backward_features(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* grad, bool shared,
                           std::int64_t width, T* d_features, int threads) {
  const std::int64_t groups = shared ? 1 : graphs.count, units = graphs.units;
  if (groups == 0) return;  // no component: d_features is empty
  if (shared && nearly_dense(graphs)) {
    return mix_dense_backward_features(graphs, weights, per_unit, grad, width, d_features, threads);
  }
  gather_transposed(
      graphs, groups,
      [&](std::int64_t b, std::int64_t c, std::int64_t i) {
        return per_unit ? weights[(b * units + i) * graphs.count + c] : weights[c];
      },
      [](std::int64_t, std::int64_t i) { return i; },
      [&](std::int64_t group) { return grad + group / groups * units * width; }, width, d_features, threads);
}

template <class T>
void apply(const Graphs<T>& graphs, const T* x, bool shared, std::int64_t width, T* result, int threads) {
  const std::int64_t units = graphs.units;
  for_each_block(graphs.batch * graphs.count, units, threads, [&] {
    return [&](std::int64_t group, std::int64_t first, std::int64_t last) {
      const std::int64_t b = group / graphs.count, c = group % graphs.count;
      const T* source = x + (shared ? b : group) * units * width;
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t row = graphs.row(b, c, i), edge = graphs.offsets[row];
        simd<T>().combine(graphs.values + edge, graphs.columns + edge, graphs.offsets[row + 1] - edge, source,
                          width, result + (group * units + i) * width);
      }
    };
  });
}

template <class T>
void apply_backward(const Graphs<T>& graphs, const T* grad, bool shared, std::int64_t width, T* dx,
                    int threads) {
  const std::int64_t groups = shared ? 1 : graphs.count, units = graphs.units;
  if (groups == 0) return;  // no component: dx is empty
  gather_transposed(
      graphs, groups, [](std::int64_t, std::int64_t, std::int64_t) { return T(1); },
      [&](std::int64_t c, std::int64_t i) { return c * units + i; },
      [&](std::int64_t group) { return grad + group * (graphs.count / groups) * units * width; }, width, dx, threads);
}

#define INSTANTIATE(T)                                                                                              \
  template void mix<T>(const Graphs<T>&, const T*, bool, const T*, bool, std::int64_t, T*, int);                    \
  template void mix_backward_weights<T>(const Graphs<T>&, const T*, const T*, bool, std::int64_t, T*, int);         \
  template void mix_backward_features<T>(const Graphs<T>&, const T*, bool, const T*, bool, std::int64_t, T*, int);  \
  template void apply<T>(const Graphs<T>&, const T*, bool, std::int64_t, T*, int);                                  \
  template void apply_backward<T>(const Graphs<T>&, const T*, bool, std::int64_t, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace glomo
