// Scores of a tile where few of them exceed theta: all of rounded rows first (look.h), at a tenth or a quarter of the
// cost of float's, and those that may exceed it again in float. How far off a score may be is known, so no edge is
// missed; what lies further below theta is never looked at again.
#pragma once

#include <memory>

#include "affinity_mix.h"
#include "look.h"
#include "rounded_keys.h"
#include "scratch.h"

namespace glomo {

enum class Found { nothing, scores, too_many };

// There is none for double, and bfloat16 needs none.
template <class T>
class Screen {
 public:
  Screen(const Mix<T>&, const QueryBlock<T>&, const RoundedKeys<T>&) {}
  void begin() {}
  Found scores(std::int64_t, std::int64_t, T*) { return Found::too_many; }
};

template <>
class Screen<float> {
 public:
  Screen(const Mix<float>& problem, const QueryBlock<float>& block, const RoundedKeys<float>& keys)
      : problem_(problem), block_(block), keys_(keys), own_(keys), look_(keys.used ? Look::at(problem.width) : nullptr),
        lines_(keys.used ? LANES * padded<float>(problem.width) : 0), some_(SOME * LANES) {}

  void begin() { laid_ = copied_ = false; }

  // tile[j][lane] = q_lane . k_j for the keys j of [key, key + keys), or, where that is below theta, a number that is.
  // Where nothing exceeds theta, or too much, the tile holds nothing of use.
  Found scores(std::int64_t key, std::int64_t keys, float* tile) {
    if (!look_) return Found::too_many;
    if (!laid_) lay();
    laid_ = true;
    if (!hopeful_) return Found::too_many;
    const Tile rounded = keys_.tile(block_.head, key, *look_, own_);
    const std::int64_t found = above(rounded, key, keys, block_.crossed(key, keys), tile);
    if (!look_->pays(found, keys * block_.rows)) return Found::too_many;
    if (found == 0) return Found::nothing;
    if (!copied_) q_ = lines(queries(), problem_.q.row, block_.rows, problem_.width, lines_.get());
    copied_ = true;
    const float* k = problem_.k.at(block_.sample, block_.within, key);
    simd<float>().dots(masks_, keys, k, problem_.k.row, q_.data, q_.pitch, problem_.width, tile);
    return Found::scores;
  }

 private:
  const float* queries() const { return problem_.q.at(block_.sample, block_.within, block_.first); }

  using Tile = RoundedKeys<float>::Tile;

  void lay() {
    look_->take(queries(), problem_.q.row, block_.rows, own_.rows.get());
    // A few of the keys tell whether the others are worth a look; of a single tile each is.
    hopeful_ = true;
    const std::int64_t step = (block_.high - block_.low) / SOME;
    if (step * SOME <= LANES) return;
    const float* k = problem_.k.at(block_.sample, block_.within, block_.low);
    const Tile some = own_.tile();
    look_->round_keys(k, step * problem_.k.row, SOME, some.rows, some.were);
    hopeful_ = look_->pays(above(some, 0, SOME, false, some_.get()), SOME * block_.rows);
  }

  // The bits of the scores with the keys from `key` on that may exceed theta. Returns their number.
  std::int64_t above(Tile rounded, std::int64_t key, std::int64_t keys, bool crossed, float* tile) {
    look_->scores(rounded.rows, *rounded.were, keys, block_.lanes, tile, reach_);
    return block_.above(key, keys, crossed, tile, reach_, rounded.were->norm, masks_);
  }

  static constexpr std::int64_t SOME = 16;

  const Mix<float>& problem_;
  const QueryBlock<float>& block_;
  const RoundedKeys<float>& keys_;
  RoundedKeys<float>::Own own_;
  const std::unique_ptr<Look> look_;
  Buffer<float> lines_, some_;
  Lines<float> q_ = {};
  float reach_[LANES] = {};
  std::uint64_t masks_[LANES] = {};
  bool laid_ = false, copied_ = false;  // whether look_, q_ hold the rows of this block
  bool hopeful_ = false;                // whether few of its scores exceed theta
};

}  // namespace glomo
