// As much of the CUDA runtime as kernels/csrc/cuda uses, on a CPU: the kernels' own code, compiled by a C++ compiler,
// with every thread of a block a fiber. Fibers run one at a time, from one barrier or exchange to the next. Blocks run
// one after the other.
//
// It finds what a GPU would forgive or punish silently:
//   - lanes that wait for each other in different places (the process ends with a message);
//   - shared memory that is read before it is written (filled with NaN), or beyond its end (a guard page);
//   - races: GLOMO_EMULATOR_ORDER=n runs the fibers in another order for every n, and results have to be the same.
// It knows nothing of speed, of memory ordering between warps without a barrier, or of asynchronous copies that are
// read too early by another thread than the one that waits.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t status) { return status == 0 ? "no error" : "invalid argument"; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
struct cudaFuncAttributes {};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct double2 { double x, y; };
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace emulated {

constexpr unsigned LANES = 32, MOST_THREADS = 1024;
constexpr std::size_t STACK = 128 * 1024, MOST_SHARED = 227 * 1024;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

struct Barrier {
  unsigned arrived = 0, size = 0;
  std::uint64_t generation = 0;
  const void* place = nullptr;
};

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  bool started = false, done = false;
  unsigned thread = 0;
  Barrier* waiting = nullptr;
  std::uint64_t generation = 0;
};

// What the lanes of a warp show each other; two, because a lane may be one exchange ahead of another.
struct Exchange {
  alignas(16) unsigned char shown[2][LANES][32];
  unsigned turn[LANES] = {};
};

struct Machine {
  std::vector<Fiber> fibers = std::vector<Fiber>(MOST_THREADS);
  std::vector<Barrier> warps = std::vector<Barrier>(MOST_THREADS / LANES);
  std::vector<Exchange> exchanges = std::vector<Exchange>(MOST_THREADS / LANES);
  std::vector<unsigned> order;
  unsigned char* stacks = nullptr;
  unsigned char* page = nullptr;    // shared memory ends where the guard page begins
  unsigned char* shared = nullptr;
  Barrier block;
  Fiber* current = nullptr;
  jmp_buf scheduler;
  dim3 block_index, threads, grid;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;

  Machine() {
    stacks = static_cast<unsigned char*>(std::malloc(STACK * MOST_THREADS));
    const std::size_t whole = (MOST_SHARED + 8191) / 4096 * 4096;
    page = static_cast<unsigned char*>(
        mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (stacks == nullptr || page == MAP_FAILED) fail("no memory");
    page += whole - 4096;
    if (mprotect(page, 4096, PROT_NONE) != 0) fail("no guard page");
  }
};

inline Machine& machine() {
  static Machine machine;
  return machine;
}

inline void wait() {
  Machine& m = machine();
  if (_setjmp(m.current->at) == 0) _longjmp(m.scheduler, 1);
}

inline void arrive(Barrier& barrier, const void* place) {
  Machine& m = machine();
  if (barrier.arrived == 0) barrier.place = place;
  if (barrier.place != place) fail("threads wait for each other in different places");
  Fiber& self = *m.current;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  self.waiting = &barrier;
  self.generation = barrier.generation;
  wait();
}

inline void enter() {
  Machine& m = machine();
  m.body(m.arguments);
  m.current->done = true;
  _longjmp(m.scheduler, 1);
}

inline void run_block(std::size_t shared_bytes) {
  Machine& m = machine();
  const unsigned count = m.threads.x;
  if (count == 0 || count % LANES || count > MOST_THREADS) fail("the block is not made of whole warps");
  m.shared = m.page - (shared_bytes + 15) / 16 * 16;
  std::memset(m.shared, 0xff, static_cast<std::size_t>(m.page - m.shared));
  m.block = Barrier();
  m.block.size = count;
  for (unsigned w = 0; w < count / LANES; ++w) {
    m.warps[w] = Barrier();
    m.warps[w].size = LANES;
    m.exchanges[w] = Exchange();
  }
  for (unsigned t = 0; t < count; ++t) {
    Fiber& fiber = m.fibers[t];
    fiber.started = fiber.done = false;
    fiber.waiting = nullptr;
    fiber.thread = t;
  }
  for (unsigned left = count; left > 0;) {
    bool moved = false;
    for (volatile unsigned n = 0; n < count; n = n + 1) {
      Fiber& fiber = m.fibers[m.order[n]];
      if (fiber.done || (fiber.waiting != nullptr && fiber.waiting->generation == fiber.generation)) continue;
      fiber.waiting = nullptr;
      m.current = &fiber;
      moved = true;
      if (_setjmp(m.scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.at, 1);
        fiber.started = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = m.stacks + STACK * fiber.thread;
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, reinterpret_cast<void (*)()>(&enter), 0);
        setcontext(&fiber.start);
      }
    }
    left = 0;
    for (unsigned t = 0; t < count; ++t) left += !m.fibers[t].done;
    if (!moved && left > 0) fail("threads wait for threads that never come");
  }
}

// Shows 32 bytes at most to the other lanes of the warp; returns what they show.
template <class T>
inline const Exchange& exchange(const T& value, const void* place, unsigned* which) {
  static_assert(sizeof(T) <= 32);
  Machine& m = machine();
  const unsigned thread = m.current->thread, warp = thread / LANES, lane = thread % LANES;
  Exchange& e = m.exchanges[warp];
  *which = e.turn[lane]++ % 2;
  std::memcpy(e.shown[*which][lane], &value, sizeof(T));
  arrive(m.warps[warp], place);
  return e;
}

