// The products of affinity_mix, float and double: of whole tiles, or, where a tile has few edges, over these alone
// (edges.h, sparse.inl). half_products.h has those of bfloat16.
#pragma once

#include <algorithm>
#include <vector>

#include "affinity_mix.h"
#include "edges.h"
#include "panels.h"
#include "scratch.h"
#include "screen.h"

namespace glomo {

// Where dk and dv are added up: in their own places.
template <class Element>
class Accumulators {
 public:
  Accumulators(const Mix<Element>& problem, int) : heads_(problem.batch * problem.heads) {}
  std::int64_t heads() const { return heads_; }

 private:
  std::int64_t heads_;
};

// Rows of dk and dv become zeros.
template <class Element>
void clear_keys(const Mix<Element>& problem, std::int64_t keys, Element* dk, Element* dv) {
  std::fill_n(dk, keys * problem.width, Element(0));
  std::fill_n(dv, keys * problem.values, Element(0));
}

// Products of the block that `block` has loaded last, which is told by `begin`. Tiles are [keys][LANES].
template <class T>
class Products {
 public:
  // grad: that of mixed, or null in the forward pass.
  Products(const Mix<T>& problem, const QueryBlock<T>& block, const RoundedKeys<T>& keys, const Rows<T>* grad)
      : problem_(problem), block_(block), grad_(grad), width_(grad ? problem.width : problem.values),
        pitch_(padded<T>(width_)), across_(problem.width * LANES), out_(LANES * pitch_), lines_(LANES * pitch_),
        tile_(grad ? 0 : LANES * LANES), grad_across_(grad ? LANES * problem.values : 0),
        queries_(grad ? LANES * pitch_ : 0), grads_(grad ? LANES * padded<T>(problem.values) : 0),
        edges_(static_cast<std::size_t>(grad ? blocks(problem.units) : 1)), screen_(problem, block, keys) {}

  void begin() {
    laid_ = grad_laid_ = false;
    screen_.begin();
    std::fill_n(out_.get(), block_.rows * pitch_, T(0));
    if (!grad_) return;
    q_ = lines(queries(), problem_.q.row, block_.rows, problem_.width, queries_.get());
    d_mixed_ = lines(grads(), grad_->row, block_.rows, problem_.values, grads_.get());
  }

  // q . k where it may exceed theta. Returns false where it nowhere does: then the tile holds nothing of use. Keys that
  // no lane of a panel sees are not computed.
  bool scores(std::int64_t key, std::int64_t keys, T* tile) {
    const Found found = screen_.scores(key, keys, tile);
    if (found != Found::too_many) return found == Found::scores;
    if (!laid_) lay(queries(), problem_.q.row, problem_.width, across_);
    laid_ = true;
    multiply_keys(problem_.k, problem_.width, key, keys, across_, tile);
    return true;
  }

  // The same of the edges that `words` names, a word for each key, and `none` elsewhere; false where that is slower.
  bool scores_of(const std::uint64_t* words, std::int64_t key, std::int64_t keys, T none, T* tile) {
    const bool few = problem_.width >= NARROWEST && 5 * count_bits(words, keys) <= 2 * keys * block_.rows;
    if (!few && problem_.kind != Kind::topk) return false;
    std::fill_n(tile, keys * LANES, none);
    const T* k = problem_.k.at(block_.sample, block_.within, key);
    simd<T>().dots(words, keys, k, problem_.k.row, q_.data, q_.pitch, problem_.width, tile);
    return true;
  }

  // Adds squares^T v to the output. Returns the rows that have an edge, a bit for each.
  std::uint64_t add_values(std::int64_t key, std::int64_t keys, const T* roots) {
    simd<T>().square(roots, keys, block_.lanes, tile_.get());
    edges_[0].find(tile_.get(), keys, block_.rows);
    mix_keys(edges_[0], tile_.get(), key, keys, problem_.v, problem_.values);
    return edges_[0].rows();
  }

  // Whether the backward pass has a use for where the edges are.
  bool marks_edges() const { return true; }

  // Those that `add_values` has added last, a word for each key.
  const std::uint64_t* added(std::int64_t, const T*) const { return edges_[0].of_keys(); }

  // Whether their scores are soon made again.
  bool very_few() const { return problem_.width >= NARROWEST && edges_[0].very_few(); }

  // Rows of the output, divided by the sums of their weights.
  void write(const double* sum, T* mixed) const {
    for (std::int64_t i = 0; i < block_.rows; ++i) {
      const T scale = static_cast<T>(1 / (sum[i] + EPSILON));
      for (std::int64_t d = 0; d < width_; ++d) mixed[i * width_ + d] = out_.get()[i * pitch_ + d] * scale;
    }
  }

  // v . grad where there are edges, and, unless these are few, elsewhere.
  void gradients(std::int64_t key, std::int64_t keys, const T* roots, T* tile) {
    Edges& found = edges(key);
    found.find(roots, keys, block_.rows);
    if (found.few()) {
      const T* v = problem_.v.at(block_.sample, block_.within, key);
      std::fill_n(tile, keys * LANES, T(0));
      simd<T>().dots(found.of_keys(), keys, v, problem_.v.row, d_mixed_.data, d_mixed_.pitch, problem_.values, tile);
      return;
    }
    if (!grad_laid_) lay(grads(), grad_->row, problem_.values, grad_across_);
    grad_laid_ = true;
    multiply_keys(problem_.v, problem_.values, key, keys, grad_across_, tile);
  }

