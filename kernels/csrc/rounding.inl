// Between float, bfloat16 and the layouts that products of bfloat16 take (bfloat16.h). Included by bfloat16.cpp, for
// processors with AVX512_BF16.

#define VECTOR_BYTES 64
#include "vectors.inl"
#undef VECTOR_BYTES

typedef Half Halves __attribute__((vector_size(2 * COUNT)));

inline Halves rounded(__m512 x) { return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(x)); }
inline __m512 widened(Halves x) { return reinterpret_cast<__m512>(__builtin_convertvector(x, Words) << 16); }

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
      total += widened(half);
      any |= _mm512_cmp_ps_mask(square, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      return half;
    });
    _mm512_storeu_ps(sum + lane, _mm512_loadu_ps(sum + lane) + total);
    found |= static_cast<std::uint64_t>(any) << lane;
  }
  return found;
}

void round_rows(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Half* out,
                std::int64_t lda, Rounded* of) {
  const std::int64_t filled = (columns + PANEL - 1) / PANEL * PANEL;
  for (std::int64_t r = 0; r < half_rows(rows); ++r, x += stride, out += lda) {
    if (r >= rows) {
      std::fill_n(out, half_depth(columns), Half{0});
      continue;
    }
    Floats squares = {}, errors = {};
    each(x, columns, [&](std::int64_t n, Floats some) {
      const Halves half = rounded(some);
      std::memcpy(out + n, &half, sizeof(half));
      const Floats error = some - widened(half);
      squares += some * some;
      errors += error * error;
    });
    std::fill_n(out + filled, half_depth(columns) - filled, Half{0});
    if (!of) continue;
    of->norm[r] = std::sqrt(total<float>(squares)) + TINY;
    of->off[r] = std::sqrt(total<float>(errors)) + LOST;
  }
  if (of) of->find_worst(rows);
}

void round_scaled(const float* x, std::int64_t n, float scale, Half* out) {
  for (std::int64_t i = 0; i < n; i += PANEL) {
    const Halves half = rounded(_mm512_loadu_ps(x + i) * scale);
    std::memcpy(out + i, &half, sizeof(half));
  }
}
