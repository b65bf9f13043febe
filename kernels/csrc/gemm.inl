// Small dense products of all operators, with one operand in registers. Included by simd.inl.

namespace SIMD_NAMESPACE {

// Columns of a block that is held in registers.
template <class T>
constexpr std::int64_t WIDE = SIMD_VECTORS * Lanes<T>::COUNT;

// c[r][n] = (or +=) sum_k a(r, k) * b[k][n] for the n of VECTORS registers, with a(r, k) at a[r * lda + k], or, if
// ACROSS, at a[k * lda + r].
template <class T, int ROWS, int VECTORS, bool ACROSS>
inline void product_block(std::int64_t depth, const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T* c,
                          std::int64_t ldc, bool accumulate) {
  using Vec = typename Lanes<T>::Vec;
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  const std::int64_t parts = parts_of(depth);
  for (std::int64_t part = 0; part < parts; ++part) {
    Vec sum[ROWS][VECTORS] = {};
    for (std::int64_t k = depth * part / parts; k < depth * (part + 1) / parts; ++k) {
      const T* line = b + k * ldb;
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const T factor = ACROSS ? a[k * lda + r] : a[r * lda + k];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[r][v] += factor * load(line + v * COUNT);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      T* out = c + r * ldc;
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v, out += COUNT) {
        store(out, accumulate || part > 0 ? load(out) + sum[r][v] : sum[r][v]);
      }
    }
  }
}

// The block for `rows` <= ROWS.
template <class T, int ROWS, int VECTORS, bool ACROSS>
inline void product_strip(std::int64_t rows, std::int64_t depth, const T* a, std::int64_t lda, const T* b,
                          std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      return product_strip<T, ROWS - 1, VECTORS, ACROSS>(rows, depth, a, lda, b, ldb, c, ldc, accumulate);
    }
  }
  product_block<T, ROWS, VECTORS, ACROSS>(depth, a, lda, b, ldb, c, ldc, accumulate);
}

// Rows are cut into strips of nearly the same height: a low one would leave the arithmetic waiting for itself.
template <class T, int VECTORS, bool ACROSS>
void product_panel(std::int64_t rows, std::int64_t depth, const T* a, std::int64_t lda, const T* b,
                   std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate) {
  const std::int64_t strips = (rows + SIMD_ROWS - 1) / SIMD_ROWS;
  std::int64_t r = 0;
  for (std::int64_t strip = 0; strip < strips; ++strip) {
    const std::int64_t height = rows / strips + (strip < rows % strips);
    product_strip<T, SIMD_ROWS, VECTORS, ACROSS>(height, depth, ACROSS ? a + r : a + r * lda, lda, b, ldb,
                                                 c + r * ldc, ldc, accumulate);
    r += height;
  }
}

template <class T, bool ACROSS>
void product(std::int64_t rows, std::int64_t columns, std::int64_t depth, const T* a, std::int64_t lda,
             const T* b, std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate) {
  constexpr int FEW = static_cast<int>(LINE<T> / Lanes<T>::COUNT);
  std::int64_t n = 0;
  for (; n + WIDE<T> <= columns; n += WIDE<T>) {
    product_panel<T, SIMD_VECTORS, ACROSS>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate);
  }
  for (; n + LINE<T> <= columns; n += LINE<T>) {
    product_panel<T, FEW, ACROSS>(rows, depth, a, lda, b + n, ldb, c + n, ldc, accumulate);
  }
  if (n == columns) return;
  constexpr std::int64_t STRIP = 16;  // rows of the last, partial panel that are computed aside at once
  T aside[STRIP * LINE<T>];
  for (std::int64_t r = 0; r < rows; r += STRIP) {
    const std::int64_t count = rows - r < STRIP ? rows - r : STRIP;
    product_panel<T, FEW, ACROSS>(count, depth, ACROSS ? a + r : a + r * lda, lda, b + n, ldb, aside, LINE<T>, false);
    for (std::int64_t i = 0; i < count; ++i) {
      T* out = c + (r + i) * ldc + n;
      for (std::int64_t j = 0; j < columns - n; ++j) {
        out[j] = accumulate ? out[j] + aside[i * LINE<T> + j] : aside[i * LINE<T> + j];
      }
    }
  }
}

