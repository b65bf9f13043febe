// What forward and backward of affinity_mix share: a block of LANES query rows of one (sample, head), and which keys
// they see. Nothing of size T x T exists: a thread holds the scores of its block, LANES x T, or a tile of them.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels.h"
#include "scratch.h"
#include "simd.h"

namespace glomo {

// Measured: scores of narrower rows are made for whole tiles as fast as for single edges.
constexpr std::int64_t NARROWEST = 64;

inline std::int64_t blocks(std::int64_t n) { return (n + LANES - 1) / LANES; }
inline std::int64_t tile_of(std::int64_t key) { return key / LANES; }

// First row and number of rows of a block of query rows. It is the first one that is not full: with causal spans it
// sees the fewest keys.
inline std::pair<std::int64_t, std::int64_t> rows_of_block(std::int64_t index, std::int64_t rows) {
  const std::int64_t missing = blocks(rows) * LANES - rows;
  return index == 0 ? std::pair{std::int64_t{0}, LANES - missing} : std::pair{index * LANES - missing, LANES};
}

// The range of keys that any of `rows` rows of a sample sees.
template <class Element>
std::pair<std::int64_t, std::int64_t> keys_seen(const Mix<Element>& problem, std::int64_t sample, std::int64_t first,
                                                std::int64_t rows) {
  std::int64_t low = problem.units, high = 0;
  const std::int64_t* span = problem.spans + 2 * (sample * problem.rows + first);
  for (std::int64_t i = 0; i < rows; ++i, span += 2) {
    if (span[0] >= span[1]) continue;
    low = std::min(low, span[0]);
    high = std::max(high, span[1]);
  }
  return {low, high};
}

// As many heads as threads are worked on side by side, so that the blocks of one seldom wait for each other.
template <class Element>
std::int64_t heads_at_once(const Mix<Element>& problem, int threads) {
  return std::max<std::int64_t>(1, std::min<std::int64_t>(threads, problem.batch * problem.heads));
}

template <class Element>
class QueryBlock {
 public:
  using T = Sum<Element>;

  QueryBlock(const Mix<Element>& problem, int threads)
      : problem_(problem), team_(heads_at_once(problem, threads)), theta_(LANES), begin_(LANES), end_(LANES) {}

  // Items are the blocks of all heads, those of a head from the last: with causal spans it is the longest.
  void load(std::int64_t item) {
    const std::int64_t per_head = blocks(problem_.rows), heads = problem_.batch * problem_.heads;
    const std::int64_t team = item / (team_ * per_head), members = std::min(team_, heads - team * team_);
    const std::int64_t place = item - team * team_ * per_head;
    load(team * team_ + place % members, per_head - 1 - place / members);
  }

  void load(std::int64_t of_head, std::int64_t of_index) {
    head = of_head;
    index = of_index;
    std::tie(first, rows) = rows_of_block(index, problem_.rows);
    lanes = lanes_of<T>(rows);
    sample = head / problem_.heads;
    within = head % problem_.heads;
    load_spans();
    for (std::int64_t i = 0; i < LANES; ++i) {
      const bool used = problem_.theta && i < rows;
      theta_.get()[i] = used ? problem_.theta[head * problem_.rows + first + i] : T(0);
    }
  }

  // Scores of the keys [key, key + count) become roots; adds r^2 to sum[lane]. Returns whether the tile has a weight.
  bool roots(std::int64_t key, std::int64_t count, T* tile, double* sum) const {
    return simd<T>().roots(tile, count, key, lanes, theta_.get(), problem_.kind == Kind::relu, begin_.get(), end_.get(),
                           crossed(key, count), sum);
  }

  // Which of the scores of the keys [key, key + count), each off by up to reach[lane] * norms[key], may have a weight:
  // the bits of their lanes; spans count if `crossed`. Returns their number.
  std::int64_t above(std::int64_t key, std::int64_t count, bool crossed, const T* tile, const T* reach, const T* norms,
                     std::uint64_t* masks) const {
    return simd<T>().above(tile, count, key, rows, theta_.get(), begin_.get(), end_.get(), crossed, reach, norms,
                           masks);
  }

  // Keys of the tile from `key` on that come before the last one that a row sees.
  std::int64_t keys_from(std::int64_t key) const { return std::min(LANES, high - key); }

  // Whether some of the rows does not see all of the keys [key, key + count).
  bool crossed(std::int64_t key, std::int64_t count) const {
    return key < all_from_ || key + count > all_to_;
  }

  // The keys of [key, key + count), relative to `key`, that rows [row, row + count_rows) see, as one range.
  std::pair<std::int64_t, std::int64_t> seen(std::int64_t row, std::int64_t count_rows, std::int64_t key,
                                             std::int64_t count) const {
    std::int64_t from = count, to = 0;
    for (std::int64_t i = row; i < std::min(row + count_rows, rows); ++i) {
      if (begin(i) >= end(i)) continue;
      from = std::min(from, begin(i) - key);
      to = std::max(to, end(i) - key);
    }
    return {std::max<std::int64_t>(from, 0), std::min(to, count)};
  }

  // The rows that see one of the keys [key, key + count), as one range.
  std::pair<std::int64_t, std::int64_t> seeing(std::int64_t key, std::int64_t count) const {
    std::int64_t from = rows, to = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      if (begin(i) >= key + count || end(i) <= key) continue;
      from = std::min(from, i);
      to = i + 1;
    }
    return {from, to};
  }

  T theta(std::int64_t i) const { return theta_.get()[i]; }
  std::int64_t begin(std::int64_t i) const { return static_cast<std::int64_t>(begin_.get()[i]); }
  std::int64_t end(std::int64_t i) const { return static_cast<std::int64_t>(end_.get()[i]); }

  std::int64_t head = 0, index = 0, first = 0, rows = 0, lanes = 0, sample = 0, within = 0;
  std::int64_t low = 0, high = 0;  // the keys that any row sees

 private:
  void load_spans() {
    std::tie(low, high) = keys_seen(problem_, sample, first, rows);
    all_from_ = 0, all_to_ = problem_.units;
    for (std::int64_t i = 0; i < LANES; ++i) begin_.get()[i] = end_.get()[i] = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t* span = problem_.spans + 2 * (sample * problem_.rows + first + i);
      if (span[0] < span[1]) {
        begin_.get()[i] = static_cast<T>(span[0]);
        end_.get()[i] = static_cast<T>(span[1]);
      }
      all_from_ = std::max(all_from_, begin(i));
      all_to_ = std::min(all_to_, end(i));
    }
  }

  const Mix<Element>& problem_;
  std::int64_t team_;
  Buffer<T> theta_, begin_, end_;  // spans in T, to be compared in registers: exact below 2^24
  std::int64_t all_from_ = 0, all_to_ = 0;
};

}  // namespace glomo
