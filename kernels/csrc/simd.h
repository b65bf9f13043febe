// The inner loops, compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>

namespace glomo {

// Keys are packed in panels of 64 bytes: PANEL<T> keys side by side, one line per feature.
template <class T>
constexpr std::int64_t PANEL = 64 / static_cast<std::int64_t>(sizeof(T));

template <class T>
struct Simd {
  const char* name;

  // out[r * out_stride + j] = q_r . key_j for r < rows and the PANEL<T> keys j of one panel [depth][PANEL<T>];
  // row r of q starts at q + r * depth.
  void (*panel_scores)(const T* q, std::int64_t rows, std::int64_t depth, const T* panel, T* out,
                       std::int64_t out_stride);

  // y = sum_{e < n} coefficient[e] * x[index[e]], rows of `width`; y is overwritten.
  void (*combine)(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x,
                  std::int64_t width, T* y);

  // y += c * x over `width` elements.
  void (*add_scaled)(T c, const T* x, std::int64_t width, T* y);

  // sum_{e < n} coefficient[e] * (x_index[e] . y), rows of `width`.
  T (*weighted_dots)(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x,
                     std::int64_t width, const T* y);
};

// The best version that this machine runs.
template <class T>
const Simd<T>& simd();

}  // namespace glomo
