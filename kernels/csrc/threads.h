// Work sharing on the threads of the OpenMP run time that torch has loaded, called by its name, so that none is
// linked beside it: its idle threads spin for a while after each op of torch, and threads of our own would have to
// share their cores with them. Where there is none, plain threads.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace glomo {

// Runs a function on a number of threads: GNU OpenMP's entry point, which LLVM's and Intel's have too.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline Team team() {
#if defined(GLOMO_PLAIN_THREADS)
  return nullptr;
#else
  static const auto found = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#endif
}

// Calls worker(next) on up to `threads` threads. next() hands out 0 .. items-1, each once, then -1.
// The first exception of a worker is thrown here, after all have ended.
template <class Worker>
void parallel(std::int64_t items, int threads, const Worker& worker) {
  std::atomic<std::int64_t> counter{0};
  const auto next = [&]() -> std::int64_t {
    const std::int64_t item = counter.fetch_add(1, std::memory_order_relaxed);
    return item < items ? item : -1;
  };
  std::exception_ptr failure;
  std::mutex failure_lock;
  const auto guarded = [&] {
    try {
      worker(next);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_lock);
      if (!failure) failure = std::current_exception();
    }
  };
  const auto extra = std::max<std::int64_t>(0, std::min<std::int64_t>(threads, items) - 1);
  if (extra > 0 && team() != nullptr) {
    using Guarded = std::remove_const_t<decltype(guarded)>;
    team()([](void* job) { (*static_cast<const Guarded*>(job))(); }, const_cast<Guarded*>(&guarded),
           static_cast<unsigned>(extra + 1), 0);
    if (failure) std::rethrow_exception(failure);
    return;
  }
  std::vector<std::thread> crew;
  crew.reserve(static_cast<std::size_t>(extra));
  for (std::int64_t i = 0; i < extra; ++i) {
    try {
      crew.emplace_back(guarded);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the ones there are do the work
    }
  }
  guarded();
  for (auto& thread : crew) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace glomo
