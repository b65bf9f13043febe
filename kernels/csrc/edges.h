// Where the edges of a tile of scores are, for products that go over them alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace glomo {

// The bits of the words of `keys` keys.
inline std::int64_t count_bits(const std::uint64_t* words, std::int64_t keys) {
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < keys; ++j) count += __builtin_popcountll(words[j]);
  return count;
}

class Edges {
 public:
  // Looks for the elements of roots [keys][LANES] that are not 0, in the first `rows` lanes.
  template <class T>
  void find(const T* roots, std::int64_t keys, std::int64_t rows) {
    static_assert(LANES == 64, "a word of 64 bits has a bit for each lane");
    count_ = simd<T>().nonzero(roots, keys, rows, keys_);
    of_ = keys * rows;
    std::fill(keys_ + keys, keys_ + LANES, std::uint64_t{0});
    if (few()) turn();
  }

  // Whether products over the edges are faster than those of whole tiles. Measured: as dear at 45 to 50 % of the
  // elements.
  bool few() const { return 5 * count_ <= 2 * of_; }

  // Whether scores of the edges alone are as fast as reading those of all.
  bool very_few() const { return 5 * count_ <= of_; }

  // The rows that have an edge.
  std::uint64_t rows() const {
    std::uint64_t found = 0;
    for (const std::uint64_t of_key : keys_) found |= of_key;
    return found;
  }

  const std::uint64_t* of_keys() const { return keys_; }  // [key]: its rows
  const std::uint64_t* of_rows() const { return rows_; }  // [row]: its keys, only if few()

 private:
  // rows_ becomes keys_ as a matrix of bits with its axes exchanged, by blocks of 32, 16, ... 1.
  void turn() {
    for (std::int64_t i = 0; i < LANES; ++i) rows_[i] = keys_[i];
    std::uint64_t low = 0x00000000FFFFFFFF;
    for (int size = 32; size > 0; size /= 2, low ^= low << size) {
      for (int i = 0; i < LANES; i = (i + size + 1) & ~size) {
        const std::uint64_t moved = ((rows_[i] >> size) ^ rows_[i + size]) & low;
        rows_[i] ^= moved << size;
        rows_[i + size] ^= moved;
      }
    }
  }

  std::uint64_t keys_[LANES] = {}, rows_[LANES] = {};
  std::int64_t count_ = 0, of_ = 0;
};

}  // namespace glomo
