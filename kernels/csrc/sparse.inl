// Products over the elements of a tile that are not 0, in the place of `multiply` where they are few. A tile is
// [keys][LANES]; which of its elements are meant is a word of 64 bits per key, or, turned, per lane. Included by
// simd.inl.

namespace SIMD_NAMESPACE {

// Bit i: whether x[i] is not 0 (NaN is not), for the elements of one register.
template <class T>
inline std::uint64_t nonzero_bits(const typename Lanes<T>::Vec& x) {
#if defined(__x86_64__) && SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  else return _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_NEQ_UQ);
#elif defined(__x86_64__) && SIMD_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  } else {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)x, _mm256_setzero_pd(), _CMP_NEQ_UQ)));
  }
#else
  std::uint64_t bits = 0;
  for (int i = 0; i < Lanes<T>::COUNT; ++i) bits |= static_cast<std::uint64_t>(x[i] != T(0)) << i;
  return bits;
#endif
}

inline std::uint64_t lanes_below(std::int64_t rows) {
  return rows < LANES ? (std::uint64_t{1} << rows) - 1 : ~std::uint64_t{0};
}

// masks[key] has the lanes, of the first `rows`, of the key's elements that are not 0. Returns their number.
template <class T>
std::int64_t nonzero(const T* tile, std::int64_t keys, std::int64_t rows, std::uint64_t* masks) {
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < keys; ++j) {
    std::uint64_t mask = 0;
    for (std::int64_t i = 0; i < rows; i += Lanes<T>::COUNT) mask |= nonzero_bits<T>(load(tile + j * LANES + i)) << i;
    masks[j] = mask & lanes_below(rows);
    count += __builtin_popcountll(masks[j]);
  }
  return count;
}

// c[0 .. BLOCK registers) += sum over the bits n of mask: a[n * step] * x[n * pitch + ...]. The sum is made aside, as
// that of DEPTH terms in `combine`.
template <class T, int BLOCK>
inline void gather_block(std::uint64_t mask, const T* a, std::int64_t step, const T* x, std::int64_t pitch, T* c) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  typename Lanes<T>::Vec sum[BLOCK] = {};
  for (; mask; mask &= mask - 1) {
    const int n = __builtin_ctzll(mask);
    const T factor = a[n * step];
    const T* line = x + n * pitch;
#pragma GCC unroll 16
    for (int v = 0; v < BLOCK; ++v) sum[v] += factor * load(line + v * COUNT);
  }
#pragma GCC unroll 16
  for (int v = 0; v < BLOCK; ++v) store(c + v * COUNT, load(c + v * COUNT) + sum[v]);
}

// `gather` for BLOCK registers of columns from d on, as often as they fit; returns the first column that is left.
template <class T, int BLOCK>
inline std::int64_t gather_blocks(const std::uint64_t* masks, std::int64_t rows, const T* a, std::int64_t row,
                                  std::int64_t step, const T* x, std::int64_t pitch, std::int64_t d, std::int64_t width,
                                  T* c, std::int64_t ldc) {
  for (; d + BLOCK * Lanes<T>::COUNT <= width; d += BLOCK * Lanes<T>::COUNT) {
    for (std::int64_t r = 0; r < rows; ++r) {
      if (masks[r]) gather_block<T, BLOCK>(masks[r], a + r * row, step, x + d, pitch, c + r * ldc + d);
    }
  }
  return d;
}

// c[r][0 .. width) += sum over the bits n of masks[r]: a(r, n) x[n][0 .. width), a(r, n) at a[r * row + n * step].
// One stripe of columns for all rows after the other: that of 64 lines of x stays in the nearest cache.
template <class T>
void gather(const std::uint64_t* masks, std::int64_t rows, const T* a, std::int64_t row, std::int64_t step, const T* x,
            std::int64_t pitch, std::int64_t width, T* c, std::int64_t ldc) {
  constexpr int STRIPE = SIMD_BYTES < 32 ? 8 : 256 / SIMD_BYTES;
  std::int64_t d = gather_blocks<T, STRIPE>(masks, rows, a, row, step, x, pitch, 0, width, c, ldc);
  d = gather_blocks<T, 1>(masks, rows, a, row, step, x, pitch, d, width, c, ldc);
  for (std::int64_t r = 0; r < rows && d < width; ++r) {
    T sum[Lanes<T>::COUNT] = {};
    for (std::uint64_t mask = masks[r]; mask; mask &= mask - 1) {
      const int n = __builtin_ctzll(mask);
      for (std::int64_t i = d; i < width; ++i) sum[i - d] += a[r * row + n * step] * x[n * pitch + i];
    }
    for (std::int64_t i = d; i < width; ++i) c[r * ldc + i] += sum[i - d];
  }
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

template <class T>
inline T dot(const T* x, const T* y, std::int64_t width) {
  using Vec = typename Lanes<T>::Vec;
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  Vec sum[4] = {};
  std::int64_t d = 0;
  for (; d + 4 * COUNT <= width; d += 4 * COUNT) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] += load(x + d + v * COUNT) * load(y + d + v * COUNT);
  }
  for (; d + COUNT <= width; d += COUNT) sum[0] += load(x + d) * load(y + d);
  const Vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
#if defined(__x86_64__) && SIMD_BYTES == 64
  T total;
  if constexpr (sizeof(T) == 4) total = _mm512_reduce_add_ps((__m512)all);
  else total = _mm512_reduce_add_pd((__m512d)all);
#else
  T total = sum_of<T, SIMD_BYTES>(reinterpret_cast<const T*>(&all));
#endif
  for (; d < width; ++d) total += x[d] * y[d];
  return total;
}

// tile[key][lane] = x[key] . y[lane] for the lanes of masks[key].
template <class T>
void dots(const std::uint64_t* masks, std::int64_t keys, const T* x, std::int64_t pitch_x, const T* y,
          std::int64_t pitch_y, std::int64_t width, T* tile) {
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::uint64_t mask = masks[j]; mask; mask &= mask - 1) {
      const int i = __builtin_ctzll(mask);
      tile[j * LANES + i] = dot(x + j * pitch_x, y + i * pitch_y, width);
    }
  }
}

}  // namespace SIMD_NAMESPACE
