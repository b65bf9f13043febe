// Keys of the heads that are worked on, rounded once for all blocks of query rows (screen.h). As many heads
// as are worked on side by side have room; a later head takes the room of one whose blocks are all done. Nobody waits:
// where the room is still in use, or another thread is just at it, a thread rounds the keys for itself.
#pragma once

#include <atomic>
#include <memory>

#include "affinity_mix.h"
#include "look.h"
#include "rounded.h"
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
  // A tile: rows as the a of products, and what they were.
  struct Tile {
    Word* rows;
    Rounded* were;
  };
  struct Own {
    explicit Own(const RoundedKeys& keys) : rows(LANES * keys.pitch_) {}
    Tile tile() { return {rows.get(), &were}; }
    Buffer<Word> rows;
    Rounded were = {};
  };

  RoundedKeys(const Mix<float>& problem, int threads)
      : used(problem.kind == Kind::relu && problem.width >= NARROWEST && Look::words(problem.width) > 0),
        problem_(problem), heads_(used ? heads_at_once(problem, threads) : 0), tiles_(blocks(problem.units)),
        pitch_(used ? Look::pitch(problem.width) : 0), rows_(heads_ * tiles_ * LANES * pitch_, false),
        were_(heads_ * tiles_, false), states_(new std::atomic<std::int64_t>[heads_ * tiles_ + 1]()),
        finished_(new std::atomic<std::int64_t>[used ? problem.batch * problem.heads : 1]()) {}

  Tile tile(std::int64_t head, std::int64_t key, const Look& look, Own& own) const {
    const std::int64_t place = head % heads_ * tiles_ + tile_of(key), turn = head / heads_;
    std::atomic<std::int64_t>& state = states_[place];
    const Tile shared = {rows_.get() + place * LANES * pitch_, were_.get() + place};
    std::int64_t was = state.load(std::memory_order_acquire);
    if (was == 2 * turn + 2) return shared;
    if (was == 2 * turn + 1 || !free(head) || !state.compare_exchange_strong(was, 2 * turn + 1)) {
      return round(head, key, look, own.tile());
    }
    round(head, key, look, shared);
    state.store(2 * turn + 2, std::memory_order_release);
    return shared;
  }

  // A block of this head will ask for no more tiles.
  void finished(std::int64_t head) {
    if (used) finished_[head].fetch_add(1, std::memory_order_release);
  }

  const bool used;

 private:
  // Whether all blocks of the heads that had this room before are done.
  bool free(std::int64_t head) const {
    for (head -= heads_; head >= 0; head -= heads_) {
      if (finished_[head].load(std::memory_order_acquire) != blocks(problem_.rows)) return false;
    }
    return true;
  }

  Tile round(std::int64_t head, std::int64_t key, const Look& look, Tile out) const {
    const float* k = problem_.k.at(head / problem_.heads, head % problem_.heads, key);
    look.round_keys(k, problem_.k.row, std::min(LANES, problem_.units - key), out.rows, out.were);
    return out;
  }

  const Mix<float>& problem_;
  const std::int64_t heads_, tiles_, pitch_;
  Buffer<Word> rows_;
  Buffer<Rounded> were_;
  std::unique_ptr<std::atomic<std::int64_t>[]> states_;    // 2 n + 1: being made in the n-th turn, 2 n + 2: made
  std::unique_ptr<std::atomic<std::int64_t>[]> finished_;  // [head]: its blocks that are done
};

}  // namespace glomo
