// The products of decoder_loss: float and double, where a weight of half precision is widened block by block, and
// bfloat16 (bfloat16.h). Blocks of logits and of shares are [words][lanes], one lane per row of `hidden`.
#pragma once

#include <algorithm>

#include "bfloat16.h"
#include "kernels.h"
#include "panels.h"
#include "scratch.h"
#include "simd.h"

namespace glomo {

// Rows of the weight from word `first` on: where they are, or widened into scratch memory.
template <class T>
class WeightRows {
 public:
  explicit WeightRows(const Decoder<T>& problem)
      : problem_(problem), wide_(problem.stored == Stored::same ? 0 : DECODER_BLOCK * problem.width) {}

  const T* from(std::int64_t first, std::int64_t count) {
    const std::int64_t start = first * problem_.width;
    if (problem_.stored == Stored::same) return static_cast<const T*>(problem_.weight) + start;
    simd<T>().widen(static_cast<const std::uint16_t*>(problem_.weight) + start, count * problem_.width,
                    problem_.stored == Stored::bfloat16, wide_.get());
    return wide_.get();
  }

 private:
  const Decoder<T>& problem_;
  Buffer<T> wide_;
};

// weight . hidden. What is made once is for all threads, `Own` for one of them.
template <class T>
class LogitProducts {
 public:
  using Own = WeightRows<T>;

  explicit LogitProducts(const Decoder<T>& problem)
      : problem_(problem), across_(in_panels<T>(problem.rows) * problem.width) {
    lay_across(problem.hidden, problem.width, problem.rows, problem.width, across_.get());
  }

  void logits(Own& weight, std::int64_t first, std::int64_t count, T* out) const {
    const std::int64_t lanes = lanes_of<T>(problem_.rows), width = problem_.width;
    multiply_panels(count, lanes, width, weight.from(first, count), width, false, across_.get(), out, lanes, false);
  }

 private:
  const Decoder<T>& problem_;
  Buffer<T> across_;
};

// The gradients, from shares: d_weight [count][width] = (or +=) shares . hidden, d_hidden [rows][pitch] = (or +=)
// shares^T weight, with room for as many rows as there are lanes.
template <class T>
class GradientProducts {
 public:
  struct Own {
    explicit Own(const Decoder<T>& problem) : weight(problem), panels(in_panels<T>(problem.width) * DECODER_BLOCK) {}
    WeightRows<T> weight;
    Buffer<T> panels;
  };

  explicit GradientProducts(const Decoder<T>& problem)
      : problem_(problem), hidden_(in_panels<T>(problem.width) * problem.rows) {
    lay_panels(problem.hidden, problem.width, problem.rows, problem.width, hidden_.get());
  }

  void add(Own& own, std::int64_t first, std::int64_t count, const T* shares, T* d_weight, bool more_weight,
           T* d_hidden, std::int64_t pitch, bool more_hidden) const {
    const std::int64_t lanes = lanes_of<T>(problem_.rows), width = problem_.width;
    multiply_panels(count, width, problem_.rows, shares, lanes, false, hidden_.get(), d_weight, width, more_weight);
    lay_panels(own.weight.from(first, count), width, count, width, own.panels.get());
    multiply_panels(problem_.rows, width, count, shares, lanes, true, own.panels.get(), d_hidden, pitch, more_hidden);
  }

 private:
  const Decoder<T>& problem_;
  Buffer<T> hidden_;
};

template <>
class LogitProducts<Half> {
 public:
  struct Own {
    explicit Own(const Decoder<Half>& problem) : any(lanes_of<float>(problem.rows), problem.width) {}
    Session session;
    AnyRows any;
  };

  explicit LogitProducts(const Decoder<Half>& problem)
      : problem_(problem), across_(lanes_of<float>(problem.rows) * problem.width / 2) {
    lay_words(problem.hidden, problem.width / 2, problem.rows, problem.width / 2, across_.get());
  }

  void logits(Own& own, std::int64_t first, std::int64_t count, float* out) const {
    const std::int64_t lanes = lanes_of<float>(problem_.rows), width = problem_.width;
    const Half* weight = static_cast<const Half*>(problem_.weight) + first * width;
    own.any.multiply(count, lanes, width, weight, width, across_.get(), width / 2 * PANEL, out, lanes, false);
  }

 private:
  const Decoder<Half>& problem_;
  Buffer<Word> across_;
};

template <>
class GradientProducts<Half> {
 public:
  struct Own {
    explicit Own(const Decoder<Half>& problem)
        : any(problem.width, half_depth(problem.rows)),
          rounded(DECODER_BLOCK * half_depth(problem.rows), false),
          pairs(DECODER_BLOCK / 2 * lanes_of<float>(problem.rows), false),
          weight(DECODER_BLOCK / 2 * problem.width, false) {}
    Session session;
    AnyRows any;
    Buffer<Half> rounded;
    Buffer<Word> pairs, weight;
  };

  explicit GradientProducts(const Decoder<Half>& problem)
      : problem_(problem), panel_(half_depth(problem.rows) / 2 * PANEL), hidden_(problem.width / PANEL * panel_) {
    bfloat16()->pair_rows(problem.hidden, problem.width, problem.rows, problem.width, hidden_.get(), panel_);
  }

  void add(Own& own, std::int64_t first, std::int64_t count, const float* shares, float* d_weight, bool more_weight,
           float* d_hidden, std::int64_t pitch, bool more_hidden) const {
    const Bfloat16& kernels = *bfloat16();
    const std::int64_t width = problem_.width, lanes = lanes_of<float>(problem_.rows);
    const std::int64_t depth = half_depth(problem_.rows);
    const Half* weight = static_cast<const Half*>(problem_.weight) + first * width;
    constexpr std::int64_t PAIRS = DECODER_BLOCK / 2 * PANEL;
    // Lanes without a row are left out: they hold NaN where a word is not finite.
    kernels.round_rows(shares, lanes, count, problem_.rows, own.rounded.get(), depth, nullptr);
    own.any.multiply(count, width, depth, own.rounded.get(), depth, hidden_.get(), panel_, d_weight, width,
                     more_weight);
    kernels.pair_rows(own.rounded.get(), depth, count, lanes, own.pairs.get(), PAIRS);
    turn_pairs(own.pairs.get(), PAIRS, count, lanes, own.rounded.get(), DECODER_BLOCK);
    kernels.pair_rows(weight, width, count, width, own.weight.get(), PAIRS);
    kernels.multiply(lanes, width, half_depth(count), own.rounded.get(), DECODER_BLOCK, own.weight.get(), PAIRS,
                     d_hidden, pitch, more_hidden);
  }

 private:
  const Decoder<Half>& problem_;
  std::int64_t panel_;
  Buffer<Word> hidden_;
};

}  // namespace glomo
