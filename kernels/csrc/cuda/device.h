// What all CUDA kernels share: element types, warp helpers, asynchronous copies, matrix instructions, launches.
// Compiled with -fmad=false: products and sums are fused where fma() is written and nowhere else, so that two
// kernels that compute the same score compute the same bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels.h"

#ifndef __CUDACC__
#include "emulated.h"  // tests/kernels/emulator: the same code on a CPU
#endif

namespace glomo::cuda {

constexpr unsigned ALL = 0xffffffffu;  // all lanes of a warp take part in every exchange
constexpr int LANES = 32, WARPS = 8, THREADS = LANES * WARPS;
constexpr double EPSILON = 1e-16;  // glomo_kernels/scores.py

template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
constexpr bool IS_HALF = sizeof(T) == 2;

__device__ inline float up(float x) { return x; }
__device__ inline double up(double x) { return x; }
__device__ inline float up(__half x) { return __half2float(x); }
__device__ inline float up(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline void down(float x, float* y) { *y = x; }
__device__ inline void down(double x, double* y) { *y = x; }
__device__ inline void down(float x, __half* y) { *y = __float2half_rn(x); }
__device__ inline void down(float x, __nv_bfloat16* y) { *y = __float2bfloat16_rn(x); }

// Bits of a number >= 0: they are ordered like the numbers.
__device__ inline std::uint32_t bits(float x) { return __float_as_uint(x); }
__device__ inline std::uint64_t bits(double x) { return static_cast<std::uint64_t>(__double_as_longlong(x)); }
__device__ inline float from_bits(std::uint32_t x) { return __uint_as_float(x); }
__device__ inline double from_bits(std::uint64_t x) { return __longlong_as_double(static_cast<long long>(x)); }

__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

// The sum over the lanes, in every lane the same bits: each step adds two numbers, in either order.
template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
  return x;
}

// Copies 16 bytes from global to shared memory, or 16 zeros; both addresses are multiples of 16.
__device__ inline void copy_async(void* to, const void* from, bool real) {
#ifdef __CUDACC__
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(real ? 16 : 0)
               : "memory");
#else
  emulated::copy(to, from, real);
#endif
}

// Ends a group of copies.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulated::commit_copies();
#endif
}

// Waits for this thread's copies, except for those of the last `PENDING` groups.
template <int PENDING>
__device__ inline void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
  emulated::wait_for_copies(PENDING);
#endif
}

// c += a b for a warp's tile of 16 x 16 (a) times 16 x 8 (b), in float32; registers as the PTX manual lays them out
// for mma.m16n8k16.
template <class T>
__device__ inline void multiply_tile(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  emulated::multiply_tile<T>(c, a, b);
#endif
}

// The shared memory whose size is given at launch.
__device__ inline unsigned char* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return emulated::dynamic_shared();
#endif
}

// Calls f with a null pointer of the element type.
template <class F>
void with_type(Type type, const F& f) {
  switch (type) {
    case Type::float32: return f(static_cast<float*>(nullptr));
    case Type::float64: return f(static_cast<double*>(nullptr));
    case Type::float16: return f(static_cast<__half*>(nullptr));
    case Type::bfloat16: return f(static_cast<__nv_bfloat16*>(nullptr));
  }
  throw std::runtime_error("unknown element type " + std::to_string(static_cast<int>(type)));
}

inline void check(cudaError_t status, const char* name) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the error would come back from the next launch
  throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(status));
}

template <class... Expected, class... Given>
void launch(const char* name, void (*kernel)(Expected...), std::int64_t blocks, std::size_t shared,
            cudaStream_t stream, Given... arguments) {
  if (blocks <= 0) return;
  if (blocks > INT32_MAX) {
    throw std::runtime_error(std::string(name) + ": " + std::to_string(blocks) + " blocks, a launch takes 2^31 - 1");
  }
  if (shared > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Expected>(arguments)...), name);
}

}  // namespace glomo::cuda