template <class T>
void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, const T* a, std::int64_t lda,
              bool across, const T* b, std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate) {
  const auto run = across ? product<T, true> : product<T, false>;
  run(rows, columns, depth, a, lda, b, ldb, c, ldc, accumulate);
}

#if defined(__x86_64__) && SIMD_BYTES == 64
// 16 rows of 16 at once: rows are interleaved by twos, these by twos again, and then the quarters of the registers,
// each of which has four elements of one column, come together.
inline void transpose_square(const float* x, std::int64_t stride, float* out, std::int64_t ld) {
  typedef float Row __attribute__((vector_size(64)));
  Row a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = load(x + i * stride);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d low = (__m512d)b[i + j], high = (__m512d)b[i + j + 2];
      a[i + 2 * j] = (Row)_mm512_unpacklo_pd(low, high), a[i + 2 * j + 1] = (Row)_mm512_unpackhi_pd(low, high);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // a[4 i + j]: of rows 4 i to 4 i + 3, columns j, 4 + j, 8 + j and 12 + j
    b[j] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88);
    b[j + 4] = _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd);
    b[j + 8] = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0x88);
    b[j + 12] = _mm512_shuffle_f32x4(a[j + 8], a[j + 12], 0xdd);
    store(out + j * ld, (Row)_mm512_shuffle_f32x4(b[j], b[j + 8], 0x88));
    store(out + (j + 8) * ld, (Row)_mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd));
    store(out + (j + 4) * ld, (Row)_mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0x88));
    store(out + (j + 12) * ld, (Row)_mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0xdd));
  }
}
#endif

// out[d * ld + i] = x[i * stride + d] for i < rows, d < width.
template <class T>
void transpose(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t width, T* out, std::int64_t ld) {
  std::int64_t i = 0;
#if defined(__x86_64__) && SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    for (; i + 16 <= rows && width % 16 == 0; i += 16) {
      for (std::int64_t d = 0; d < width; d += 16) transpose_square(x + i * stride + d, stride, out + d * ld + i, ld);
    }
  }
#endif
#if defined(__clang__) || __GNUC__ >= 12
  if constexpr (sizeof(T) == 4) {
    typedef T Four __attribute__((vector_size(16), aligned(4), may_alias));  // no reference to it is made
    for (; i + 4 <= rows; i += 4) {
      std::int64_t d = 0;
      for (; d + 4 <= width; d += 4) {
        const T* at = x + i * stride + d;
        const Four r0 = *reinterpret_cast<const Four*>(at), r1 = *reinterpret_cast<const Four*>(at + stride);
        const Four r2 = *reinterpret_cast<const Four*>(at + 2 * stride);
        const Four r3 = *reinterpret_cast<const Four*>(at + 3 * stride);
        const Four a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), b = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
        const Four c = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), e = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
        T* to = out + d * ld + i;
        *reinterpret_cast<Four*>(to) = __builtin_shufflevector(a, c, 0, 1, 4, 5);
        *reinterpret_cast<Four*>(to + ld) = __builtin_shufflevector(a, c, 2, 3, 6, 7);
        *reinterpret_cast<Four*>(to + 2 * ld) = __builtin_shufflevector(b, e, 0, 1, 4, 5);
        *reinterpret_cast<Four*>(to + 3 * ld) = __builtin_shufflevector(b, e, 2, 3, 6, 7);
      }
      for (; d < width; ++d) {
        for (std::int64_t r = i; r < i + 4; ++r) out[d * ld + r] = x[r * stride + d];
      }
    }
  }
#endif
  for (; i < rows; ++i) {
    for (std::int64_t d = 0; d < width; ++d) out[d * ld + i] = x[i * stride + d];
  }
}

}  // namespace SIMD_NAMESPACE
