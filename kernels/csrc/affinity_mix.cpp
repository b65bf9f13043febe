// affinity_mix, forward and backward: scores of a block of query rows against tiles of keys, what `tile.inl` does
// to them, and products with them. Keys that no row sees are not touched, and of tiles without a weight only the
// scores are computed, in the backward pass not even these; where edges are few, products go over them alone
// (edges.h, sparse.inl). Every number is computed by the same operations in the same order whichever thread does it,
// so the result does not depend on their number.

#include "affinity_mix.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "edges.h"
#include "largest.h"
#include "live.h"
#include "threads.h"
#include "turns.h"

namespace glomo {
namespace {

// Roots of all keys of a block under Kind::topk: those of the largest squares of each row stay.
template <class T>
class Choice {
 public:
  explicit Choice(const Mix<T>& problem) : problem_(problem) {
    row_.reserve(static_cast<std::size_t>(problem.units));
    candidates_.reserve(static_cast<std::size_t>(problem.units));
  }

  // roots [units][LANES]; sum[lane] becomes that of the squares that stay.
  void apply(const QueryBlock<T>& block, T* roots, double* sum) {
    for (std::int64_t i = 0; i < block.rows; ++i) {
      row_.clear();
      for (std::int64_t j = block.begin(i); j < block.end(i); ++j) row_.push_back(roots[j * LANES + i]);
      keep_largest(row_.data(), static_cast<std::int64_t>(row_.size()), problem_.topk[block.sample], candidates_);
      sum[i] = 0;
      for (std::int64_t j = block.begin(i); j < block.end(i); ++j) {
        const T root = row_[static_cast<std::size_t>(j - block.begin(i))];
        roots[j * LANES + i] = root;
        sum[i] += static_cast<double>(root * root);
      }
    }
  }

 private:
  const Mix<T>& problem_;
  std::vector<T> row_, candidates_;
};

template <class T>
bool any(const T* tile, std::int64_t keys, std::int64_t rows) {
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) {
      if (tile[j * LANES + i] * tile[j * LANES + i] != T(0)) return true;
    }
  }
  return false;
}

// c [rows][columns] += tile^T x, x one row per key, `stride` apart; the sum goes over the keys that a row may see.
template <class T>
void mix_keys(const QueryBlock<T>& block, const Edges& edges, const T* tile, std::int64_t key, std::int64_t count,
              const T* x, std::int64_t stride, T* scratch, std::int64_t columns, T* c, std::int64_t ldc) {
  if (edges.few()) {
    simd<T>().gather(edges.of_rows(), block.rows, tile, 1, LANES, x, stride, columns, c, ldc);
    return;
  }
  const auto [data, pitch] = lines(x, stride, count, columns, scratch);
  if (!block.crossed(key, count)) {
    simd<T>().multiply(block.rows, columns, count, tile, LANES, true, data, pitch, c, ldc, true);
    return;
  }
  for (std::int64_t row = 0; row < block.rows; row += LINE<T>) {
    const std::int64_t rows = std::min(LINE<T>, block.rows - row);
    const auto [from, to] = block.seen(row, rows, key, count);
    if (from >= to) continue;
    simd<T>().multiply(rows, columns, to - from, tile + from * LANES + row, LANES, true, data + from * pitch, pitch,
                       c + row * ldc, ldc, true);
  }
}

// c [keys][columns] += tile x, x one row per query; the sum goes over the rows that may see a key.
template <class T>
void mix_rows(const QueryBlock<T>& block, const Edges& edges, const T* tile, std::int64_t key, std::int64_t count,
              const Lines<T>& x, std::int64_t columns, T* c) {
  if (edges.few()) {
    simd<T>().gather(edges.of_keys(), count, tile, LANES, 1, x.data, x.pitch, columns, c, columns);
    return;
  }
  const std::int64_t step = block.crossed(key, count) ? LINE<T> : count;
  for (std::int64_t j = 0; j < count; j += step) {
    const std::int64_t keys = std::min(step, count - j);
    const auto [from, to] = block.seeing(key + j, keys);
    if (from >= to) continue;
    simd<T>().multiply(keys, columns, to - from, tile + j * LANES + from, LANES, false, x.data + from * x.pitch, x.pitch,
                       c + j * columns, columns, true);
  }
}

// Number of edges and sum of a ln a of each row.
template <class T>
void add_stats(const T* roots, std::int64_t keys, std::int64_t rows, std::int32_t* edges, double* entropy) {
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const T square = roots[j * LANES + i] * roots[j * LANES + i];
      if (!(square > T(0))) continue;
      ++edges[i];
      entropy[i] += static_cast<double>(square) * std::log(static_cast<double>(square));
    }
  }
}

