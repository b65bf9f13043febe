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
  // data: for each [head][block of rows] room, and behind them a flag for each. most: what there is room for, roots
  // [units][LANES] or words [units].
  template <class Element>
  Kept(const Mix<Element>& problem, T* data, Keep most)
      : most(most), data_(data), units_(problem.units), per_head_(blocks(problem.rows)),
        blocks_(problem.batch * problem.heads * per_head_),
        size_(most == Keep::roots ? units_ * LANES : units_ * static_cast<std::int64_t>(sizeof(std::uint64_t) / sizeof(T))) {}

  T* roots(std::int64_t head, std::int64_t index) const { return data_ + (head * per_head_ + index) * size_; }

  Keep what(std::int64_t head, std::int64_t index) const {
    return most == Keep::nothing ? most : static_cast<Keep>(static_cast<int>(*flag(head, index)));
  }

  void set(std::int64_t head, std::int64_t index, Keep what) const {
    if (most != Keep::nothing) *flag(head, index) = static_cast<T>(static_cast<int>(what));
  }

  void clear_edges(std::int64_t head, std::int64_t index) const {
    std::memset(static_cast<void*>(roots(head, index)), 0, static_cast<std::size_t>(units_) * sizeof(std::uint64_t));
  }

  // Those of the keys [key, key + keys).
  void put_edges(std::int64_t head, std::int64_t index, std::int64_t key, std::int64_t keys,
                 const std::uint64_t* words) const {
    std::memcpy(place(head, index, key), words, static_cast<std::size_t>(keys) * sizeof(std::uint64_t));
  }
  void get_edges(std::int64_t head, std::int64_t index, std::int64_t key, std::int64_t keys,
                 std::uint64_t* words) const {
    std::memcpy(words, place(head, index, key), static_cast<std::size_t>(keys) * sizeof(std::uint64_t));
  }

  const Keep most;

 private:
  T* flag(std::int64_t head, std::int64_t index) const { return data_ + blocks_ * size_ + head * per_head_ + index; }
  auto* place(std::int64_t head, std::int64_t index, std::int64_t key) const {
    return roots(head, index) + key * static_cast<std::int64_t>(sizeof(std::uint64_t) / sizeof(T));
  }

  T* data_;
  std::int64_t units_, per_head_, blocks_, size_;
};

}  // namespace glomo