  // Adds slope^T k to dq.
  void add_dq(std::int64_t key, std::int64_t keys, const T* slope) {
    mix_keys(edges(key), slope, key, keys, problem_.k, problem_.width);
  }

  // dv += share grad, dk += slope q: rows of the keys from `key` on. first, last: whether nothing has been added to
  // these before, or will be later.
  void add_dk_dv(std::int64_t key, std::int64_t keys, const T* slope, const T* share, bool first, bool,
                 const Accumulators<T>&, T* dk, T* dv) {
    if (first) clear_keys(problem_, std::min(LANES, problem_.units - key), dk, dv);
    mix_rows(edges(key), share, key, keys, d_mixed_, problem_.values, dv);
    mix_rows(edges(key), slope, key, keys, q_, problem_.width, dk);
  }

  void write_dq(T* dq) const {
    for (std::int64_t i = 0; i < block_.rows; ++i) std::copy_n(out_.get() + i * pitch_, width_, dq + i * width_);
  }

 private:
  const T* queries() const { return problem_.q.at(block_.sample, block_.within, block_.first); }
  const T* grads() const { return grad_->at(block_.sample, block_.within, block_.first); }
  Edges& edges(std::int64_t key) { return edges_[static_cast<std::size_t>(tile_of(key))]; }

  // Rows of the block in panels of lanes.
  void lay(const T* x, std::int64_t stride, std::int64_t width, Buffer<T>& out) const {
    if (block_.rows < block_.lanes) out.clear();
    lay_across(x, stride, block_.rows, width, out.get());
  }

  // tile[j][lane] = x_j . y_lane for the keys j of [key, key + keys); 0 for keys that no lane of a panel sees.
  void multiply_keys(const Rows<T>& x, std::int64_t width, std::int64_t key, std::int64_t keys, const Buffer<T>& y,
                     T* tile) const {
    const T* data = x.at(block_.sample, block_.within, key);
    const bool cut = block_.crossed(key, keys);
    const std::int64_t panel = simd<T>().columns;
    for (std::int64_t lane = 0; lane < block_.lanes; lane += panel) {
      const std::int64_t some = std::min(panel, block_.lanes - lane);
      const auto [from, to] = cut ? block_.seen(lane, some, key, keys) : std::pair<std::int64_t, std::int64_t>{0, keys};
      for (std::int64_t j = 0; j < keys; ++j) {
        if (j < from || j >= to) std::fill_n(tile + j * LANES + lane, some, T(0));
      }
      if (from >= to) continue;
      simd<T>().multiply(to - from, some, width, data + from * x.row, x.row, false, y.get() + lane * width, panel,
                         tile + from * LANES + lane, LANES, false);
    }
  }

  // out [rows][columns] += tile^T x, x one row per key; the sum goes over the keys that a row may see.
  void mix_keys(const Edges& edges, const T* tile, std::int64_t key, std::int64_t keys, const Rows<T>& x,
                std::int64_t columns) {
    const T* first = x.at(block_.sample, block_.within, key);
    if (edges.few()) {
      simd<T>().gather(edges.of_rows(), block_.rows, tile, 1, LANES, first, x.row, columns, out_.get(), pitch_);
      return;
    }
    const auto [data, pitch] = lines(first, x.row, keys, columns, lines_.get());
    if (!block_.crossed(key, keys)) {
      simd<T>().multiply(block_.rows, columns, keys, tile, LANES, true, data, pitch, out_.get(), pitch_, true);
      return;
    }
    for (std::int64_t row = 0; row < block_.rows; row += LINE<T>) {
      const std::int64_t rows = std::min(LINE<T>, block_.rows - row);
      const auto [from, to] = block_.seen(row, rows, key, keys);
      if (from >= to) continue;
      simd<T>().multiply(rows, columns, to - from, tile + from * LANES + row, LANES, true, data + from * pitch, pitch,
                         out_.get() + row * pitch_, pitch_, true);
    }
  }

  // c [keys][columns] += tile x, x one row per query; the sum goes over the rows that may see a key.
  void mix_rows(const Edges& edges, const T* tile, std::int64_t key, std::int64_t keys, const Lines<T>& x,
                std::int64_t columns, T* c) const {
    if (edges.few()) {
      simd<T>().gather(edges.of_keys(), keys, tile, LANES, 1, x.data, x.pitch, columns, c, columns);
      return;
    }
    const std::int64_t step = block_.crossed(key, keys) ? LINE<T> : keys;
    for (std::int64_t j = 0; j < keys; j += step) {
      const std::int64_t some = std::min(step, keys - j);
      const auto [from, to] = block_.seeing(key + j, some);
      if (from >= to) continue;
      simd<T>().multiply(some, columns, to - from, tile + j * LANES + from, LANES, false, x.data + from * x.pitch,
                         x.pitch, c + j * columns, columns, true);
    }
  }

  const Mix<T>& problem_;
  const QueryBlock<T>& block_;
  const Rows<T>* grad_;
  std::int64_t width_, pitch_;  // of the output: mixed or dq
  Buffer<T> across_, out_, lines_, tile_, grad_across_, queries_, grads_;
  Lines<T> q_ = {}, d_mixed_ = {};
  std::vector<Edges> edges_;
  Screen<T> screen_;
  bool laid_ = false, grad_laid_ = false;  // whether across_, grad_across_ hold the rows of this block
};

}  // namespace glomo
