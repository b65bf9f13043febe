#include "bytes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace glomo {

#if defined(__x86_64__)
namespace {

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vnni")
#endif

#include "vectors.inl"

typedef std::int8_t Chars __attribute__((vector_size(PANEL)));

void round_rows(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Word* out,
                std::int64_t pitch, Rounded* of) {
  for (std::int64_t r = 0; r < rows; ++r, x += stride, out += pitch) {
    Floats most = {};
    each(x, columns, [&](std::int64_t, Floats some) {
      some = some < 0 ? -some : some;
      most = some > most ? some : most;  // NaN is not
    });
    const float largest = folded<float>(most, [](auto a, auto b) { return a > b ? a : b; });
    const float scale = largest / 127, inverse = largest > 1e-30f ? 127 / largest : 0;
    Floats squares = {}, errors = {};
    Words sum = {};  // of numbers that are not finite it may leave its range
    each(x, columns, [&](std::int64_t n, Floats some) {
      const Floats half = (some < 0 ? Floats{} - 1 : Floats{} + 1) / 2;
      const Ints whole = __builtin_convertvector(some * inverse + half, Ints);
      const Chars bytes = __builtin_convertvector(whole, Chars);
      std::memcpy(reinterpret_cast<char*>(out) + n, &bytes, sizeof(bytes));
      const Floats error = some - __builtin_convertvector(whole, Floats) * scale;
      squares += some * some;
      errors += error * error;
      sum += reinterpret_cast<Words>(whole);
    });
    of->norm[r] = std::sqrt(total<float>(squares)) + TINY;
    of->off[r] = std::sqrt(total<float>(errors)) + LOST;
    of->scale[r] = scale;
    of->sum[r] = total<Word>(sum);
  }
  of->find_worst(rows);
}

// Numbers of b are 128 too great: 128 times the sum of a's comes off.
template <int ROWS, int PANELS>
inline void block(std::int64_t words, const Word* a, std::int64_t pitch, const float* scale_a, const Word* sum,
                  const Word* b, const float* scale_b, float* c) {
  Ints sums[ROWS][PANELS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) sums[r][p] = reinterpret_cast<Ints>(Words{} - 128 * sum[r]);
  }
  for (std::int64_t k = 0; k < words; ++k, b += PANEL) {
    __m512i column[PANELS];
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) column[p] = load<__m512i>(b + p * words * PANEL);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const auto four = reinterpret_cast<__m512i>(Ints{} + static_cast<std::int32_t>(a[r * pitch + k]));
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; ++p) {
        const auto before = reinterpret_cast<__m512i>(sums[r][p]);
        sums[r][p] = reinterpret_cast<Ints>(_mm512_dpbusd_epi32(before, column[p], four));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) {
      // Not by the product of the scales, which may be too small for float where the score is not.
      const Floats score = __builtin_convertvector(sums[r][p], Floats) * scale_a[r] * load<Floats>(scale_b + p * PANEL);
      std::memcpy(c + r * LANES + p * PANEL, &score, sizeof(score));
    }
  }
}

template <int PANELS>
inline void strip(std::int64_t rows, std::int64_t words, const Word* a, std::int64_t pitch, const Rounded& of_a,
                  const Word* b, const float* scale_b, float* c) {
  std::int64_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    block<8, PANELS>(words, a + r * pitch, pitch, of_a.scale + r, of_a.sum + r, b, scale_b, c + r * LANES);
  }
  for (; r < rows; ++r) {
    block<1, PANELS>(words, a + r * pitch, pitch, of_a.scale + r, of_a.sum + r, b, scale_b, c + r * LANES);
  }
}

void multiply(std::int64_t rows, std::int64_t columns, std::int64_t words, const Word* a, std::int64_t pitch,
              const Rounded& of_a, const Word* b, const Rounded& of_b, float* c) {
  for (std::int64_t n = 0; n < columns; n += 2 * PANEL) {
    const auto run = n + PANEL < columns ? strip<2> : strip<1>;
    run(rows, words, a, pitch, of_a, b + n * words, of_b.scale + n, c + n);
  }
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const Bytes* choose() {
  static const Bytes vnni = {"avx512_vnni", round_rows, multiply};
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni") && allowed(vnni.name) ? &vnni
                                                                                                         : nullptr;
}

}  // namespace
#endif

const Bytes* bytes() {
#if defined(__x86_64__)
  static const Bytes* const chosen = choose();
  return chosen;
#else
  return nullptr;
#endif
}

}  // namespace glomo
