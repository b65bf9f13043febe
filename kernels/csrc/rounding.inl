// Between float, bfloat16 and the layouts that products of bfloat16 take (bfloat16.h). Included by bfloat16.cpp, for
// processors with AVX512_BF16.

typedef std::uint32_t Words __attribute__((vector_size(64)));
typedef Half Halves __attribute__((vector_size(32)));

template <class V, class T>
inline V load(const T* at) {
  V x;
  std::memcpy(&x, at, sizeof(x));
  return x;
}

inline Halves rounded(__m512 x) { return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(x)); }

// Panels of words: row(r, n) are 16 numbers of row r from column n on.
template <class Row>
inline void panels_of(std::int64_t rows, std::int64_t columns, Word* out, std::int64_t panel, const Row& row) {
  for (std::int64_t n = 0; n < columns; n += PANEL, out += panel) {
    Word* word = out;
    for (std::int64_t r = 0; r < half_depth(rows); r += 2, word += PANEL) {
      Words pair = {};
      if (r < rows) pair = __builtin_convertvector(row(r, n), Words);
      if (r + 1 < rows) pair |= __builtin_convertvector(row(r + 1, n), Words) << 16;
      std::memcpy(word, &pair, sizeof(pair));
    }
  }
}

void pair_rows(const Half* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Word* out,
               std::int64_t panel) {
  panels_of(rows, columns, out, panel,
            [&](std::int64_t r, std::int64_t n) { return load<Halves>(x + r * stride + n); });
}

void round_pairs(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Word* out,
                 std::int64_t panel) {
  panels_of(rows, columns, out, panel,
            [&](std::int64_t r, std::int64_t n) { return rounded(_mm512_loadu_ps(x + r * stride + n)); });
}

std::uint64_t square_pairs(const float* roots, std::int64_t rows, std::int64_t columns, Word* out, std::int64_t panel,
                           float* sum) {
  std::uint64_t found = 0;
  for (std::int64_t lane = 0; lane < columns; lane += PANEL, out += panel) {
    __m512 total = _mm512_setzero_ps();
    __mmask16 any = 0;
    panels_of(rows, PANEL, out, panel, [&](std::int64_t r, std::int64_t) {
      const __m512 root = _mm512_loadu_ps(roots + r * LANES + lane), square = root * root;
      const Halves half = rounded(square);
      total += reinterpret_cast<__m512>(__builtin_convertvector(half, Words) << 16);
      any |= _mm512_cmp_ps_mask(square, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      return half;
    });
    _mm512_storeu_ps(sum + lane, _mm512_loadu_ps(sum + lane) + total);
    found |= static_cast<std::uint64_t>(any) << lane;
  }
  return found;
}

// Added to lengths: more than what is lost where squares, or products later, are too small for float.
constexpr float TINY = 1e-15f;

void round_rows(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Half* out,
                std::int64_t lda, float* norms) {
  for (std::int64_t r = 0; r < half_rows(rows); ++r) {
    const std::int64_t used = r < rows ? columns : 0;
    __m512 squares = _mm512_setzero_ps();
    const auto put = [&](std::int64_t n, __m512 some) {
      const Halves half = rounded(some);
      std::memcpy(out + r * lda + n, &half, sizeof(half));
      squares = _mm512_fmadd_ps(some, some, squares);
    };
    std::int64_t n = 0;
    for (; n + PANEL <= used; n += PANEL) put(n, _mm512_loadu_ps(x + r * stride + n));
    if (n < used) {
      const auto mask = static_cast<__mmask16>((1U << (used - n)) - 1);
      put(n, _mm512_maskz_loadu_ps(mask, x + r * stride + n));
      n += PANEL;
    }
    for (; n < half_depth(columns); n += PANEL) put(n, _mm512_setzero_ps());
    if (norms && r < rows) norms[r] = std::sqrt(_mm512_reduce_add_ps(squares)) + TINY;
  }
}

void round_scaled(const float* x, std::int64_t n, float scale, Half* out) {
  for (std::int64_t i = 0; i < n; i += PANEL) {
    const Halves half = rounded(_mm512_loadu_ps(x + i) * scale);
    std::memcpy(out + i, &half, sizeof(half));
  }
}
