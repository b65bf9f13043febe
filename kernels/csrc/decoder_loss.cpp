// decoder_loss of a chunk of rows of `hidden`, in two passes over the words: logits and their exponentials, then,
// when the sums over all words are known, the gradients. A block of logits holds one word per row and the rows of
// `hidden` side by side, so that all three products take the weight and `hidden` as they lie. Every number is
// computed by the same operations in the same order on any number of threads.

#include <algorithm>
#include <limits>
#include <vector>

#include "decoder_products.h"
#include "kernels.h"
#include "scratch.h"
#include "simd.h"
#include "threads.h"
#include "turns.h"

namespace glomo {
namespace {

// Words that a thread takes at a time: enough that their part of d hidden is worth adding, and for many threads.
std::int64_t share_of(std::int64_t words) {
  const std::int64_t part = (words / 32 + DECODER_BLOCK - 1) / DECODER_BLOCK * DECODER_BLOCK;
  return std::clamp<std::int64_t>(part, DECODER_BLOCK, 8 * DECODER_BLOCK);
}

// Calls f(block, first word, number of words) for the blocks of a share.
template <class F>
void for_blocks(std::int64_t words, std::int64_t item, const F& f) {
  const std::int64_t share = share_of(words), end = std::min((item + 1) * share, words);
  for (std::int64_t first = item * share; first < end; first += DECODER_BLOCK) {
    f(first / DECODER_BLOCK, first, std::min(DECODER_BLOCK, end - first));
  }
}

// Calls f(row, its target's place in the block) for the rows whose target is in the block.
template <class Element, class F>
void for_targets(const Decoder<Element>& problem, std::int64_t first, std::int64_t count, const F& f) {
  for (std::int64_t i = 0; i < problem.rows; ++i) {
    const std::int64_t word = problem.target[i];
    if (word >= first && word < first + count) f(i, word - first);
  }
}

}  // namespace

template <class Element>
void decoder_exponentials(const Decoder<Element>& problem, Sum<Element>* kept, Sum<Element>* peak, Sum<Element>* sum,
                          Sum<Element>* likelihood, int threads) {
  using T = Sum<Element>;
  const std::int64_t rows = problem.rows, words = problem.words;
  const std::int64_t lanes = lanes_of<T>(rows), share = share_of(words);
  const LogitProducts<Element> products(problem);
  parallel((words + share - 1) / share, threads, [&](const auto& next) {
    typename LogitProducts<Element>::Own own(problem);
    Buffer<T> block_of_logits(kept ? 0 : DECODER_BLOCK * lanes), largest(lanes), total(lanes);
    for (std::int64_t item = next(); item >= 0; item = next()) {
      for_blocks(words, item, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
        T* logits = kept ? kept + first * lanes : block_of_logits.get();
        products.logits(own, first, count, logits);
        simd<T>().peaks(logits, count, lanes, lanes, largest.get());
        for_targets(problem, first, count, [&](std::int64_t i, std::int64_t word) {
          likelihood[i] = logits[word * lanes + i];
          logits[word * lanes + i] = -std::numeric_limits<T>::infinity();
        });
        simd<T>().exponentials(logits, count, lanes, lanes, largest.get(), total.get());
        std::copy_n(largest.get(), rows, peak + block * rows);
        std::copy_n(total.get(), rows, sum + block * rows);
      });
    }
  });
}

template <class Element>
void decoder_gradients(const Decoder<Element>& problem, Sum<Element>* kept, const Sum<Element>* factor,
                       const Sum<Element>* slope, Sum<Element>* d_hidden, Sum<Element>* d_weight, bool accumulate,
                       int threads) {
  using T = Sum<Element>;
  const std::int64_t rows = problem.rows, words = problem.words, width = problem.width;
  const std::int64_t lanes = lanes_of<T>(rows), share = share_of(words), items = (words + share - 1) / share;
  const std::int64_t pitch = padded<T>(width);
  const GradientProducts<Element> products(problem);
  const std::vector<std::uint8_t> all(static_cast<std::size_t>(items), 1);
  Turns turns(1, items, 1, all.data());
  parallel(items, threads, [&](const auto& next) {
    typename GradientProducts<Element>::Own own(problem);
    Buffer<T> part(lanes * pitch), factors(lanes);
    for (std::int64_t item = next(); item >= 0; item = next()) {
      for_blocks(words, item, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
        T* shares = kept + first * lanes;
        std::copy_n(factor + block * rows, rows, factors.get());
        simd<T>().scale_lanes(shares, count, lanes, lanes, factors.get());
        for_targets(problem, first, count,
                    [&](std::int64_t i, std::int64_t word) { shares[word * lanes + i] = slope[i]; });
        products.add(own, first, count, shares, d_weight + first * width, accumulate, part.get(), pitch,
                     first != item * share);
      });
      const std::int64_t turn = items - 1 - item;  // the order of Turns is from the last
      const bool first_turn = turns.wait(0, turn, 0);
      for (std::int64_t i = 0; i < rows; ++i) {
        T* out = d_hidden + i * width;
        if (first_turn) {
          std::copy_n(part.get() + i * pitch, width, out);
        } else {
          simd<T>().add_scaled(T(1), part.get() + i * pitch, width, out);
        }
      }
      turns.done(0, turn, 0);
    }
  });
}

#define INSTANTIATE(E)                                                                                                \
  template void decoder_exponentials<E>(const Decoder<E>&, Sum<E>*, Sum<E>*, Sum<E>*, Sum<E>*, int);                  \
  template void decoder_gradients<E>(const Decoder<E>&, Sum<E>*, const Sum<E>*, const Sum<E>*, Sum<E>*, Sum<E>*, bool, \
                                     int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)

}  // namespace glomo
