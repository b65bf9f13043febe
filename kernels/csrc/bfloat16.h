// Products of bfloat16 with sums in float32, for processors that have instructions for them (Intel's AMX, AVX512_BF16).
// These take the second operand by words of two: a column's elements of rows 2p and 2p + 1 lie side by side.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "rounded.h"
#include "scratch.h"
#include "simd.h"

namespace glomo {

// Multiples that rows and depth of a product are filled up to.
constexpr std::int64_t HALF_ROWS = 16, HALF_DEPTH = 32;

inline std::int64_t half_rows(std::int64_t n) { return (n + HALF_ROWS - 1) / HALF_ROWS * HALF_ROWS; }
inline std::int64_t half_depth(std::int64_t n) { return (n + HALF_DEPTH - 1) / HALF_DEPTH * HALF_DEPTH; }

struct Bfloat16 {
  const char* name;
  bool tiles;  // AMX: ten times as fast as float's products, the others twice

  // To be called by each thread, before the first `multiply` and after the last one: the state in which the processor
  // was goes to `state` (64 bytes) and comes back.
  void (*enter)(void* state);
  void (*leave)(const void* state);

  // c[rows][columns] = (or +=) a b. a(r, k) at a[r * lda + k]; b(k, n) in a word of panel n / PANEL, k / 2 * PANEL +
  // n % PANEL, panels at a distance of `panel`. rows and columns are multiples of 16, depth is one of 32.
  void (*multiply)(std::int64_t rows, std::int64_t columns, std::int64_t depth, const Half* a, std::int64_t lda,
                   const Word* b, std::int64_t panel, float* c, std::int64_t ldc, bool accumulate);

  // x [rows][columns] as such a b, columns a multiple of 16, with rows of zeros up to a multiple of HALF_DEPTH.
  void (*pair_rows)(const Half* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Word* out,
                    std::int64_t panel);
  void (*round_pairs)(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Word* out,
                      std::int64_t panel);

  // The same of the squares of roots [rows][LANES]; sum[n] += the rounded squares of column n. Bit n of the result:
  // whether a square of that column is not 0.
  std::uint64_t (*square_pairs)(const float* roots, std::int64_t rows, std::int64_t columns, Word* out,
                                std::int64_t panel, float* sum);

  // x [rows][columns], any number of both, as a, with zeros up to multiples of HALF_ROWS and HALF_DEPTH. of, unless it
  // is null, becomes what the rows were.
  void (*round_rows)(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Half* out,
                     std::int64_t lda, Rounded* of);

  // out[i] = scale * x[i], rounded; n is a multiple of 16.
  void (*round_scaled)(const float* x, std::int64_t n, float scale, Half* out);
};

// What this machine has, or null. GLOMO_SIMD may forbid it.
const Bfloat16* bfloat16();

// The tiles of the processor, for as long as a thread multiplies.
class Session {
 public:
  Session() { bfloat16()->enter(state_); }
  ~Session() { bfloat16()->leave(state_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

 private:
  alignas(64) unsigned char state_[64] = {};
};

// `multiply` for any number of rows: memory of its own takes the place of those that a and c do not have.
class AnyRows {
 public:
  AnyRows(std::int64_t columns, std::int64_t depth) : a_(HALF_ROWS * depth), c_(HALF_ROWS * columns) {}

  void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, const Half* a, std::int64_t lda,
                const Word* b, std::int64_t panel, float* c, std::int64_t ldc, bool accumulate) {
    const std::int64_t whole = rows / HALF_ROWS * HALF_ROWS;
    bfloat16()->multiply(whole, columns, depth, a, lda, b, panel, c, ldc, accumulate);
    if (whole == rows) return;
    for (std::int64_t r = whole; r < rows; ++r) {
      std::copy_n(a + r * lda, depth, a_.get() + (r - whole) * depth);
      if (accumulate) std::copy_n(c + r * ldc, columns, c_.get() + (r - whole) * columns);
    }
    bfloat16()->multiply(HALF_ROWS, columns, depth, a_.get(), depth, b, panel, c_.get(), columns, accumulate);
    for (std::int64_t r = whole; r < rows; ++r) std::copy_n(c_.get() + (r - whole) * columns, columns, c + r * ldc);
  }

 private:
  Buffer<Half> a_;  // rows that are not used hold what was there before
  Buffer<float> c_;
};

// A tile of pairs of rows (a b, as `pair_rows` and its like make it) as the a of products over the same rows, with its
// columns in the place of rows: out [columns][lda].
inline void turn_pairs(const Word* pairs, std::int64_t panel, std::int64_t rows, std::int64_t columns, Half* out,
                       std::int64_t lda) {
  for (std::int64_t n = 0; n < columns; n += PANEL) {
    transpose_words(pairs + n / PANEL * panel, PANEL, half_depth(rows) / 2, PANEL,
                    reinterpret_cast<Word*>(out + n * lda), lda / 2);
  }
}

}  // namespace glomo
