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

// The sum of the elements of a vector, by halves down to 16 bytes.
template <class T, int BYTES>
[[gnu::always_inline]] inline T sum_of(const T* x) {
  typedef T Half __attribute__((vector_size(BYTES / 2)));
  if constexpr (BYTES > 16) {
    Half low, high;
    __builtin_memcpy(&low, x, BYTES / 2);
    __builtin_memcpy(&high, x + BYTES / 2 / sizeof(T), BYTES / 2);
    low += high;
    return sum_of<T, BYTES / 2>(reinterpret_cast<const T*>(&low));
  } else if constexpr (sizeof(T) == 4) {
    return (x[0] + x[2]) + (x[1] + x[3]);
  } else {
    return x[0] + x[1];
  }
}

// Terms that are added up one after the other before their sum is added to the others: the rounding errors of a
// long sum grow with its length, those of sums of sums with the lengths of the parts.
constexpr std::int64_t DEPTH = 64;

// Parts of nearly the same length that a sum of n terms is cut into. Part p has those from n * p / parts on.
inline std::int64_t parts_of(std::int64_t n) { return n > DEPTH ? (n + DEPTH - 1) / DEPTH : 1; }

template <class T>
void add_scaled(T c, const T* x, std::int64_t width, T* y) {
  std::int64_t d = 0;
  for (; d + Lanes<T>::COUNT <= width; d += Lanes<T>::COUNT) {
    store(y + d, load(y + d) + c * load(x + d));
  }
  for (; d < width; ++d) y[d] += c * x[d];
}

}  // namespace SIMD_NAMESPACE

#include "gemm.inl"
#include "indexed.inl"
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
