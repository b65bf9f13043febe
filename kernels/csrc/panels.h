// Matrices as `multiply` takes its b fastest: in panels of as many columns as it computes at once, one after the other,
// [columns / panel][rows][panel]. Lines at a greater distance would compete for the same places in the cache.
#pragma once

#include <algorithm>

#include "simd.h"

namespace glomo {

// n columns, up to whole panels.
template <class T>
std::int64_t in_panels(std::int64_t n) {
  const std::int64_t panel = simd<T>().columns;
  return (n + panel - 1) / panel * panel;
}

// Panels of x [rows][width], `stride` apart: out [width / panel][rows][panel].
template <class T>
void lay_panels(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t width, T* out) {
  const std::int64_t panel = simd<T>().columns;
  for (std::int64_t p = 0; p < width; p += panel) {
    const std::int64_t columns = std::min(panel, width - p);
    for (std::int64_t i = 0; i < rows; ++i) std::copy_n(x + i * stride + p, columns, out + p * rows + i * panel);
  }
}

// Panels of x^T: out [rows / panel][width][panel].
template <class T>
void lay_across(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t width, T* out) {
  const std::int64_t panel = simd<T>().columns;
  for (std::int64_t p = 0; p < rows; p += panel) {
    simd<T>().transpose(x + p * stride, stride, std::min(panel, rows - p), width, out + p * width, panel);
  }
}

// `multiply` with b in panels.
template <class T>
void multiply_panels(std::int64_t rows, std::int64_t columns, std::int64_t depth, const T* a, std::int64_t lda,
                     bool across, const T* b, T* c, std::int64_t ldc, bool accumulate) {
  const std::int64_t panel = simd<T>().columns;
  for (std::int64_t p = 0; p < columns; p += panel) {
    simd<T>().multiply(rows, std::min(panel, columns - p), depth, a, lda, across, b + p * depth, panel, c + p, ldc,
                       accumulate);
  }
}

}  // namespace glomo
