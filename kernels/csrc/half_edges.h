// Products of a tile of bfloat16 over its edges alone (sparse.inl), in float: rows are widened where they are needed.
// For processors whose products of bfloat16 do not make whole tiles faster than these whatever their edges.
#pragma once

#include <algorithm>
#include <vector>

#include "affinity_mix.h"
#include "edges.h"
#include "scratch.h"

namespace glomo {

class HalfEdges {
 public:
  // used: else no tile is one to go over its edges. grad: that of mixed, or null in the forward pass.
  HalfEdges(const Mix<Half>& problem, const QueryBlock<Half>& block, const Rows<Half>* grad, bool used)
      : problem_(problem), block_(block), grad_(grad), used_(used),
        edges_(static_cast<std::size_t>(!used ? 0 : grad ? blocks(problem.units) : 1)),
        queries_(used && grad ? LANES * padded<float>(problem.width) : 0),
        grads_(used && grad ? LANES * padded<float>(problem.values) : 0),
        keys_(used && grad ? LANES * padded<float>(std::max(problem.width, problem.values)) : 0) {}

  void begin() { wide_ = false; }

  // Those of a tile of the forward pass.
  const std::uint64_t* find(std::int64_t keys, const float* roots) {
    edges_[0].find(roots, keys, block_.rows);
    return edges_[0].of_keys();
  }

  // In the backward pass: whether the tile from `key` on is one to go over its edges. It says so until the next block.
  bool few(std::int64_t key, std::int64_t keys, const float* roots) {
    if (used_) of_tile(key).find(roots, keys, block_.rows);
    return few(key);
  }
  bool few(std::int64_t key) const { return used_ && edges_[static_cast<std::size_t>(tile_of(key))].few(); }

  // tile[j][lane] = q_lane . k_j at the edges that `words` names, a word for each key, `none` elsewhere; false where
  // that is slower than all of them.
  bool scores(const std::uint64_t* words, std::int64_t key, std::int64_t keys, float none, float* tile) {
    const bool fast = SCORES * count_bits(words, keys) <= keys * block_.rows;
    if (!fast && problem_.kind != Kind::topk) return false;
    std::fill_n(tile, keys * LANES, none);
    dots(words, problem_.k, problem_.width, key, keys, queries(), tile);
    return true;
  }

  // tile[j][lane] = grad_lane . v_j at the edges, 0 elsewhere.
  void gradients(std::int64_t key, std::int64_t keys, float* tile) {
    std::fill_n(tile, keys * LANES, 0.0f);
    dots(of_tile(key).of_keys(), problem_.v, problem_.values, key, keys, grads(), tile);
  }

  // dq [rows][width] += slope^T k.
  void add_dq(std::int64_t key, std::int64_t keys, const float* slope, float* dq) {
    const Lines<float> k = wide(problem_.k, key, keys, problem_.width, keys_);
    simd<float>().gather(of_tile(key).of_rows(), block_.rows, slope, 1, LANES, k.data, k.pitch, problem_.width, dq,
                         problem_.width);
  }

  // dk += slope q, dv += share grad: rows of the keys from `key` on.
  void add_dk_dv(std::int64_t key, std::int64_t keys, const float* slope, const float* share, float* dk, float* dv) {
    add_rows(key, keys, slope, queries(), problem_.width, dk);
    add_rows(key, keys, share, grads(), problem_.values, dv);
  }

 private:
  // Measured on Zen 4: a score by itself costs as much as this many in a whole tile.
  static constexpr std::int64_t SCORES = 4;

  Edges& of_tile(std::int64_t key) { return edges_[static_cast<std::size_t>(tile_of(key))]; }

  // Rows from `row` on, in float.
  Lines<float> wide(const Rows<Half>& x, std::int64_t row, std::int64_t count, std::int64_t width,
                    const Buffer<float>& out) const {
    const Half* first = x.at(block_.sample, block_.within, row);
    const std::int64_t pitch = padded<float>(width);
    for (std::int64_t i = 0; i < count; ++i) simd<float>().widen(first + i * x.row, width, true, out.get() + i * pitch);
    return {out.get(), pitch};
  }

  Lines<float> queries() {
    widen_block();
    return {queries_.get(), padded<float>(problem_.width)};
  }
  Lines<float> grads() {
    widen_block();
    return {grads_.get(), padded<float>(problem_.values)};
  }
  void widen_block() {
    if (wide_) return;
    wide_ = true;
    wide(problem_.q, block_.first, block_.rows, problem_.width, queries_);
    wide(*grad_, block_.first, block_.rows, problem_.values, grads_);
  }

  void dots(const std::uint64_t* words, const Rows<Half>& x, std::int64_t width, std::int64_t key, std::int64_t keys,
            const Lines<float>& y, float* tile) const {
    const Lines<float> rows = wide(x, key, keys, width, keys_);
    simd<float>().dots(words, keys, rows.data, rows.pitch, y.data, y.pitch, width, tile);
  }

  void add_rows(std::int64_t key, std::int64_t keys, const float* tile, const Lines<float>& x, std::int64_t width,
                float* out) {
    simd<float>().gather(of_tile(key).of_keys(), keys, tile, LANES, 1, x.data, x.pitch, width, out, width);
  }

  const Mix<Half>& problem_;
  const QueryBlock<Half>& block_;
  const Rows<Half>* grad_;
  const bool used_;
  std::vector<Edges> edges_;              // of each tile of keys, in the forward pass of the last one
  Buffer<float> queries_, grads_, keys_;  // keys_: rows of a tile, of k or v
  bool wide_ = false;                     // whether queries_, grads_ hold the rows of this block
};

}  // namespace glomo
