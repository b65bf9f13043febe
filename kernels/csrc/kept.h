// What the forward pass of affinity_mix keeps of a block for the backward pass, which else makes its scores again: the
// roots of all keys, or, where few of them have an edge, which ones: a word for each key, with a bit for each row.
#pragma once

#include <cstdint>
#include <cstring>

#include "affinity_mix.h"

namespace glomo {

template <class T>
class Kept {
 public:
  // data: room for each [head][block of rows], for `most` of it: roots [units][LANES], or words [units]; behind them a
  // flag for each, what is there.
  template <class Element>
  Kept(const Mix<Element>& problem, T* data, Keep most)
      : most_(most), data_(data), units_(problem.units), per_head_(blocks(problem.rows)),
        blocks_(problem.batch * problem.heads * per_head_), size_(units_ * (most == Keep::roots ? LANES : WORD)) {}

  Keep what(std::int64_t head, std::int64_t index) const {
    return most_ == Keep::nothing ? most_ : static_cast<Keep>(static_cast<int>(*flag(head, index)));
  }

  void set(std::int64_t head, std::int64_t index, Keep what) const {
    if (most_ != Keep::nothing) *flag(head, index) = static_cast<T>(static_cast<int>(what));
  }

  T* roots(std::int64_t head, std::int64_t index) const { return data_ + (head * per_head_ + index) * size_; }

  // No edges yet.
  void clear(std::int64_t head, std::int64_t index) const {
    std::memset(static_cast<void*>(roots(head, index)), 0, bytes(units_));
  }

  // Edges of the keys [key, key + keys), from and to `words`.
  void put(std::int64_t head, std::int64_t index, std::int64_t key, std::int64_t keys,
           const std::uint64_t* words) const {
    std::memcpy(static_cast<void*>(roots(head, index) + key * WORD), words, bytes(keys));
  }
  void get(std::int64_t head, std::int64_t index, std::int64_t key, std::int64_t keys, std::uint64_t* words) const {
    std::memcpy(words, static_cast<const void*>(roots(head, index) + key * WORD), bytes(keys));
  }

 private:
  static constexpr std::int64_t WORD = sizeof(std::uint64_t) / sizeof(T);  // elements in the place of a word

  static std::size_t bytes(std::int64_t words) { return static_cast<std::size_t>(words) * sizeof(std::uint64_t); }
  T* flag(std::int64_t head, std::int64_t index) const { return data_ + blocks_ * size_ + head * per_head_ + index; }

  Keep most_;
  T* data_;
  std::int64_t units_, per_head_, blocks_, size_;
};

}  // namespace glomo