// Zeros for the roots that are kept and that nobody computes: keys outside of begin .. block.high, lanes without a row.
template <class T>
void clear_unseen(const QueryBlock<T>& block, std::int64_t begin, std::int64_t units, T* kept) {
  const std::int64_t end = std::max(begin, block.high);
  std::fill_n(kept, begin * LANES, T(0));
  std::fill_n(kept + end * LANES, (units - end) * LANES, T(0));
  for (std::int64_t key = begin; key < end; ++key) {
    std::fill_n(kept + key * LANES + block.lanes, LANES - block.lanes, T(0));
  }
}

}  // namespace

template <class T>
void affinity_mix(const Mix<T>& problem, T* mixed, T* norm, std::uint8_t* live, std::int32_t* edges, T* entropy,
                  T* kept, int threads) {
  const std::int64_t per_head = blocks(problem.rows), tiles = blocks(problem.units);
  const std::int64_t width = problem.values, pitch = padded<T>(width);
  const bool choose = problem.kind == Kind::topk;
  std::fill_n(live, problem.batch * problem.heads * per_head * tiles, std::uint8_t{0});  // not memset: it may be null
  parallel(problem.batch * problem.heads * per_head, threads, [&](const auto& next) {
    QueryBlock<T> block(problem, threads);
    Choice<T> choice(problem);
    // All roots of the block only where they are kept, or are to be compared with each other.
    const bool whole = choose && !kept;
    Buffer<T> out(LANES * pitch), values(LANES * pitch), roots(LANES * (whole ? problem.units : LANES));
    Buffer<T> squares(LANES * LANES);
    Edges edges_of_tile;
    for (std::int64_t item = next(); item >= 0; item = next()) {
      block.load(item);
      double sum[LANES] = {}, log_sum[LANES] = {};
      std::int32_t count[LANES] = {};
      std::fill_n(out.get(), block.rows * pitch, T(0));
      T* own = kept ? kept + (block.head * per_head + block.index) * problem.units * LANES : roots.get();
      const auto tile_at = [&](std::int64_t key) { return own + (kept || whole ? key * LANES : 0); };
      const auto add = [&](std::int64_t key, std::int64_t keys) {
        if (edges) add_stats(tile_at(key), keys, block.rows, count, log_sum);
        simd<T>().square(tile_at(key), keys, block.lanes, squares.get());
        edges_of_tile.find(squares.get(), keys, block.rows);
        mark_live(block, edges_of_tile, key, per_head, tiles, live);
        mix_keys(block, edges_of_tile, squares.get(), key, keys, problem.v.at(block.sample, block.within, key),
                 problem.v.row, values.get(), width, out.get(), pitch);
      };
      const std::int64_t begin = block.low / LANES * LANES;
      if (kept) clear_unseen(block, begin, problem.units, own);
      for (std::int64_t key = begin; key < block.high; key += LANES) {
        const std::int64_t keys = block.keys_from(key);
        const bool alive = block.score(key, keys, tile_at(key), sum);
        if (alive && !choose) add(key, keys);
      }
      if (choose) {
        choice.apply(block, own, sum);
        for (std::int64_t key = begin; key < block.high; key += LANES) {
          const std::int64_t keys = block.keys_from(key);
          if (any(tile_at(key), keys, block.rows)) add(key, keys);
        }
      }
      for (std::int64_t i = 0; i < block.rows; ++i) {
        const std::int64_t row = block.head * problem.rows + block.first + i;
        const T scale = static_cast<T>(1 / (sum[i] + EPSILON));
        norm[row] = static_cast<T>(sum[i]);
        for (std::int64_t d = 0; d < width; ++d) mixed[row * width + d] = out.get()[i * pitch + d] * scale;
        if (edges) {
          edges[row] = count[i];
          entropy[row] = static_cast<T>(sum[i] > 0 ? std::log(sum[i]) - log_sum[i] / sum[i] : 0);
        }
      }
    }
  });
}

