// The loops of simd.h. Included once per instruction set by simd.cpp, which defines SIMD_NAMESPACE, SIMD_BYTES (of a
// register), SIMD_ROWS and SIMD_VECTORS (of a product: the rows, and the registers of each, that are held at once).

namespace SIMD_NAMESPACE {

template <class T>
struct Lanes {
  typedef T Vec __attribute__((vector_size(SIMD_BYTES)));
  static constexpr std::int64_t COUNT = SIMD_BYTES / static_cast<std::int64_t>(sizeof(T));
};

// A register from and to any place in memory.
template <class T>
[[gnu::always_inline]] inline typename Lanes<T>::Vec load(const T* at) {
  typename Lanes<T>::Vec x;
  __builtin_memcpy(&x, at, sizeof(x));
  return x;
}
template <class T>
[[gnu::always_inline]] inline void store(T* at, const typename Lanes<T>::Vec& x) {
  __builtin_memcpy(at, &x, sizeof(x));
}

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
      const T* row = x + index[e] * width + d;
      const T c = coefficient[e];
#pragma GCC unroll 8
      for (int v = 0; v < BLOCK; ++v) sum[v] += c * load(row + v * COUNT);
    }
    for (int v = 0; v < BLOCK; ++v) store(y + d + v * COUNT, sum[v]);
  }
  for (; d + COUNT <= width; d += COUNT) {
    Vec sum = {};
    for (std::int64_t e = 0; e < n; ++e) {
      sum += coefficient[e] * load(x + index[e] * width + d);
    }
    store(y + d, sum);
  }
  for (; d < width; ++d) {
    T sum = 0;
    for (std::int64_t e = 0; e < n; ++e) sum += coefficient[e] * x[index[e] * width + d];
    y[d] = sum;
  }
}

template <class T>
void add_scaled(T c, const T* x, std::int64_t width, T* y) {
  std::int64_t d = 0;
  for (; d + Lanes<T>::COUNT <= width; d += Lanes<T>::COUNT) {
    store(y + d, load(y + d) + c * load(x + d));
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
      even += load(row + d) * load(y + d);
      odd += load(row + d + COUNT) * load(y + d + COUNT);
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
#include "softmax.inl"
#include "sparse.inl"
#include "tile.inl"

namespace SIMD_NAMESPACE {

template <class T>
constexpr Simd<T> table(const char* name) {
  return {name,         WIDE<T>,  combine<T>, add_scaled<T>,   weighted_dots<T>, multiply<T>,
          transpose<T>, nonzero<T>, gather<T>, dots<T>, roots<T>, square<T>,  weighted_sum<T>, slopes<T>, edges<T>,
          widen<T>, peaks<T>, exponentials<T>, scale_lanes<T>};
}

}  // namespace SIMD_NAMESPACE

#undef SIMD_NAMESPACE
#undef SIMD_BYTES
#undef SIMD_ROWS
#undef SIMD_VECTORS
