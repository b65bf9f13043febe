// The products of affinity_mix with bfloat16 (bfloat16.h): of whole tiles, which with AMX cost less than the steps
// between them, always, and else where they have many edges (half_edges.h). Weights and slopes are rounded to bfloat16
// before whole tiles are multiplied by them; all else is as in products.h.
#pragma once

#include <algorithm>

#include "bfloat16.h"
#include "half_edges.h"
#include "products.h"

namespace glomo {

// dk and dv of the heads that are worked on, in float: those of other heads take the same places later.
template <>
class Accumulators<Half> {
 public:
  Accumulators(const Mix<Half>& problem, int threads)
      : heads_(std::min(problem.batch * problem.heads, 2 * heads_at_once(problem, threads))),
        tiles_(blocks(problem.units)), columns_(problem.width + problem.values),
        sums_(heads_ * tiles_ * LANES * columns_, false) {}

  // How many heads later the places are taken again.
  std::int64_t heads() const { return heads_; }

  float* at(std::int64_t head, std::int64_t key) const {
    return sums_.get() + (head % heads_ * tiles_ + tile_of(key)) * LANES * columns_;
  }

 private:
  std::int64_t heads_, tiles_, columns_;
  Buffer<float> sums_;
};

template <>
class Products<Half> {
 public:
  Products(const Mix<Half>& problem, const QueryBlock<Half>& block, const RoundedKeys<Half>&, const Rows<Half>* grad)
      : problem_(problem), block_(block), grad_(grad), width_(grad ? problem.width : problem.values),
        across_(problem.width / 2 * LANES), grad_across_(grad ? problem.values / 2 * LANES : 0),
        queries_(grad ? LANES / 2 * problem.width : 0), grads_(grad ? LANES / 2 * problem.values : 0),
        pairs_(LANES / 2 * LANES), keys_(LANES / 2 * width_), rounded_(LANES * LANES), out_(LANES * width_),
        any_(LANES, std::max(problem.width, problem.values)), edges_(problem, block, grad, marks_edges()) {}

  void begin() {
    laid_ = grad_laid_ = mixed_ = false;
    edges_.begin();
    std::fill_n(sum_, LANES, 0.0f);
  }

  bool scores(std::int64_t key, std::int64_t keys, float* tile) {
    if (!laid_) lay(queries(), problem_.q.row, problem_.width, across_);
    laid_ = true;
    multiply_keys(problem_.k, problem_.width, key, keys, across_, tile);
    return true;
  }

  bool scores_of(const std::uint64_t* words, std::int64_t key, std::int64_t keys, float none, float* tile) {
    return edges_.scores(words, key, keys, none, tile);
  }

  // With AMX the scores of whole tiles are made faster.
  bool marks_edges() const { return !kernels_.tiles; }
  const std::uint64_t* added(std::int64_t keys, const float* roots) { return edges_.find(keys, roots); }
  bool very_few() const { return false; }

  std::uint64_t add_values(std::int64_t key, std::int64_t keys, const float* roots) {
    const std::uint64_t rows = kernels_.square_pairs(roots, keys, block_.lanes, pairs_.get(), PAIRS, sum_);
    mix_keys(key, keys, problem_.v);
    return rows;
  }

  // Divided by the sums of the rounded weights: a row of one edge is then that edge's value to the bit.
  void write(const double*, Half* mixed) {
    for (std::int64_t i = 0; i < block_.rows; ++i) {
      const float scale = static_cast<float>(1 / (static_cast<double>(sum_[i]) + EPSILON));
      write_row(i, scale, mixed + i * width_);
    }
  }

  void gradients(std::int64_t key, std::int64_t keys, const float* roots, float* tile) {
    if (edges_.few(key, keys, roots)) return edges_.gradients(key, keys, tile);
    if (!grad_laid_) {
      lay(grads(), grad_->row, problem_.values, grad_across_);
      kernels_.pair_rows(grads(), grad_->row, block_.rows, problem_.values, grads_.get(), PAIRS);
      kernels_.pair_rows(queries(), problem_.q.row, block_.rows, problem_.width, queries_.get(), PAIRS);
    }
    grad_laid_ = true;
    multiply_keys(problem_.v, problem_.values, key, keys, grad_across_, tile);
  }

  void add_dq(std::int64_t key, std::int64_t keys, const float* slope) {
    if (edges_.few(key)) {
      if (!mixed_) std::fill_n(out_.get(), block_.rows * width_, 0.0f);
      mixed_ = true;
      return edges_.add_dq(key, keys, slope, out_.get());
    }
    kernels_.round_pairs(slope, LANES, keys, block_.lanes, pairs_.get(), PAIRS);
    mix_keys(key, keys, problem_.k);
  }

