// Products of int8 with sums in int32, for processors that have instructions for them (AVX512_VNNI, AVX-VNNI): four in
// the place of one of float. For a first look at scores only (look.h).
#pragma once

#include <cstdint>

#include "rounded.h"

namespace glomo {

// Multiple that rows are filled up to.
constexpr std::int64_t BYTE_DEPTH = 16;

inline std::int64_t byte_words(std::int64_t n) { return (n + BYTE_DEPTH - 1) / BYTE_DEPTH * BYTE_DEPTH / 4; }

struct Bytes {
  const char* name;

  // x [rows][columns] as a, rows of int8 at a distance of `pitch` words, with zeros up to a multiple of BYTE_DEPTH. The
  // largest of a row becomes 127, or -127.
  void (*round_rows)(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Word* out,
                     std::int64_t pitch, Rounded* of);

  // c[rows][columns], rows of LANES, = a b, times the scales of both. b: words of panel n / PANEL at word * PANEL +
  // n % PANEL, panels side by side, its numbers 128 greater than they are. columns is a multiple of 16.
  void (*multiply)(std::int64_t rows, std::int64_t columns, std::int64_t words, const Word* a, std::int64_t pitch,
                   const Rounded& of_a, const Word* b, const Rounded& of_b, float* c);
};

// Rows that are so wide that a sum may leave int32 cannot be multiplied.
constexpr std::int64_t WIDEST_BYTES = 1 << 16;

// What this machine has, or null. GLOMO_SIMD may forbid it.
const Bytes* bytes();

}  // namespace glomo
