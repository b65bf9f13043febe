// Whose turn it is to add to rows that several threads add to: dk and dv, the decoder's gradients.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace glomo {

// Lets the blocks of a head add to the same rows of dk and dv, one after the other in a fixed order, whichever
// threads they are on. Blocks are begun in that order, so the one that is waited for is always under way.
class Turns {
 public:
  Turns(std::int64_t heads, std::int64_t per_head, std::int64_t tiles, const std::uint8_t* live)
      : per_head_(per_head), tiles_(tiles), live_(live), last_(new std::atomic<std::int64_t>[heads * tiles]) {
    for (std::int64_t i = 0; i < heads * tiles; ++i) last_[i].store(per_head, std::memory_order_relaxed);
  }

  // Returns whether it is the first turn.
  bool wait(std::int64_t head, std::int64_t index, std::int64_t tile) const {
    const std::int64_t before = next(head, index, tile);
    wait_until(head, tile, before);
    return before == per_head_;
  }

  // Whether no block comes after this one.
  bool last(std::int64_t head, std::int64_t index, std::int64_t tile) const { return final(head, tile) == index; }

  // Returns when all blocks of the heads `step`, 2 step, ... before this one have had their turns at a tile. The last
  // of these heads that has any waited for those before it; one that has none waited for nobody.
  void wait_for_earlier(std::int64_t head, std::int64_t step, std::int64_t tile) const {
    for (head -= step; head >= 0 && none(head, tile);) head -= step;
    if (head >= 0) wait_until(head, tile, final(head, tile));
  }

  // Whether no block at all has this tile.
  bool none(std::int64_t head, std::int64_t tile) const { return next(head, -1, tile) == per_head_; }

  void done(std::int64_t head, std::int64_t index, std::int64_t tile) {
    last_[head * tiles_ + tile].store(index, std::memory_order_release);
  }

 private:
  void wait_until(std::int64_t head, std::int64_t tile, std::int64_t index) const {
    const auto& last = last_[head * tiles_ + tile];
    for (int spins = 0; last.load(std::memory_order_acquire) != index; ++spins) {
      if (spins > 64) std::this_thread::yield();
    }
  }

  // The last block that has this tile, or per_head_.
  std::int64_t final(std::int64_t head, std::int64_t tile) const {
    std::int64_t index = 0;
    while (index < per_head_ && !live_[(head * per_head_ + index) * tiles_ + tile]) ++index;
    return index;
  }

  // The block that was begun last before block `index` and has this tile too, or per_head_.
  std::int64_t next(std::int64_t head, std::int64_t index, std::int64_t tile) const {
    std::int64_t before = index + 1;
    while (before < per_head_ && !live_[(head * per_head_ + before) * tiles_ + tile]) ++before;
    return before;
  }

  std::int64_t per_head_, tiles_;
  const std::uint8_t* live_;
  std::unique_ptr<std::atomic<std::int64_t>[]> last_;
};

}  // namespace glomo
