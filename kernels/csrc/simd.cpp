#include "simd.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace glomo {
namespace {

#define SIMD_NAMESPACE portable
#define SIMD_BYTES 16
#if defined(__aarch64__)
#define SIMD_ROWS 6  // it has 32 registers, of which 24 hold sums, enough for four pipelines
#else
#define SIMD_ROWS 3
#endif
#define SIMD_VECTORS 4
#include "simd.inl"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt")
#endif
#define SIMD_NAMESPACE avx2
#define SIMD_BYTES 32
#define SIMD_ROWS 6
#define SIMD_VECTORS 2
#include "simd.inl"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,fma,popcnt"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,fma,popcnt")
#endif
#define SIMD_NAMESPACE avx512
#define SIMD_BYTES 64
#define SIMD_ROWS 13
#define SIMD_VECTORS 2
#include "simd.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

template <class T>
Simd<T> choose() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && allowed("avx512")) return avx512::table<T>("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && allowed("avx2")) {
    return avx2::table<T>("avx2");
  }
  return portable::table<T>("portable");
}

#else

template <class T>
Simd<T> choose() {
  return portable::table<T>("portable");
}

#endif

}  // namespace

// The environment may name a lesser instruction set than the best, to try the loops for other machines.
bool allowed(const char* name) {
  static const std::vector<std::string> all = {"portable",    "avx2",        "avx_vnni", "avx512",
                                               "avx512_vnni", "avx512_bf16", "amx"};
  const char* most = std::getenv("GLOMO_SIMD");
  if (most == nullptr || *most == '\0') return true;
  return std::find(all.begin(), all.end(), name) <= std::find(all.begin(), all.end(), most);
}

#if defined(__x86_64__)
bool has_feature(unsigned part, int word, int bit) {
  unsigned words[4] = {};
  return __get_cpuid_count(7, part, &words[0], &words[1], &words[2], &words[3]) && (words[word] >> bit & 1) != 0;
}
#endif

template <class T>
const Simd<T>& simd() {
  static const Simd<T> chosen = choose<T>();
  return chosen;
}

template const Simd<float>& simd<float>();
template const Simd<double>& simd<double>();

}  // namespace glomo
