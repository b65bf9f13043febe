// Rows of scores as affinity_graph takes them: all keys of a query row side by side, of as many rows as affinity_mix
// computes at once, by the same first look in bfloat16 (screen.h).
#pragma once

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "affinity_mix.h"
#include "kernels.h"
#include "largest.h"
#include "panels.h"
#include "rounded_keys.h"
#include "scratch.h"
#include "screen.h"
#include "simd.h"

namespace glomo {

// The same scores as those of affinity_mix, without values.
template <class T>
Mix<T> as_mix(const Affinity<T>& problem) {
  const std::int64_t row = problem.width, head = problem.units * row, sample = problem.heads * head;
  const Rows<T> q{problem.q, sample, head, row}, k{problem.k, sample, head, row};
  return {q, k, k, problem.theta, problem.spans, problem.topk, problem.batch, problem.heads, problem.units,
          problem.units, problem.width, 0, problem.kind};
}

// The roots of one block of rows of one (sample, head).
template <class T>
class RowBlock {
 public:
  RowBlock(const Affinity<T>& problem, const Mix<T>& mix, const RoundedKeys<T>& keys, int threads)
      : problem_(problem), block_(mix, threads), screen_(mix, block_, keys),
        padded_(padded<T>(in_panels<T>(problem.units))), panels_(in_panels<T>(problem.units) * problem.width),
        scores_(LANES * padded_), tile_(LANES * LANES) {}

  void compute(std::int64_t head, std::int64_t index) {
    block_.load(head, index);
    screen_.begin();
    for (std::int64_t key = block_.low / LANES * LANES; key < block_.high; key += LANES) compute_tile(key);
  }

  // Scores of row r become roots, once, just before these are read: they are in the nearest cache then.
  void finish(std::int64_t r) {
    if (problem_.kind == Kind::topk) return keep_largest(r, problem_.topk[block_.sample]);
    weigh(r, block_.theta(r), problem_.kind == Kind::relu);
  }

  std::int64_t first() const { return block_.first; }
  std::int64_t rows() const { return block_.rows; }

  std::int64_t begin(std::int64_t r) const { return block_.begin(r); }
  std::int64_t end(std::int64_t r) const { return block_.end(r); }

  // Valid in [begin(r), end(r)). Roots that are not edges are 0, have a square of 0 or are NaN.
  T* roots(std::int64_t r) { return scores_.get() + r * padded_; }
  std::int64_t pitch() const { return padded_; }  // between the roots of two rows
  double sum_of_squares(std::int64_t r) const { return sum_[r]; }

  void keep_largest(std::int64_t r, std::int64_t count) {
    glomo::keep_largest(roots(r) + begin(r), end(r) - begin(r), count, candidates_);
    weigh(r, T(0), false);
  }

 private:
  // Scores of the keys from `key` on, up to a whole tile of them.
  void compute_tile(std::int64_t key) {
    const std::int64_t keys = block_.keys_from(key);
    const Found found = screen_.scores(key, keys, tile_.get());
    T* scores = scores_.get() + key;
    if (found == Found::scores) {
      simd<T>().transpose(tile_.get(), LANES, keys, rows(), scores, padded_);
    } else if (found == Found::nothing) {
      for (std::int64_t r = 0; r < rows(); ++r) {
        std::fill_n(scores + r * padded_, keys, -std::numeric_limits<T>::infinity());
      }
    } else {
      if (block_.head != packed_head_) pack(block_.head);
      multiply_keys(key, keys, scores);
    }
  }

  // Not those of rows that see none of the keys of a panel.
  void multiply_keys(std::int64_t key, std::int64_t keys, T* scores) {
    const std::int64_t width = problem_.width, panel = simd<T>().columns;
    const T* q = problem_.q + (block_.head * problem_.units + block_.first) * width;
    const bool cut = block_.crossed(key, keys);
    for (std::int64_t j = 0; j < keys; j += panel) {
      const auto [from, to] = cut ? block_.seeing(key + j, panel) : std::pair<std::int64_t, std::int64_t>{0, rows()};
      if (from >= to) continue;
      simd<T>().multiply(to - from, panel, width, q + from * width, width, false, panels_.get() + (key + j) * width,
                         panel, scores + from * padded_ + j, padded_, false);
    }
  }

  void pack(std::int64_t head) {
    const T* k = problem_.k + head * problem_.units * problem_.width;
    lay_across(k, problem_.width, problem_.units, problem_.width, panels_.get());
    packed_head_ = head;
  }

  void weigh(std::int64_t r, T theta, bool relu) {
    sum_[r] = 0;
    simd<T>().edges(roots(r) + begin(r), end(r) - begin(r), theta, relu, &sum_[r]);
  }

  const Affinity<T>& problem_;
  QueryBlock<T> block_;
  Screen<T> screen_;
  std::int64_t padded_;
  Buffer<T> panels_, scores_, tile_;
  std::vector<T> candidates_;
  std::int64_t packed_head_ = -1;
  double sum_[LANES] = {};
};

}  // namespace glomo
