// Rows of q and k that are rounded for a first look at their scores (look.h), and the layout that their products take.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace glomo {

using Word = std::uint32_t;  // two of Half, the first one in its lower half, or four of int8

// Columns of a panel of words: a line of the cache.
constexpr std::int64_t PANEL = 16;

// What up to LANES rows were before they were rounded.
struct Rounded {
  float norm[LANES];   // length of a row, never less but for rounding
  float off[LANES];    // length of what rounding has changed, likewise
  float scale[LANES];  // int8: what a number of the row is worth
  Word sum[LANES];     // int8: of the numbers of the row
  float worst;         // the greatest share off / norm of a row

  void find_worst(std::int64_t rows) {
    worst = 0;
    for (std::int64_t i = 0; i < rows; ++i) worst = std::max(worst, off[i] / norm[i]);  // not NaN's
  }
};

// Added to lengths, and to those of what rounding has changed: more than what is lost where squares are too small for
// float. Lengths get far more, so that a row of zeros has a small share.
constexpr float TINY = 1e-14f, LOST = 3e-17f;

// out[d * ld + i] = x[i * stride + d], in words.
inline void transpose_words(const void* x, std::int64_t stride, std::int64_t rows, std::int64_t width, Word* out,
                            std::int64_t ld) {
  simd<float>().transpose(static_cast<const float*>(x), stride, rows, width, reinterpret_cast<float*>(out), ld);
}

// x [rows][width], in words, as the b of products over the width, a row is a column there: in panels at a distance of
// width * PANEL. Columns up to a multiple of PANEL are left as they are.
inline void lay_words(const void* x, std::int64_t stride, std::int64_t rows, std::int64_t width, Word* out) {
  const Word* words = static_cast<const Word*>(x);
  for (std::int64_t row = 0; row < rows; row += PANEL) {
    transpose_words(words + row * stride, stride, std::min(PANEL, rows - row), width, out + row * width, PANEL);
  }
}

}  // namespace glomo
