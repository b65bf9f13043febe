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

constexpr int TOGETHER = 4;  // products of the same key that are made at once

// The sums of the elements of a few vectors.
template <class T>
inline void sums_of(const typename Lanes<T>::Vec (&x)[TOGETHER], T* total) {
#if defined(__x86_64__) && SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4) {  // in each quarter of a register one of each comes together, and then the quarters
    const __m512 a = (__m512)x[0], b = (__m512)x[1], c = (__m512)x[2], d = (__m512)x[3];
    const __m512d first = (__m512d)(_mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b));
    const __m512d second = (__m512d)(_mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d));
    __m512 all = (__m512)_mm512_unpacklo_pd(first, second) + (__m512)_mm512_unpackhi_pd(first, second);
    all += _mm512_shuffle_f32x4(all, all, 0x4e);  // the halves exchanged
    all += _mm512_shuffle_f32x4(all, all, 0xb1);  // the quarters of each half
    _mm_storeu_ps(total, _mm512_castps512_ps128(all));
    return;
  }
#endif
  for (int i = 0; i < TOGETHER; ++i) total[i] = sum_of<T, SIMD_BYTES>(reinterpret_cast<const T*>(&x[i]));
}

// tile[lane] = (or +=) x . y[lane] over BLOCK registers, those of x in of_key, for the first COUNT lanes of the mask,
// which are taken out of it.
template <class T, int COUNT, int BLOCK>
[[gnu::always_inline]] inline void dots_of_lanes(std::uint64_t& mask, const typename Lanes<T>::Vec (&of_key)[BLOCK],
                                                 const T* y, std::int64_t pitch, T* tile, bool accumulate) {
  typename Lanes<T>::Vec sum[TOGETHER] = {};
  int lane[COUNT];
  const T* line[COUNT];
#pragma GCC unroll 4
  for (int i = 0; i < COUNT; ++i, mask &= mask - 1) {
    lane[i] = __builtin_ctzll(mask);
    line[i] = y + lane[i] * pitch;
  }
#pragma GCC unroll 16
  for (int v = 0; v < BLOCK; ++v) {
#pragma GCC unroll 4
    for (int i = 0; i < COUNT; ++i) sum[i] += of_key[v] * load(line[i] + v * Lanes<T>::COUNT);
  }
  T total[TOGETHER];
  sums_of<T>(sum, total);
  for (int i = 0; i < COUNT; ++i) tile[lane[i]] = accumulate ? tile[lane[i]] + total[i] : total[i];
}

// `dots` over BLOCK registers, which are loaded once for all lanes of a key; the last one has `last` elements.
template <class T, int BLOCK>
void dots_block(const std::uint64_t* masks, std::int64_t keys, const T* x, std::int64_t pitch_x, const T* y,
                std::int64_t pitch_y, std::int64_t last, T* tile, bool accumulate) {
  using Vec = typename Lanes<T>::Vec;
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  for (std::int64_t j = 0; j < keys; ++j, x += pitch_x, tile += LANES) {
    std::uint64_t mask = masks[j];
    int left = __builtin_popcountll(mask);
    if (left == 0) continue;
    Vec of_key[BLOCK];
#pragma GCC unroll 16
    for (int v = 0; v + 1 < BLOCK; ++v) of_key[v] = load(x + v * COUNT);
    if (last == COUNT) {
      of_key[BLOCK - 1] = load(x + (BLOCK - 1) * COUNT);
    } else {
      T some[COUNT] = {};
      for (std::int64_t d = 0; d < last; ++d) some[d] = x[(BLOCK - 1) * COUNT + d];
      of_key[BLOCK - 1] = load(some);
    }
    for (; left >= TOGETHER; left -= TOGETHER) {
      dots_of_lanes<T, TOGETHER, BLOCK>(mask, of_key, y, pitch_y, tile, accumulate);
    }
    if (left == 3) dots_of_lanes<T, 3, BLOCK>(mask, of_key, y, pitch_y, tile, accumulate);
    if (left == 2) dots_of_lanes<T, 2, BLOCK>(mask, of_key, y, pitch_y, tile, accumulate);
    if (left == 1) dots_of_lanes<T, 1, BLOCK>(mask, of_key, y, pitch_y, tile, accumulate);
  }
}

// tile[key][lane] = x[key] . y[lane] for the lanes of masks[key].
template <class T>
void dots(const std::uint64_t* masks, std::int64_t keys, const T* x, std::int64_t pitch_x, const T* y,
          std::int64_t pitch_y, std::int64_t width, T* tile) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  constexpr int WIDEST = SIMD_BYTES == 64 ? 16 : 8;  // as many registers as there are beside those of the sums
  constexpr decltype(&dots_block<T, 1>) NARROW[] = {dots_block<T, 1>, dots_block<T, 2>, dots_block<T, 3>,
                                                    dots_block<T, 4>, dots_block<T, 5>, dots_block<T, 6>,
                                                    dots_block<T, 7>, dots_block<T, 8>};
  std::int64_t left = width > 0 ? (width + COUNT - 1) / COUNT : 1;  // registers
  const std::int64_t last = width - (left - 1) * COUNT;
  for (bool first = true; left > 0; first = false) {
    const std::int64_t block = left >= WIDEST ? WIDEST : left < 8 ? left : 8;
    const auto run = block == WIDEST ? dots_block<T, WIDEST> : NARROW[block - 1];
    left -= block;
    run(masks, keys, x, pitch_x, y, pitch_y, left > 0 ? COUNT : last, tile, !first);
    x += block * COUNT, y += block * COUNT;
  }
}

}  // namespace SIMD_NAMESPACE
