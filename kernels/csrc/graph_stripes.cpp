// graph_mix for graphs with so many edges that the weighted sum M of the components is nearly dense: stripes of
// LANES rows of M are formed and multiplied as dense matrices. An edge then costs one addition, whatever the width
// of the features, and edges of several components at the same place cost one product.

#include "graph_stripes.h"

#include <algorithm>

#include "scratch.h"
#include "threads.h"

namespace glomo {
namespace {

std::int64_t stripes(std::int64_t units) { return (units + LANES - 1) / LANES; }

// Columns [from, to) of the edges in rows [first, last) of all components of a sample.
struct Range {
  std::int64_t from, to;
};

template <class T>
Range columns_of(const Graphs<T>& graphs, std::int64_t b, std::int64_t first, std::int64_t last) {
  Range range{graphs.units, 0};
  for (std::int64_t c = 0; c < graphs.count; ++c) {
    const std::int64_t begin = graphs.offsets[graphs.row(b, c, first)];
    const std::int64_t end = graphs.offsets[graphs.row(b, c, first) + last - first];
    for (std::int64_t e = begin; e < end; ++e) {
      range.from = std::min<std::int64_t>(range.from, graphs.columns[e]);
      range.to = std::max<std::int64_t>(range.to, graphs.columns[e] + 1);
    }
  }
  return {std::min(range.from, range.to), range.to};
}

// Rows [first, last) of M, `pitch` apart. Components are added in their order.
template <class T>
void form(const Graphs<T>& graphs, std::int64_t b, std::int64_t first, std::int64_t last, const T* weights,
          bool per_unit, T* stripe, std::int64_t pitch) {
  std::fill_n(stripe, (last - first) * pitch, T(0));
  for (std::int64_t i = first; i < last; ++i) {
    const T* w = per_unit ? weights + (b * graphs.units + i) * graphs.count : weights;
    T* out = stripe + (i - first) * pitch;
    for (std::int64_t c = 0; c < graphs.count; ++c) {
      const std::int64_t row = graphs.row(b, c, i);
      for (std::int64_t e = graphs.offsets[row]; e < graphs.offsets[row + 1]; ++e) {
        out[graphs.columns[e]] += w[c] * graphs.values[e];
      }
    }
  }
}

constexpr std::int64_t GROUP = 16;  // rows that are multiplied with a range of columns of their own

}  // namespace

template <class T>
bool nearly_dense(const Graphs<T>& graphs) {
  std::int64_t edges = 0;
  for (std::int64_t b = 0; b < graphs.batch; ++b) {
    const std::int64_t row = graphs.row(b, 0, 0);
    edges += graphs.offsets[row + graphs.count * graphs.units] - graphs.offsets[row];
  }
  // Measured: products of single rows are about four times as dear as those of matrices.
  return 4 * edges > graphs.batch * graphs.units * graphs.units;
}

template <class T>
void mix_dense(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* features, std::int64_t width,
               T* result, int threads) {
  const std::int64_t units = graphs.units, pitch = padded<T>(width), per_sample = stripes(units);
  parallel(graphs.batch * per_sample, threads, [&](const auto& next) {
    Buffer<T> stripe(LANES * units), copy(units * pitch);
    std::int64_t copied = -1;
    Lines<T> x{};
    for (std::int64_t item = next(); item >= 0; item = next()) {
      const std::int64_t b = item / per_sample, first = item % per_sample * LANES;
      const std::int64_t last = std::min(first + LANES, units);
      if (b != copied) x = lines(features + b * units * width, width, units, width, copy.get());
      copied = b;
      form(graphs, b, first, last, weights, per_unit, stripe.get(), units);
      for (std::int64_t i = first; i < last; i += GROUP) {
        const std::int64_t rows = std::min(GROUP, last - i);
        const Range range = columns_of(graphs, b, i, i + rows);
        simd<T>().multiply(rows, width, range.to - range.from, stripe.get() + (i - first) * units + range.from, units,
                           false, x.data + range.from * x.pitch, x.pitch, result + (b * units + i) * width, width,
                           false);
      }
    }
  });
}

// A sample's d_features are cut into columns, so that threads without a sample of their own have work, too: every
// number is the same sum over the rows, in their order, however many parts there are.
template <class T>
void mix_dense_backward_features(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* grad,
                                 std::int64_t width, T* d_features, int threads) {
  if (width == 0) return;
  const std::int64_t units = graphs.units;
  const std::int64_t wanted = std::max<std::int64_t>(1, threads / std::max<std::int64_t>(1, graphs.batch));
  const std::int64_t piece = lanes_of<T>((width + wanted - 1) / wanted);
  const std::int64_t pieces = (width + piece - 1) / piece;
  parallel(graphs.batch * pieces, threads, [&](const auto& next) {
    Buffer<T> stripe(LANES * units), copy(LANES * padded<T>(piece));
    for (std::int64_t item = next(); item >= 0; item = next()) {
      const std::int64_t b = item / pieces, column = item % pieces * piece;
      const std::int64_t columns = std::min(piece, width - column);
      T* out = d_features + b * units * width + column;
      for (std::int64_t j = 0; j < units; ++j) std::fill_n(out + j * width, columns, T(0));
      for (std::int64_t first = 0; first < units; first += LANES) {
        const std::int64_t last = std::min(first + LANES, units);
        form(graphs, b, first, last, weights, per_unit, stripe.get(), units);
        const auto x = lines(grad + (b * units + first) * width + column, width, last - first, columns, copy.get());
        const Range range = columns_of(graphs, b, first, last);
        simd<T>().multiply(range.to - range.from, columns, last - first, stripe.get() + range.from, units, true,
                           x.data, x.pitch, out + range.from * width, width, true);
      }
    }
  });
}

template <class T>
void mix_dense_backward_weights(const Graphs<T>& graphs, const T* grad, const T* features, std::int64_t width,
                                T* d_weights, int threads) {
  const std::int64_t units = graphs.units, per_sample = stripes(units), group = simd<T>().columns;
  parallel(graphs.batch * per_sample, threads, [&](const auto& next) {
    Buffer<T> across(LANES * width), products(LANES * units);
    for (std::int64_t item = next(); item >= 0; item = next()) {
      const std::int64_t b = item / per_sample, first = item % per_sample * LANES;
      const std::int64_t last = std::min(first + LANES, units);
      for (std::int64_t g = 0; first + g < last; g += group) {  // products[j][i] = features_j . grad_i
        const std::int64_t rows = std::min(group, last - first - g);
        const Range range = columns_of(graphs, b, first + g, first + g + rows);
        simd<T>().transpose(grad + (b * units + first + g) * width, width, rows, width, across.get() + g * width, group);
        simd<T>().multiply(range.to - range.from, group, width, features + (b * units + range.from) * width, width,
                           false, across.get() + g * width, group, products.get() + range.from * LANES + g, LANES,
                           false);
      }
      for (std::int64_t i = first; i < last; ++i) {
        for (std::int64_t c = 0; c < graphs.count; ++c) {
          const std::int64_t row = graphs.row(b, c, i);
          const std::int64_t begin = graphs.offsets[row], end = graphs.offsets[row + 1];
          const auto sum_in = [&](auto sum) {
            for (std::int64_t e = begin; e < end; ++e) {
              sum += graphs.values[e] * products.get()[graphs.columns[e] * LANES + i - first];
            }
            return static_cast<T>(sum);
          };
          // A long sum in double, which costs a little time.
          d_weights[(b * units + i) * graphs.count + c] = end - begin > 64 ? sum_in(0.0) : sum_in(T(0));
        }
      }
    }
  });
}

#define INSTANTIATE(T)                                                                                           \
  template bool nearly_dense<T>(const Graphs<T>&);                                                               \
  template void mix_dense<T>(const Graphs<T>&, const T*, bool, const T*, std::int64_t, T*, int);                 \
  template void mix_dense_backward_weights<T>(const Graphs<T>&, const T*, const T*, std::int64_t, T*, int);      \
  template void mix_dense_backward_features<T>(const Graphs<T>&, const T*, bool, const T*, std::int64_t, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace glomo
