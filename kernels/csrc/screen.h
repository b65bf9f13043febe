// Scores of a tile where few of them exceed theta: all by products of bfloat16 (bfloat16.h), which cost a tenth of
// float's, or half, and those that may exceed it again in float. Rounding changes elements of q and k by 2^-8 of
// themselves and a score by 2^-7 |q| |k| at most, so no edge is missed; what lies further below theta is never looked
// at again.
#pragma once

#include <algorithm>
#include <optional>

#include "affinity_mix.h"
#include "bfloat16.h"
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
      : problem_(problem), block_(block), keys_(keys), own_(keys), depth_(keys.used ? half_depth(problem.width) : 0),
        queries_(LANES * depth_ / 2), lines_(keys.used ? LANES * padded<float>(problem.width) : 0),
        few_(HALF_ROWS * LANES), any_(LANES, depth_) {
    if (keys.used) session_.emplace();
  }

  void begin() { laid_ = copied_ = false; }

  // tile[j][lane] = q_lane . k_j for the keys j of [key, key + keys), or, where that is below theta, a number that is.
  // Where nothing exceeds theta, or too much, the tile holds nothing of use.
  Found scores(std::int64_t key, std::int64_t keys, float* tile) {
    if (!keys_.used) return Found::too_many;
    if (!laid_) lay();
    laid_ = true;
    if (!hopeful_) return Found::too_many;
    const RoundedKeys<float>::Tile rounded = keys_.tile(block_.head, key, own_);
    const std::int64_t found = look(rounded.rows, rounded.norms, key, keys, block_.crossed(key, keys), tile);
    if (many(found, keys)) return Found::too_many;
    if (found == 0) return Found::nothing;
    if (!copied_) q_ = lines(queries(), problem_.q.row, block_.rows, problem_.width, lines_.get());
    copied_ = true;
    const float* k = problem_.k.at(block_.sample, block_.within, key);
    simd<float>().dots(masks_, keys, k, problem_.k.row, q_.data, q_.pitch, problem_.width, tile);
    return Found::scores;
  }

 private:
  const float* queries() const { return problem_.q.at(block_.sample, block_.within, block_.first); }

  // Measured, with AMX and on Zen 4: a score by itself costs as much as a few in a whole tile, and bfloat16's products
  // come on top.
  bool many(std::int64_t found, std::int64_t keys) const { return 5 * found > keys * block_.rows; }

  void lay() {
    if (block_.rows < block_.lanes) queries_.clear();
    float norms[LANES];
    Half* rounded = own_.rows.get();
    bfloat16()->round_rows(queries(), problem_.q.row, block_.rows, problem_.width, rounded, keys_.pitch(), norms);
    lay_words(rounded, keys_.pitch(), block_.rows, depth_, queries_.get());
    // On top of the rounding to bfloat16, of both, come the errors of the products and norms in float.
    const float error = 1.01f / 128 + static_cast<float>(problem_.width) * 0x1p-22f;
    for (std::int64_t i = 0; i < LANES; ++i) reach_[i] = i < block_.rows ? error * norms[i] : 0;
    // A few of the keys tell whether the others are worth a look; of a single tile each is.
    hopeful_ = true;
    const std::int64_t step = (block_.high - block_.low) / HALF_ROWS;
    if (step * HALF_ROWS <= LANES) return;
    const float* k = problem_.k.at(block_.sample, block_.within, block_.low);
    bfloat16()->round_rows(k, step * problem_.k.row, HALF_ROWS, problem_.width, rounded, keys_.pitch(),
                           own_.norms.get());
    hopeful_ = !many(look(rounded, own_.norms.get(), 0, HALF_ROWS, false, few_.get()), HALF_ROWS);
  }

  // Products with the keys from `key` on, and the bits of those that may exceed theta. Returns their number.
  std::int64_t look(const Half* rows, const float* norms, std::int64_t key, std::int64_t keys, bool crossed,
                    float* tile) {
    any_.multiply(keys, block_.lanes, depth_, rows, keys_.pitch(), queries_.get(), depth_ / 2 * PANEL, tile, LANES,
                  false);
    return block_.above(key, keys, crossed, tile, reach_, norms, masks_);
  }

  const Mix<float>& problem_;
  const QueryBlock<float>& block_;
  const RoundedKeys<float>& keys_;
  const RoundedKeys<float>::Own own_;
  std::optional<Session> session_;
  const std::int64_t depth_;
  Buffer<Word> queries_;
  Buffer<float> lines_, few_;
  Lines<float> q_ = {};
  AnyRows any_;
  float reach_[LANES] = {};
  std::uint64_t masks_[LANES] = {};
  bool laid_ = false, copied_ = false;  // whether queries_, q_ hold the rows of this block
  bool hopeful_ = false;                // whether few of its scores exceed theta
};

}  // namespace glomo
