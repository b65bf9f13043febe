// Products over the elements of a tile that are not 0, in the place of `multiply` where they are few. A tile is
// [keys][LANES]; which of its elements are meant is a word of 64 bits per key, or, turned, per lane. Included by
// simd.inl.

namespace SIMD_NAMESPACE {

// Bit i: whether x[i] is not 0 (NaN is not), for the elements of one register.
template <class T>
inline std::uint64_t nonzero_bits(const T* x) {
#if defined(__x86_64__) && SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_setzero_ps(), _CMP_NEQ_UQ);
  else return _mm512_cmp_pd_mask(_mm512_loadu_pd(x), _mm512_setzero_pd(), _CMP_NEQ_UQ);
#elif defined(__x86_64__) && SIMD_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_setzero_ps(), _CMP_NEQ_UQ)));
  } else {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(x), _mm256_setzero_pd(), _CMP_NEQ_UQ)));
  }
#else
  std::uint64_t bits = 0;
  for (int i = 0; i < Lanes<T>::COUNT; ++i) bits |= static_cast<std::uint64_t>(x[i] != T(0)) << i;
  return bits;
#endif
}

// masks[key] has the lanes of the key's elements that are not 0.
template <class T>
void nonzero(const T* tile, std::int64_t keys, std::int64_t lanes, std::uint64_t* masks) {
  for (std::int64_t j = 0; j < keys; ++j) {
    std::uint64_t mask = 0;
    for (std::int64_t i = 0; i < lanes; i += Lanes<T>::COUNT) mask |= nonzero_bits(tile + j * LANES + i) << i;
    masks[j] = mask;
  }
}

// c[0 .. BLOCK registers) += sum over the bits n of mask: a[n * step] * x[n * pitch + ...].
template <class T, int BLOCK>
inline void gather_block(std::uint64_t mask, const T* a, std::int64_t step, const T* x, std::int64_t pitch, T* c) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  typename Lanes<T>::Vec sum[BLOCK];
#pragma GCC unroll 16
  for (int v = 0; v < BLOCK; ++v) sum[v] = load(c + v * COUNT);
  for (; mask; mask &= mask - 1) {
    const int n = __builtin_ctzll(mask);
    const T factor = a[n * step];
    const T* line = x + n * pitch;
#pragma GCC unroll 16
    for (int v = 0; v < BLOCK; ++v) sum[v] += factor * load(line + v * COUNT);
  }
#pragma GCC unroll 16
  for (int v = 0; v < BLOCK; ++v) store(c + v * COUNT, sum[v]);
}

// c[r][0 .. width) += sum over the bits n of masks[r]: a(r, n) x[n][0 .. width), a(r, n) at a[r * row + n * step].
template <class T>
void gather(const std::uint64_t* masks, std::int64_t rows, const T* a, std::int64_t row, std::int64_t step, const T* x,
            std::int64_t pitch, std::int64_t width, T* c, std::int64_t ldc) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  constexpr int MOST = SIMD_BYTES == 64 ? 16 : 8;  // registers that leave some for the rest
  for (std::int64_t r = 0; r < rows; ++r) {
    if (!masks[r]) continue;
    const T* of = a + r * row;
    T* out = c + r * ldc;
    std::int64_t d = 0;
    for (; d + MOST * COUNT <= width; d += MOST * COUNT) gather_block<T, MOST>(masks[r], of, step, x + d, pitch, out + d);
    for (; d + 4 * COUNT <= width; d += 4 * COUNT) gather_block<T, 4>(masks[r], of, step, x + d, pitch, out + d);
    for (; d + COUNT <= width; d += COUNT) gather_block<T, 1>(masks[r], of, step, x + d, pitch, out + d);
    for (; d < width; ++d) {
      T sum = out[d];
      for (std::uint64_t mask = masks[r]; mask; mask &= mask - 1) {
        const int n = __builtin_ctzll(mask);
        sum += of[n * step] * x[n * pitch + d];
      }
      out[d] = sum;
    }
  }
}

// The sum of a register's elements, by halves.
template <class T>
inline T sum_of(const typename Lanes<T>::Vec& x) {
  T parts[Lanes<T>::COUNT];
  store(parts, x);
  for (std::int64_t half = Lanes<T>::COUNT / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
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
  T total = sum_of<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; d < width; ++d) total += x[d] * y[d];
  return total;
}

// tile[key][lane] = x[key] . y[lane] for the lanes of masks[key], and 0 for the others.
template <class T>
void dots(const std::uint64_t* masks, std::int64_t keys, const T* x, std::int64_t pitch_x, const T* y,
          std::int64_t pitch_y, std::int64_t width, T* tile) {
  for (std::int64_t j = 0; j < keys; ++j) {
    T* out = tile + j * LANES;
    for (std::int64_t i = 0; i < LANES; ++i) out[i] = T(0);
    for (std::uint64_t mask = masks[j]; mask; mask &= mask - 1) {
      const int i = __builtin_ctzll(mask);
      out[i] = dot(x + j * pitch_x, y + i * pitch_y, width);
    }
  }
}

}  // namespace SIMD_NAMESPACE
