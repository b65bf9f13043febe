// The loops of simd.h. Included once per instruction set by simd.cpp, which defines SIMD_NAMESPACE,
// SIMD_BYTES (of a register), SIMD_ROWS and SIMD_COLUMN_BYTES (the block of a product held in registers at once).

namespace SIMD_NAMESPACE {

template <class T>
struct Lanes {
  typedef T Vec __attribute__((vector_size(SIMD_BYTES), aligned(sizeof(T)), may_alias));
  static constexpr std::int64_t COUNT = SIMD_BYTES / static_cast<std::int64_t>(sizeof(T));
};

// Eight registers of y at a time, so that y is written once however many rows are combined.
template <class T>
void combine(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x, std::int64_t width,
             T* y) {
  using Vec = typename Lanes<T>::Vec;
  constexpr int BLOCK = 8;
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  std::int64_t d = 0;
  for (; d + BLOCK * COUNT <= width; d += BLOCK * COUNT) {
    Vec sum[BLOCK] = {};
    for (std::int64_t e = 0; e < n; ++e) {
      const Vec* row = reinterpret_cast<const Vec*>(x + index[e] * width + d);
      const T c = coefficient[e];
#pragma GCC unroll 8
      for (int v = 0; v < BLOCK; ++v) sum[v] += c * row[v];
    }
    for (int v = 0; v < BLOCK; ++v) reinterpret_cast<Vec*>(y + d)[v] = sum[v];
  }
  for (; d + COUNT <= width; d += COUNT) {
    Vec sum = {};
    for (std::int64_t e = 0; e < n; ++e) {
      sum += coefficient[e] * *reinterpret_cast<const Vec*>(x + index[e] * width + d);
    }
    *reinterpret_cast<Vec*>(y + d) = sum;
  }
  for (; d < width; ++d) {
    T sum = 0;
    for (std::int64_t e = 0; e < n; ++e) sum += coefficient[e] * x[index[e] * width + d];
    y[d] = sum;
  }
}

template <class T>
void add_scaled(T c, const T* x, std::int64_t width, T* y) {
  using Vec = typename Lanes<T>::Vec;
  std::int64_t d = 0;
  for (; d + Lanes<T>::COUNT <= width; d += Lanes<T>::COUNT) {
    *reinterpret_cast<Vec*>(y + d) += c * *reinterpret_cast<const Vec*>(x + d);
  }
  for (; d < width; ++d) y[d] += c * x[d];
}

template <class T>
T weighted_dots(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x,
                std::int64_t width, const T* y) {
  using Vec = typename Lanes<T>::Vec;
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  Vec total = {};
  T rest = 0;
  for (std::int64_t e = 0; e < n; ++e) {
    const T* row = x + index[e] * width;
    Vec even = {}, odd = {};
    std::int64_t d = 0;
    for (; d + 2 * COUNT <= width; d += 2 * COUNT) {
      const Vec* a = reinterpret_cast<const Vec*>(row + d);
      const Vec* b = reinterpret_cast<const Vec*>(y + d);
      even += a[0] * b[0];
      odd += a[1] * b[1];
    }
    T tail = 0;
    for (; d < width; ++d) tail += row[d] * y[d];
    total += coefficient[e] * (even + odd);
    rest += coefficient[e] * tail;
  }
  for (int lane = 0; lane < COUNT; ++lane) rest += total[lane];
  return rest;
}

}  // namespace SIMD_NAMESPACE

#include "gemm.inl"
#include "tile.inl"

namespace SIMD_NAMESPACE {

template <class T>
constexpr Simd<T> table(const char* name) {
  constexpr std::int64_t COLUMNS = SIMD_COLUMN_BYTES / static_cast<std::int64_t>(sizeof(T));
  return {name,         COLUMNS,  combine<T>, add_scaled<T>,   weighted_dots<T>, multiply<T>,
          transpose<T>, roots<T>, square<T>,  weighted_sum<T>, slopes<T>,        edges<T>};
}

}  // namespace SIMD_NAMESPACE

#undef SIMD_NAMESPACE
#undef SIMD_BYTES
#undef SIMD_ROWS
#undef SIMD_COLUMN_BYTES
