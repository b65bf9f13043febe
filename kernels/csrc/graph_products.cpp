// graph_mix with products down the layers, Lambda^l H = G^l (Lambda^(l-1) H). A thread has one sample at a time: what a
// layer hands to the next stays in the cache, and is made again in the backward pass instead of kept for it.

#include <algorithm>
#include <utility>

#include "kernels.h"
#include "scratch.h"
#include "simd.h"
#include "threads.h"

namespace glomo {
namespace {

enum class Term { component, product };

// Where the weights of a layer begin among those of all terms.
template <class T>
std::int64_t place(const LayeredMix<T>& problem, std::int64_t layer, Term term) {
  return (term == Term::product ? 2 * layer : std::max<std::int64_t>(0, 2 * layer - 1)) * problem.heads;
}

// The layers first .. last of a sample.
template <class T>
Graphs<T> part(const LayeredMix<T>& problem, std::int64_t sample, std::int64_t first, std::int64_t last) {
  Graphs<T> graphs = problem.graphs;
  graphs.offsets += sample * graphs.components * graphs.units;
  graphs.batch = 1;
  graphs.first = first * problem.heads;
  graphs.count = (last - first) * problem.heads;
  return graphs;
}

// Of a sample's weights: one for all units where each has not its own.
template <class T>
std::int64_t rows(const LayeredMix<T>& problem) {
  return problem.per_unit ? problem.graphs.units : 1;
}

// out [rows][layers first .. last][heads]: the weights of a sample for these terms.
template <class T>
const T* weights_of(const LayeredMix<T>& problem, std::int64_t sample, std::int64_t first, std::int64_t last, Term term,
                    T* out) {
  const T* weights = problem.weights + (problem.per_unit ? sample * rows(problem) * problem.terms() : 0);
  T* to = out;
  for (std::int64_t i = 0; i < rows(problem); ++i) {
    for (std::int64_t layer = first; layer < last; ++layer, to += problem.heads) {
      std::copy_n(weights + i * problem.terms() + place(problem, layer, term), problem.heads, to);
    }
  }
  return out;
}

// The other way round: d_weights [units][terms] of a sample from those of some terms.
template <class T>
void put(const LayeredMix<T>& problem, const T* from, std::int64_t first, std::int64_t last, Term term, T* d_weights) {
  for (std::int64_t i = 0; i < problem.graphs.units; ++i) {
    for (std::int64_t layer = first; layer < last; ++layer, from += problem.heads) {
      std::copy_n(from, problem.heads, d_weights + i * problem.terms() + place(problem, layer, term));
    }
  }
}

// Calls visit(sample, threads) for all samples: side by side, or for a few the threads share each. No number depends on
// which.
template <class T, class Worker>
void for_each_sample(const LayeredMix<T>& problem, int threads, const Worker& worker) {
  const std::int64_t batch = problem.graphs.batch;
  const bool apart = batch % threads == 0 || batch >= 4 * threads;
  parallel(apart ? batch : 1, threads, [&](const auto& next) {
    auto visit = worker();
    for (std::int64_t item = next(); item >= 0; item = next()) {
      if (apart) visit(item, 1);
      for (std::int64_t b = 0; b < batch && !apart; ++b) visit(b, threads);
    }
  });
}

// Numbers in the products of a layer, [heads][units][width].
template <class T>
std::int64_t size(const LayeredMix<T>& problem) {
  return problem.layers() > 1 ? problem.heads * problem.graphs.units * problem.width : 0;
}

// Calls f(layer, graphs of the layer, x) for each layer but the first: x [heads][units][width] is what the layers below
// make of a sample's features. either, other: room for two of these.
template <class T, class F>
void up(const LayeredMix<T>& problem, std::int64_t sample, const T* features, T* either, T* other, int threads,
        const F& f) {
  const T* x = features;
  for (std::int64_t layer = 1; layer < problem.layers(); ++layer) {
    apply(part(problem, sample, layer - 1, layer), x, layer == 1, problem.width, either, threads);
    x = either;
    f(layer, part(problem, sample, layer, layer + 1), x);
    std::swap(either, other);
  }
}

}  // namespace

template <class T>
void mix_products(const LayeredMix<T>& problem, const T* features, T* result, int threads) {
  const std::int64_t of_sample = problem.graphs.units * problem.width;
  for_each_sample(problem, threads, [&] {
    return [&, either = Buffer<T>(size(problem), false), other = Buffer<T>(size(problem), false),
            weights = Buffer<T>(rows(problem) * problem.graphs.components, false),
            sum = Buffer<T>(of_sample, false)](std::int64_t b, int crew) {
      const T* x = features + b * of_sample;
      T* out = result + b * of_sample;
      const std::int64_t layers = problem.layers();
      mix(part(problem, b, 0, layers), weights_of(problem, b, 0, layers, Term::component, weights.get()),
          problem.per_unit, x, true, problem.width, out, crew);
      const auto add = [&](std::int64_t layer, const Graphs<T>& graphs, const T* own) {
        const T* w = weights_of(problem, b, layer, layer + 1, Term::product, weights.get());
        mix(graphs, w, problem.per_unit, own, false, problem.width, sum.get(), crew);
        simd<T>().add_scaled(T(1), sum.get(), of_sample, out);
      };
      up(problem, b, x, either.get(), other.get(), crew, add);
    };
  });
}

template <class T>
void mix_products_backward_weights(const LayeredMix<T>& problem, const T* grad, const T* features, T* d_weights,
                                   int threads) {
  const std::int64_t units = problem.graphs.units, of_sample = units * problem.width;
  for_each_sample(problem, threads, [&] {
    return [&, either = Buffer<T>(size(problem), false), other = Buffer<T>(size(problem), false),
            found = Buffer<T>(units * problem.graphs.components, false)](std::int64_t b, int crew) {
      const T *x = features + b * of_sample, *dy = grad + b * of_sample;
      T* out = d_weights + b * units * problem.terms();
      const std::int64_t layers = problem.layers();
      mix_backward_weights(part(problem, b, 0, layers), dy, x, true, problem.width, found.get(), crew);
      put(problem, found.get(), 0, layers, Term::component, out);
      const auto find = [&](std::int64_t layer, const Graphs<T>& graphs, const T* own) {
        mix_backward_weights(graphs, dy, own, false, problem.width, found.get(), crew);
        put(problem, found.get(), layer, layer + 1, Term::product, out);
      };
      up(problem, b, x, either.get(), other.get(), crew, find);
    };
  });
}

template <class T>
void mix_products_backward_features(const LayeredMix<T>& problem, const T* grad, T* d_features, int threads) {
  const std::int64_t units = problem.graphs.units, of_sample = units * problem.width;
  for_each_sample(problem, threads, [&] {
    return [&, above = Buffer<T>(size(problem), false), through = Buffer<T>(size(problem), false),
            weights = Buffer<T>(rows(problem) * problem.graphs.components, false)](std::int64_t b, int crew) {
      const T* dy = grad + b * of_sample;
      T* out = d_features + b * of_sample;
      const std::int64_t layers = problem.layers();
      mix_backward_features(part(problem, b, 0, layers),
                            weights_of(problem, b, 0, layers, Term::component, weights.get()), problem.per_unit, dy,
                            true, problem.width, out, crew);
      // above: the gradient of the products that go into `layer`, which those of the layers below it make.
      for (std::int64_t layer = layers - 1; layer > 0; --layer) {
        const Graphs<T> graphs = part(problem, b, layer, layer + 1);
        if (layer + 1 < layers) apply_backward(graphs, above.get(), false, problem.width, through.get(), crew);
        const T* w = weights_of(problem, b, layer, layer + 1, Term::product, weights.get());
        mix_backward_features(graphs, w, problem.per_unit, dy, false, problem.width, above.get(), crew);
        if (layer + 1 < layers) simd<T>().add_scaled(T(1), through.get(), size(problem), above.get());
      }
      if (layers == 1) return;
      apply_backward(part(problem, b, 0, 1), above.get(), true, problem.width, through.get(), crew);
      simd<T>().add_scaled(T(1), through.get(), of_sample, out);
    };
  });
}

#define INSTANTIATE(T)                                                                                    \
  template void mix_products<T>(const LayeredMix<T>&, const T*, T*, int);                                   \
  template void mix_products_backward_weights<T>(const LayeredMix<T>&, const T*, const T*, T*, int);        \
  template void mix_products_backward_features<T>(const LayeredMix<T>&, const T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace glomo