template <class T>
T shown_by(const Exchange& e, unsigned which, unsigned lane) {
  T value;
  std::memcpy(&value, e.shown[which][lane], sizeof(T));
  return value;
}

inline unsigned char* dynamic_shared() { return machine().shared; }

// Asynchronous copies: done when they are waited for, so that reading earlier finds what was there before.
struct Copy {
  unsigned char* to;
  unsigned char bytes[16];
};
struct Copies {
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};
inline std::vector<Copies>& copies() {
  static std::vector<Copies> all(MOST_THREADS);
  return all;
}
inline void copy(void* to, const void* from, bool real) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 || reinterpret_cast<std::uintptr_t>(from) % 16) {
    fail("a copy that is not aligned to 16 bytes");
  }
  Copy copy = {static_cast<unsigned char*>(to), {}};
  if (real) std::memcpy(copy.bytes, from, 16);
  copies()[machine().current->thread].open.push_back(copy);
}
inline void commit_copies() {
  Copies& own = copies()[machine().current->thread];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}
inline void wait_for_copies(unsigned pending) {
  Copies& own = copies()[machine().current->thread];
  while (own.groups.size() > pending) {
    for (const Copy& copy : own.groups.front()) std::memcpy(copy.to, copy.bytes, 16);
    own.groups.erase(own.groups.begin());
  }
}

}  // namespace emulated

#define threadIdx (emulated::Thread{emulated::machine().current->thread})
#define blockIdx (emulated::machine().block_index)
namespace emulated {
struct Thread { unsigned x; };
}

// What tells calls apart that must not meet: the line of the kernel. (Not the address of the code: a compiler for CPUs
// may copy a call into two branches.)
#define EMULATED_PLACE const void *place = static_cast<const char*>(__builtin_FILE()) + __builtin_LINE()

inline void __syncthreads(EMULATED_PLACE) {
  emulated::arrive(emulated::machine().block, place);
}
inline int __syncthreads_or(int vote, EMULATED_PLACE) {
  static int any = 0;
  emulated::Barrier& block = emulated::machine().block;
  any |= vote != 0;
  emulated::arrive(block, place);
  const int result = any;
  emulated::arrive(block, place);  // all have read
  any = 0;
  emulated::arrive(block, place);
  return result;
}
inline void __syncwarp(EMULATED_PLACE) {
  unsigned which;
  emulated::exchange(0, place, &which);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, EMULATED_PLACE) {
  if (mask != 0xffffffffu) emulated::fail("an exchange of some lanes only");
  unsigned which, all = 0;
  const auto& e = emulated::exchange(vote, place, &which);
  for (unsigned lane = 0; lane < emulated::LANES; ++lane) all |= unsigned(emulated::shown_by<bool>(e, which, lane)) << lane;
  return all;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, EMULATED_PLACE) {
  if (mask != 0xffffffffu) emulated::fail("an exchange of some lanes only");
  unsigned which;
  const auto& e = emulated::exchange(value, place, &which);
  return emulated::shown_by<T>(e, which, static_cast<unsigned>(lane) % emulated::LANES);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int other, EMULATED_PLACE) {
  if (mask != 0xffffffffu) emulated::fail("an exchange of some lanes only");
  unsigned which;
  const auto& e = emulated::exchange(value, place, &which);
  return emulated::shown_by<T>(e, which, emulated::machine().current->thread % emulated::LANES ^ unsigned(other));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, EMULATED_PLACE) {
  if (mask != 0xffffffffu) emulated::fail("an exchange of some lanes only");
  unsigned which;
  const auto& e = emulated::exchange(value, place, &which);
  const unsigned lane = emulated::machine().current->thread % emulated::LANES;
  return emulated::shown_by<T>(e, which, lane < distance ? lane : lane - distance);
}

inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class To, class From>
inline To emulated_cast(From x) {
  To y;
  static_assert(sizeof(x) == sizeof(y));
  std::memcpy(&y, &x, sizeof(y));
  return y;
}
inline std::uint32_t __float_as_uint(float x) { return emulated_cast<std::uint32_t>(x); }
inline float __uint_as_float(std::uint32_t x) { return emulated_cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_cast<double>(x); }
using std::max;
using std::min;

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given&&... given) {
  emulated::Machine& m = emulated::machine();
  if (config->dynamicSmemBytes > emulated::MOST_SHARED) return 1;
  struct Call {
    void (*kernel)(Expected...);
    std::tuple<Expected...> arguments;
  } call = {kernel, std::tuple<Expected...>(given...)};
  m.arguments = &call;
  m.body = [](void* call) { std::apply(static_cast<Call*>(call)->kernel, static_cast<Call*>(call)->arguments); };
  m.grid = config->gridDim;
  m.threads = config->blockDim;
  m.order.resize(m.threads.x);
  for (unsigned t = 0; t < m.threads.x; ++t) m.order[t] = t;
  const char* seed = std::getenv("GLOMO_EMULATOR_ORDER");
  std::minstd_rand random(seed == nullptr ? 0 : static_cast<unsigned>(std::atoi(seed)) + 1);
  for (unsigned b = 0; b < m.grid.x; ++b) {
    if (seed != nullptr) std::shuffle(m.order.begin(), m.order.end(), random);
    m.block_index = dim3(b);
    emulated::run_block(config->dynamicSmemBytes);
  }
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, int, int bytes) {
  return static_cast<std::size_t>(bytes) <= emulated::MOST_SHARED ? cudaSuccess : 1;
}
