// Scratch memory of the kernels that multiply matrices.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "simd.h"

namespace glomo {

// Memory on cache lines of its own, zeros unless said otherwise.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size, bool zeros = true)
      : size_(static_cast<std::size_t>(std::max<std::int64_t>(size, 1))),
        data_(static_cast<T*>(::operator new(size_ * sizeof(T), std::align_val_t(64)))) {
    if (zeros) clear();
  }
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* get() const { return data_; }
  void clear() { std::memset(static_cast<void*>(data_), 0, size_ * sizeof(T)); }

 private:
  std::size_t size_;
  T* data_;
};

// n values side by side, up to whole lines of the cache.
template <class T>
std::int64_t lanes_of(std::int64_t n) {
  return (n + LINE<T> - 1) / LINE<T> * LINE<T>;
}

// Width of rows in scratch memory: room for what `multiply` reads too much, and not a power of two, since rows at
// such distances compete for the same lines of the cache.
template <class T>
std::int64_t padded(std::int64_t width) {
  return lanes_of<T>(width) + 16;
}

// Rows as `multiply` takes its b, and the distance between them.
template <class T>
struct Lines {
  const T* data;
  std::int64_t pitch;
};

// Rows of x as `multiply` takes its b: in scratch memory, unless they can be read where they are. Rows without width
// cannot: there may be no memory, and `dots` reads a register of each.
template <class T>
Lines<T> lines(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t width, T* scratch) {
  const bool complete = width > 0 && width % LINE<T> == 0;
  const bool close = stride * static_cast<std::int64_t>(sizeof(T)) <= 256;
  if (complete && close) return {x, stride};
  const std::int64_t pitch = padded<T>(width);
  for (std::int64_t i = 0; i < rows; ++i) std::copy_n(x + i * stride, width, scratch + i * pitch);
  return {scratch, pitch};
}

}  // namespace glomo