  void add_dk_dv(std::int64_t key, std::int64_t keys, const float* slope, const float* share, bool first, bool last,
                 const Accumulators<Half>& sums, Half* dk, Half* dv) {
    float* dk_sum = sums.at(block_.head, key);
    float* dv_sum = dk_sum + LANES * problem_.width;
    // A block may see fewer keys of the tile than one that comes later.
    const std::int64_t all = std::min(LANES, problem_.units - key), filled = first ? all : keys;
    if (edges_.few(key)) {
      if (first) std::fill_n(dk_sum, LANES * (problem_.width + problem_.values), 0.0f);
      edges_.add_dk_dv(key, keys, slope, share, dk_sum, dv_sum);
    } else {
      mix_rows(slope, keys, filled, queries_, problem_.width, dk_sum, !first);
      mix_rows(share, keys, filled, grads_, problem_.values, dv_sum, !first);
    }
    if (!last) return;
    kernels_.round_scaled(dk_sum, all * problem_.width, 1, dk);
    kernels_.round_scaled(dv_sum, all * problem_.values, 1, dv);
  }

  void write_dq(Half* dq) {
    for (std::int64_t i = 0; i < block_.rows; ++i) write_row(i, 1, dq + i * width_);
  }

 private:
  static constexpr std::int64_t PAIRS = LANES / 2 * PANEL;  // words of a panel of up to LANES rows

  const Half* queries() const { return problem_.q.at(block_.sample, block_.within, block_.first); }
  const Half* grads() const { return grad_->at(block_.sample, block_.within, block_.first); }

  // Rows of the block as the b of products over their width: a lane is a column.
  void lay(const Half* x, std::int64_t stride, std::int64_t width, Buffer<Word>& out) const {
    if (block_.rows < block_.lanes) out.clear();
    lay_words(x, stride / 2, block_.rows, width / 2, out.get());
  }

  // tile[j][lane] = x_j . y_lane for the keys j of [key, key + keys).
  void multiply_keys(const Rows<Half>& x, std::int64_t width, std::int64_t key, std::int64_t keys,
                     const Buffer<Word>& y, float* tile) {
    const Half* data = x.at(block_.sample, block_.within, key);
    any_.multiply(keys, block_.lanes, width, data, x.row, y.get(), width / 2 * PANEL, tile, LANES, false);
  }

  // out [rows][width] += tile^T x, the tile in pairs_, x one row per key.
  void mix_keys(std::int64_t key, std::int64_t keys, const Rows<Half>& x) {
    turn_pairs(pairs_.get(), PAIRS, keys, block_.lanes, rounded_.get(), LANES);
    kernels_.pair_rows(x.at(block_.sample, block_.within, key), x.row, keys, width_, keys_.get(), PAIRS);
    kernels_.multiply(block_.lanes, width_, half_depth(keys), rounded_.get(), LANES, keys_.get(), PAIRS, out_.get(),
                      width_, mixed_);
    mixed_ = true;
  }

  // c [filled][columns] = (or +=) tile x, x one row per query in pairs; rows from `keys` on are zeros.
  void mix_rows(const float* tile, std::int64_t keys, std::int64_t filled, const Buffer<Word>& x, std::int64_t columns,
                float* c, bool accumulate) {
    // Lanes without a row are left out: they hold NaN where a key is not finite.
    kernels_.round_rows(tile, LANES, keys, block_.rows, rounded_.get(), LANES, nullptr);
    kernels_.multiply(half_rows(keys), columns, half_depth(block_.rows), rounded_.get(), LANES, x.get(), PAIRS, c,
                      columns, accumulate);
    if (filled > half_rows(keys)) std::fill(c + half_rows(keys) * columns, c + filled * columns, 0.0f);
  }

  void write_row(std::int64_t i, float scale, Half* row) const {
    if (mixed_) {
      kernels_.round_scaled(out_.get() + i * width_, width_, scale, row);
    } else {
      std::fill_n(row, width_, Half{0});
    }
  }

  const Bfloat16& kernels_ = *bfloat16();
  const Session session_;
  const Mix<Half>& problem_;
  const QueryBlock<Half>& block_;
  const Rows<Half>* grad_;
  std::int64_t width_;  // of the output: mixed or dq
  Buffer<Word> across_, grad_across_, queries_, grads_, pairs_, keys_;
  Buffer<Half> rounded_;
  Buffer<float> out_;
  AnyRows any_;
  HalfEdges edges_;
  float sum_[LANES] = {};                  // of the rounded weights of each lane
  bool laid_ = false, grad_laid_ = false;  // whether the rows of this block are in their places
  bool mixed_ = false;                     // whether out_ holds something of this block
};

}  // namespace glomo
