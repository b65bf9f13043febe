// Keys of the heads that are worked on, rounded to bfloat16 once for all blocks of query rows (screen.h). As many heads
// as are worked on side by side have room; a later head takes the room of one whose blocks are all done. Nobody waits:
// where the room is still in use, or another thread is just at it, a thread rounds the keys for itself.
#pragma once

#include <atomic>
#include <memory>

#include "affinity_mix.h"
#include "bfloat16.h"
#include "scratch.h"

namespace glomo {

// There are none for double, and bfloat16 needs none.
template <class T>
class RoundedKeys {
 public:
  RoundedKeys(const Mix<T>&, int) {}
  void finished(std::int64_t) {}
};

template <>
class RoundedKeys<float> {
 public:
  // A tile: rows as the a of products, and their lengths.
  struct Tile {
    const Half* rows;
    const float* norms;
  };
  struct Own {
    explicit Own(const RoundedKeys& keys) : rows(LANES * keys.pitch_), norms(keys.used ? LANES : 0) {}
    Buffer<Half> rows;
    Buffer<float> norms;
  };

  RoundedKeys(const Mix<float>& problem, int threads)
      : used(bfloat16() && problem.kind == Kind::relu && problem.width >= NARROWEST), problem_(problem),
        heads_(used ? heads_at_once(problem, threads) : 0), tiles_(blocks(problem.units)),
        pitch_(used ? half_depth(problem.width) + HALF_DEPTH : 0), rows_(heads_ * tiles_ * LANES * pitch_, false),
        norms_(heads_ * tiles_ * LANES, false), states_(new std::atomic<std::int64_t>[heads_ * tiles_ + 1]()),
        finished_(new std::atomic<std::int64_t>[used ? problem.batch * problem.heads : 1]()) {}

  Tile tile(std::int64_t head, std::int64_t key, const Own& own) const {
    const std::int64_t place = head % heads_ * tiles_ + tile_of(key), turn = head / heads_;
    std::atomic<std::int64_t>& state = states_[place];
    Half* rows = rows_.get() + place * LANES * pitch_;
    float* norms = norms_.get() + place * LANES;
    std::int64_t was = state.load(std::memory_order_acquire);
    if (was == 2 * turn + 2) return {rows, norms};
    if (was == 2 * turn + 1 || !free(head) || !state.compare_exchange_strong(was, 2 * turn + 1)) {
      round(head, key, own.rows.get(), own.norms.get());
      return {own.rows.get(), own.norms.get()};
    }
    round(head, key, rows, norms);
    state.store(2 * turn + 2, std::memory_order_release);
    return {rows, norms};
  }

  // A block of this head will ask for no more tiles.
  void finished(std::int64_t head) {
    if (used) finished_[head].fetch_add(1, std::memory_order_release);
  }

  std::int64_t pitch() const { return pitch_; }

  const bool used;

 private:
  // Whether all blocks of the heads that had this room before are done.
  bool free(std::int64_t head) const {
    for (head -= heads_; head >= 0; head -= heads_) {
      if (finished_[head].load(std::memory_order_acquire) != blocks(problem_.rows)) return false;
    }
    return true;
  }

  void round(std::int64_t head, std::int64_t key, Half* rows, float* norms) const {
    const float* k = problem_.k.at(head / problem_.heads, head % problem_.heads, key);
    const std::int64_t keys = std::min(LANES, problem_.units - key);
    bfloat16()->round_rows(k, problem_.k.row, keys, problem_.width, rows, pitch_, norms);
  }

  const Mix<float>& problem_;
  const std::int64_t heads_, tiles_, pitch_;  // pitch: not a power of two, see `padded`
  Buffer<Half> rows_;
  Buffer<float> norms_;
  std::unique_ptr<std::atomic<std::int64_t>[]> states_;    // 2 n + 1: being made in the n-th turn, 2 n + 2: made
  std::unique_ptr<std::atomic<std::int64_t>[]> finished_;  // [head]: its blocks that are done
};

}  // namespace glomo
