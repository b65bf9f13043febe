#include "bytes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define GLOMO_BYTES
#include <immintrin.h>
#endif

namespace glomo {

#if defined(GLOMO_BYTES)
namespace {

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vnni")
#endif
#define BYTES_NAMESPACE wide
#define VECTOR_BYTES 64
#define BYTES_REGISTER __m512i
#define BYTES_ROWS 8
#define BYTES_DOT _mm512_dpbusd_epi32
#include "bytes.inl"

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avxvnni")
#endif
#define BYTES_NAMESPACE narrow
#define VECTOR_BYTES 32
#define BYTES_REGISTER __m256i
#define BYTES_ROWS 4
#define BYTES_DOT _mm256_dpbusd_avx_epi32
#include "bytes.inl"

// The same with the instruction as AVX-512 writes it, to try the loops for other machines.
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512vl,avx512vnni")
#endif
#define BYTES_NAMESPACE narrow_in_wide
#define VECTOR_BYTES 32
#define BYTES_REGISTER __m256i
#define BYTES_ROWS 4
#define BYTES_DOT _mm256_dpbusd_epi32
#include "bytes.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// Of the width of float's loops.
const Bytes* choose() {
  static const Bytes avx512 = {"avx512_vnni", wide::round_rows, wide::multiply};
  static const Bytes avx = {"avx_vnni", narrow::round_rows, narrow::multiply};
  static const Bytes tried = {"avx_vnni", narrow_in_wide::round_rows, narrow_in_wide::multiply};
  constexpr int EAX = 0;
  __builtin_cpu_init();
  const bool vnni = __builtin_cpu_supports("avx512vnni");
  if (__builtin_cpu_supports("avx512f") && allowed("avx512")) return vnni && allowed(avx512.name) ? &avx512 : nullptr;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !allowed(avx.name)) return nullptr;
  if (has_feature(1, EAX, 4)) return &avx;
  return vnni && __builtin_cpu_supports("avx512vl") ? &tried : nullptr;
}

}  // namespace
#endif

const Bytes* bytes() {
#if defined(GLOMO_BYTES)
  static const Bytes* const chosen = choose();
  return chosen;
#else
  return nullptr;
#endif
}

}  // namespace glomo
