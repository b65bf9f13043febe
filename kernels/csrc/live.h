// Which tiles of scores have an edge. For the caller they lie at multiples of LANES; blocks of query rows do not, where
// the first one is not full (affinity_mix.h).
#pragma once

#include <vector>

#include "affinity_mix.h"

namespace glomo {

// live[head][row / LANES][key / LANES] = 1 where the tile from `key` on has an edge, in those of the block's rows whose
// bits are given. Two blocks may share such a row.
template <class Element>
void mark_live(const QueryBlock<Element>& block, std::uint64_t rows, std::int64_t key, std::int64_t per_head,
               std::int64_t tiles, std::uint8_t* live) {
  for (std::int64_t i = 0; i < block.rows;) {
    const std::int64_t tile = (block.first + i) / LANES, stop = std::min((tile + 1) * LANES - block.first, block.rows);
    const std::uint64_t these = (~std::uint64_t{0} >> (LANES - (stop - i))) << i;
    std::uint8_t* place = live + (block.head * per_head + tile) * tiles + tile_of(key);
    if (rows & these) __atomic_store_n(place, std::uint8_t{1}, __ATOMIC_RELAXED);
    i = stop;
  }
}

// The same by blocks, from what the forward pass has marked: 1 if one of the rows that a block shares is, and the block
// sees a key of the tile.
template <class Element>
std::vector<std::uint8_t> live_blocks(const Mix<Element>& problem, const std::uint8_t* live) {
  const std::int64_t per_head = blocks(problem.rows), tiles = blocks(problem.units);
  const std::int64_t per_sample = problem.heads * per_head;
  std::vector<std::uint8_t> found(static_cast<std::size_t>(problem.batch * per_sample * tiles));
  for (std::int64_t item = 0; item < problem.batch * per_head; ++item) {
    const std::int64_t sample = item / per_head, index = item % per_head;
    const auto [first, rows] = rows_of_block(index, problem.rows);
    const auto [low, high] = keys_seen(problem, sample, first, rows);
    for (std::int64_t head = 0; head < problem.heads; ++head) {
      const std::int64_t start = sample * per_sample + head * per_head;
      const std::uint8_t* upper = live + (start + first / LANES) * tiles;
      const std::uint8_t* lower = live + (start + (first + rows - 1) / LANES) * tiles;
      std::uint8_t* own = found.data() + (start + index) * tiles;
      for (std::int64_t tile = low / LANES; tile < blocks(high); ++tile) own[tile] = upper[tile] | lower[tile];
    }
  }
  return found;
}

}  // namespace glomo
