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

// Terms that are added up one after the other before their sum is added to the others: the rounding errors of a
// long sum grow with its length, those of sums of sums with the lengths of the parts.
constexpr std::int64_t DEPTH = 64;

// Parts of nearly the same length that a sum of n terms is cut into. Part p has those from n * p / parts on.
inline std::int64_t parts_of(std::int64_t n) { return n > DEPTH ? (n + DEPTH - 1) / DEPTH : 1; }

// `combine` for BLOCK registers of columns from d on, as often as they fit; returns the first column that is left.
template <class T, int BLOCK>
inline std::int64_t combine_blocks(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x,
                                   std::int64_t d, std::int64_t width, T* y) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  const std::int64_t parts = parts_of(n);
  for (; d + BLOCK * COUNT <= width; d += BLOCK * COUNT) {
    for (std::int64_t part = 0; part < parts; ++part) {
      typename Lanes<T>::Vec sum[BLOCK] = {};
      for (std::int64_t e = n * part / parts; e < n * (part + 1) / parts; ++e) {
        const T* row = x + index[e] * width + d;
        const T c = coefficient[e];
#pragma GCC unroll 8
        for (int v = 0; v < BLOCK; ++v) sum[v] += c * load(row + v * COUNT);
      }
#pragma GCC unroll 8
      for (int v = 0; v < BLOCK; ++v) {
        T* out = y + d + v * COUNT;
        store(out, part > 0 ? load(out) + sum[v] : sum[v]);
      }
    }
  }
  return d;
}

// Up to eight registers of y at a time, so that each is written once for up to DEPTH rows. The last one may overlap
// the one before, whose numbers it computes again: the order of the terms is the same everywhere.
template <class T>
void combine(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x, std::int64_t width,
             T* y) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  std::int64_t d = combine_blocks<T, 8>(coefficient, index, n, x, 0, width, y);
  d = combine_blocks<T, 4>(coefficient, index, n, x, d, width, y);
  d = combine_blocks<T, 2>(coefficient, index, n, x, d, width, y);
  d = combine_blocks<T, 1>(coefficient, index, n, x, d, width, y);
  if (d < width && width > COUNT) d = combine_blocks<T, 1>(coefficient, index, n, x, width - COUNT, width, y);
  const std::int64_t parts = parts_of(n);
  for (; d < width; ++d) {
    T total = 0;
    for (std::int64_t part = 0; part < parts; ++part) {
      T sum = 0;
      for (std::int64_t e = n * part / parts; e < n * (part + 1) / parts; ++e) {
        sum += coefficient[e] * x[index[e] * width + d];
      }
      total += sum;
    }
    y[d] = total;
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
  const std::int64_t parts = parts_of(n);
  Vec total = {};
  T rest = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    Vec sum = {};
    T tails = 0;
    for (std::int64_t e = n * part / parts; e < n * (part + 1) / parts; ++e) {
      const T* row = x + index[e] * width;
      Vec even = {}, odd = {};
      std::int64_t d = 0;
      for (; d + 2 * COUNT <= width; d += 2 * COUNT) {
        even += load(row + d) * load(y + d);
        odd += load(row + d + COUNT) * load(y + d + COUNT);
      }
      for (; d + COUNT <= width; d += COUNT) even += load(row + d) * load(y + d);
      T tail = 0;
      for (; d < width; ++d) tail += row[d] * y[d];
      sum += coefficient[e] * (even + odd);
      tails += coefficient[e] * tail;
    }
    total += sum;
    rest += tails;
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
  return {name,      WIDE<T>, combine<T>,      add_scaled<T>, weighted_dots<T>, multiply<T>, transpose<T>,
          nonzero<T>, gather<T>, dots<T>,      roots<T>,      above<T>,         square<T>,   weighted_sum<T>,
          slopes<T>, edges<T>, widen<T>,       peaks<T>,      exponentials<T>,  scale_lanes<T>};
}

}  // namespace SIMD_NAMESPACE

#undef SIMD_NAMESPACE
#undef SIMD_BYTES
#undef SIMD_ROWS
#undef SIMD_VECTORS
