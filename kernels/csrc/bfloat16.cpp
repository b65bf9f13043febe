#include "bfloat16.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define GLOMO_BFLOAT16
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace glomo {

#if defined(GLOMO_BFLOAT16)
namespace {

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bf16")
#endif

#include "rounding.inl"

namespace vectors {

void enter(void*) {}
void leave(const void*) {}

template <int ROWS, int PANELS>
inline void block(std::int64_t depth, const Half* a, std::int64_t lda, const Word* b, std::int64_t panel, float* c,
                  std::int64_t ldc, bool accumulate) {
  __m512 sum[ROWS][PANELS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) {
      sum[r][p] = accumulate ? _mm512_loadu_ps(c + r * ldc + p * PANEL) : _mm512_setzero_ps();
    }
  }
  for (std::int64_t k = 0; k < depth; k += 2, b += PANEL) {
    __m512bh words[PANELS];
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) words[p] = reinterpret_cast<__m512bh>(load<Words>(b + p * panel));
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      Word two;
      std::memcpy(&two, a + r * lda + k, sizeof(two));
      const __m512bh factor = reinterpret_cast<__m512bh>(Words{} + two);
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], factor, words[p]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) _mm512_storeu_ps(c + r * ldc + p * PANEL, sum[r][p]);
  }
}

template <int PANELS>
inline void strip(std::int64_t rows, std::int64_t depth, const Half* a, std::int64_t lda, const Word* b,
                  std::int64_t panel, float* c, std::int64_t ldc, bool accumulate) {
  constexpr int ROWS = 8;  // two in HALF_ROWS
  for (std::int64_t r = 0; r < rows; r += ROWS) {
    block<ROWS, PANELS>(depth, a + r * lda, lda, b, panel, c + r * ldc, ldc, accumulate);
  }
}

void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, const Half* a, std::int64_t lda,
              const Word* b, std::int64_t panel, float* c, std::int64_t ldc, bool accumulate) {
  for (std::int64_t n = 0; n < columns; n += 2 * PANEL, b += 2 * panel, c += 2 * PANEL) {
    const auto run = n + PANEL < columns ? strip<2> : strip<1>;
    run(rows, depth, a, lda, b, panel, c, ldc, accumulate);
  }
}

}  // namespace vectors

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,amx-tile,amx-bf16")
#endif

namespace tiles {

// The compiler does not know that tiles are loaded from memory.
inline void written() { __asm__ volatile("" ::: "memory"); }

void enter(void* state) {
  struct alignas(64) Shape {
    std::uint8_t palette = 1, start = 0, unused[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Shape wanted;  // not on the stack: gcc is not told that more than its first bytes are read
  _tile_storeconfig(state);
  written();
  _tile_loadconfig(&wanted);
}

// PyTorch's library looks whether the tiles are still as it has left them.
void leave(const void* state) {
  if (*static_cast<const std::uint8_t*>(state) == 0) {
    _tile_release();
  } else {
    _tile_loadconfig(state);
  }
}

// c [16 ROWS][16 PANELS], in tiles 0 to 3; a in 4 and 5, b in 6 and 7: as many as there are.
template <int ROWS, int PANELS>
inline void block(std::int64_t depth, const Half* a, std::int64_t lda, const Word* b, std::int64_t panel, float* c,
                  std::int64_t ldc, bool accumulate) {
  constexpr std::int64_t LINE_BYTES = PANEL * sizeof(Word);
  const std::int64_t a_bytes = lda * static_cast<std::int64_t>(sizeof(Half));
  const std::int64_t c_bytes = ldc * static_cast<std::int64_t>(sizeof(float));
  float* lower = c + HALF_ROWS * ldc;
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    if (PANELS > 1) _tile_loadd(1, c + PANEL, c_bytes);
    if (ROWS > 1) _tile_loadd(2, lower, c_bytes);
    if (ROWS > 1 && PANELS > 1) _tile_loadd(3, lower + PANEL, c_bytes);
  } else {
    _tile_zero(0);
    if (PANELS > 1) _tile_zero(1);
    if (ROWS > 1) _tile_zero(2);
    if (ROWS > 1 && PANELS > 1) _tile_zero(3);
  }
  for (std::int64_t k = 0; k < depth; k += HALF_DEPTH, a += HALF_DEPTH, b += HALF_DEPTH / 2 * PANEL) {
    _tile_loadd(6, b, LINE_BYTES);
    _tile_loadd(4, a, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (PANELS > 1) {
      _tile_loadd(7, b + panel, LINE_BYTES);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (ROWS > 1) {
      _tile_loadd(5, a + HALF_ROWS * lda, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (PANELS > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  if (PANELS > 1) _tile_stored(1, c + PANEL, c_bytes);
  if (ROWS > 1) _tile_stored(2, lower, c_bytes);
  if (ROWS > 1 && PANELS > 1) _tile_stored(3, lower + PANEL, c_bytes);
}

template <int ROWS>
inline void strip(std::int64_t columns, std::int64_t depth, const Half* a, std::int64_t lda, const Word* b,
                  std::int64_t panel, float* c, std::int64_t ldc, bool accumulate) {
  std::int64_t n = 0;
  for (; n + PANEL < columns; n += 2 * PANEL, b += 2 * panel) {
    block<ROWS, 2>(depth, a, lda, b, panel, c + n, ldc, accumulate);
  }
  if (n < columns) block<ROWS, 1>(depth, a, lda, b, panel, c + n, ldc, accumulate);
}

void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, const Half* a, std::int64_t lda,
              const Word* b, std::int64_t panel, float* c, std::int64_t ldc, bool accumulate) {
  written();
  std::int64_t r = 0;
  for (; r + HALF_ROWS < rows; r += 2 * HALF_ROWS) {
    strip<2>(columns, depth, a + r * lda, lda, b, panel, c + r * ldc, ldc, accumulate);
  }
  if (r < rows) strip<1>(columns, depth, a + r * lda, lda, b, panel, c + r * ldc, ldc, accumulate);
}

// Linux lends the tiles to processes that ask for them.
bool granted() {
  constexpr long ASK = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, ASK, TILES) == 0;
}

}  // namespace tiles

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const Bfloat16* choose() {
  static const Bfloat16 amx = {"amx",     true,        tiles::enter, tiles::leave, tiles::multiply,
                               pair_rows, round_pairs, square_pairs, round_rows,   round_scaled};
  static const Bfloat16 avx512 = {"avx512_bf16", false,       vectors::enter, vectors::leave, vectors::multiply,
                                  pair_rows,     round_pairs, square_pairs,   round_rows,     round_scaled};
  constexpr int EAX = 0, EDX = 3;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !has_feature(1, EAX, 5)) return nullptr;
  const bool tiles = has_feature(0, EDX, 22) && has_feature(0, EDX, 24);
  if (tiles && allowed(amx.name) && tiles::granted()) return &amx;
  if (!allowed(avx512.name)) return nullptr;
  // AMD's processors make twice as many products of these as of floats (measured on Zen 4), Intel's no more: there only
  // where GLOMO_SIMD asks for no more.
  return __builtin_cpu_is("amd") || !allowed(amx.name) ? &avx512 : nullptr;
}

}  // namespace
#endif

const Bfloat16* bfloat16() {
#if defined(GLOMO_BFLOAT16)
  static const Bfloat16* const chosen = choose();
  return chosen;
#else
  return nullptr;
#endif
}

}  // namespace glomo
