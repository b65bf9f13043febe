// decoder_loss of a chunk of rows of `hidden`, in two passes over the words: logits and their exponentials, then,
// when the sums over all words are known, the gradients. A block of logits holds one word per row and the rows of
// `hidden` side by side, so that all three products take the weight and `hidden` as they lie. Every number is
// computed by the same operations in the same order on any number of threads.

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels.h"
#include "panels.h"
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

// Rows of the weight from word `first` on: where they are, or widened into scratch memory.
template <class T>
const T* weight_rows(const Decoder<T>& problem, std::int64_t first, std::int64_t count, T* scratch) {
  const std::int64_t start = first * problem.width;
  if (problem.stored == Stored::same) return static_cast<const T*>(problem.weight) + start;
  simd<T>().widen(static_cast<const std::uint16_t*>(problem.weight) + start, count * problem.width,
                  problem.stored == Stored::bfloat16, scratch);
  return scratch;
}

template <class T>
std::int64_t scratch_of(const Decoder<T>& problem) {
  return problem.stored == Stored::same ? 0 : DECODER_BLOCK * problem.width;
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
template <class T, class F>
void for_targets(const Decoder<T>& problem, std::int64_t first, std::int64_t count, const F& f) {
  for (std::int64_t i = 0; i < problem.rows; ++i) {
    const std::int64_t word = problem.target[i];
    if (word >= first && word < first + count) f(i, word - first);
  }
}

}  // namespace

template <class T>
void decoder_exponentials(const Decoder<T>& problem, T* kept, T* peak, T* sum, T* likelihood, int threads) {
  const std::int64_t rows = problem.rows, words = problem.words, width = problem.width;
  const std::int64_t lanes = lanes_of<T>(rows), share = share_of(words);
  Buffer<T> across(in_panels<T>(rows) * width);
  lay_across(problem.hidden, width, rows, width, across.get());
  parallel((words + share - 1) / share, threads, [&](const auto& next) {
    Buffer<T> own(kept ? 0 : DECODER_BLOCK * lanes), largest(lanes), total(lanes), wide(scratch_of(problem));
    for (std::int64_t item = next(); item >= 0; item = next()) {
      for_blocks(words, item, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
        T* logits = kept ? kept + first * lanes : own.get();
        multiply_panels(count, lanes, width, weight_rows(problem, first, count, wide.get()), width, false,
                        across.get(), logits, lanes, false);
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

template <class T>
void decoder_gradients(const Decoder<T>& problem, T* kept, const T* factor, const T* slope, T* d_hidden, T* d_weight,
                       bool accumulate, int threads) {
  const std::int64_t rows = problem.rows, words = problem.words, width = problem.width;
  const std::int64_t lanes = lanes_of<T>(rows), share = share_of(words), items = (words + share - 1) / share;
  const std::int64_t columns = in_panels<T>(width), pitch = padded<T>(width);
  Buffer<T> hidden(columns * rows);
  lay_panels(problem.hidden, width, rows, width, hidden.get());
  const std::vector<std::uint8_t> all(static_cast<std::size_t>(items), 1);
  Turns turns(1, items, 1, all.data());
  parallel(items, threads, [&](const auto& next) {
    Buffer<T> weight(columns * DECODER_BLOCK), part(rows * pitch), factors(lanes), wide(scratch_of(problem));
    for (std::int64_t item = next(); item >= 0; item = next()) {
      for_blocks(words, item, [&](std::int64_t block, std::int64_t first, std::int64_t count) {
        T* shares = kept + first * lanes;
        std::copy_n(factor + block * rows, rows, factors.get());
        simd<T>().scale_lanes(shares, count, lanes, lanes, factors.get());
        for_targets(problem, first, count,
                    [&](std::int64_t i, std::int64_t word) { shares[word * lanes + i] = slope[i]; });
        multiply_panels(count, width, rows, shares, lanes, false, hidden.get(), d_weight + first * width, width,
                        accumulate);
        lay_panels(weight_rows(problem, first, count, wide.get()), width, count, width, weight.get());
        multiply_panels(rows, width, count, shares, lanes, true, weight.get(), part.get(), pitch,
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

#define INSTANTIATE(T)                                                                                              \
  template void decoder_exponentials<T>(const Decoder<T>&, T*, T*, T*, T*, int);                                     \
  template void decoder_gradients<T>(const Decoder<T>&, T*, const T*, const T*, T*, T*, bool, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace glomo