template <class T>
void affinity_mix_backward(const Mix<T>& problem, const Rows<T>& grad, const T* norm, const std::uint8_t* live,
                           const T* kept, T* dq, T* dk, T* dv, T* dtheta, int threads) {
  const std::int64_t heads = problem.batch * problem.heads;
  const std::int64_t per_head = blocks(problem.rows), tiles = blocks(problem.units);
  const std::int64_t width = problem.width, values = problem.values;
  const std::int64_t pitch = padded<T>(width), pitch_v = padded<T>(values);
  const std::vector<std::uint8_t> live_of_blocks = live_blocks(problem, live);
  Turns turns(heads, per_head, tiles, live_of_blocks.data());
  const auto clear = [&](std::int64_t unit, std::int64_t keys) {
    std::fill_n(dk + unit * width, keys * width, T(0));
    std::fill_n(dv + unit * values, keys * values, T(0));
  };
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t key = tile * LANES;
      if (turns.none(head, tile)) clear(head * problem.units + key, std::min(LANES, problem.units - key));
    }
  }
  parallel(heads * per_head, threads, [&](const auto& next) {
    QueryBlock<T> block(problem, threads);
    Choice<T> choice(problem);
    const std::int64_t all = LANES * problem.units;
    Buffer<T> computed(kept ? 0 : all), products(all), grad_across(LANES * values), share(LANES * LANES);
    Buffer<T> queries(LANES * pitch), grads(LANES * pitch_v), key_rows(LANES * pitch), out(LANES * pitch);
    std::vector<Edges> edges(static_cast<std::size_t>(tiles));
    for (std::int64_t item = next(); item >= 0; item = next()) {
      block.load(item);
      const std::uint8_t* alive = live_of_blocks.data() + (block.head * per_head + block.index) * tiles;
      T row_norm[LANES], mean[LANES];
      double total[LANES] = {}, unused[LANES] = {}, sum[LANES] = {};
      const T* grad_rows = grad.at(block.sample, block.within, block.first);
      const std::int64_t row = block.head * problem.rows + block.first;
      for (std::int64_t i = 0; i < LANES; ++i) {
        row_norm[i] = static_cast<T>((i < block.rows ? static_cast<double>(norm[row + i]) : 0) + EPSILON);
      }
      bool laid = false;  // whether grad_across holds the rows of this block
      const auto q = lines(problem.q.at(block.sample, block.within, block.first), problem.q.row, block.rows, width,
                           queries.get());
      const auto d_mixed = lines(grad_rows, grad.row, block.rows, values, grads.get());
      std::fill_n(out.get(), block.rows * pitch, T(0));

      const std::int64_t begin = block.low / LANES * LANES;
      const auto for_tiles = [&](bool dead_too, const auto& step) {
        for (std::int64_t key = begin; key < block.high; key += LANES) {
          if (dead_too || alive[tile_of(key)]) step(key, block.keys_from(key));
        }
      };
      const T* roots = kept ? kept + (block.head * per_head + block.index) * all : computed.get();
      if (!kept) {
        for_tiles(problem.kind == Kind::topk, [&](std::int64_t key, std::int64_t keys) {
          block.score(key, keys, computed.get() + key * LANES, unused);
        });
        if (problem.kind == Kind::topk) choice.apply(block, computed.get(), unused);
      }

      for_tiles(false, [&](std::int64_t key, std::int64_t keys) {
        T* product = products.get() + key * LANES;
        const T* v = problem.v.at(block.sample, block.within, key);
        Edges& found = edges[static_cast<std::size_t>(tile_of(key))];
        found.find(roots + key * LANES, keys, block.rows);
        if (found.few()) {
          simd<T>().dots(found.of_keys(), keys, v, problem.v.row, d_mixed.data, d_mixed.pitch, values, product);
        } else {
          if (!laid) block.lay_across(grad_rows, grad.row, values, grad_across);
          laid = true;
          block.products(v, problem.v.row, key, keys, values, grad_across, product);
        }
        simd<T>().weighted_sum(roots + key * LANES, product, keys, block.lanes, row_norm, total);
      });
      for (std::int64_t i = 0; i < LANES; ++i) mean[i] = static_cast<T>(total[i]);

      for_tiles(false, [&](std::int64_t key, std::int64_t keys) {
        T* slope = products.get() + key * LANES;
        simd<T>().slopes(roots + key * LANES, slope, keys, block.lanes, row_norm, mean, share.get(), sum);
        const Edges& found = edges[static_cast<std::size_t>(tile_of(key))];
        mix_keys(block, found, slope, key, keys, problem.k.at(block.sample, block.within, key), problem.k.row,
                 key_rows.get(), width, out.get(), pitch);
        const std::int64_t unit = block.head * problem.units + key;
        if (turns.wait(block.head, block.index, tile_of(key))) clear(unit, std::min(LANES, problem.units - key));
        mix_rows(block, found, share.get(), key, keys, d_mixed, values, dv + unit * values);
        mix_rows(block, found, slope, key, keys, q, width, dk + unit * width);
        turns.done(block.head, block.index, tile_of(key));
      });
      for (std::int64_t i = 0; i < block.rows; ++i) {
        std::copy_n(out.get() + i * pitch, width, dq + (row + i) * width);
        if (dtheta) dtheta[row + i] = static_cast<T>(-sum[i]);
      }
    }
  });
}

#define INSTANTIATE(T)                                                                                        \
  template void affinity_mix<T>(const Mix<T>&, T*, T*, std::uint8_t*, std::int32_t*, T*, T*, int);           \
  template void affinity_mix_backward<T>(const Mix<T>&, const Rows<T>&, const T*, const std::uint8_t*,         \
                                         const T*, T*, T*, T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace glomo
