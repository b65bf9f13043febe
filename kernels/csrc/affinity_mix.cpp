// affinity_mix, forward and backward: scores of a block of query rows against tiles of keys, what `tile.inl` does
// to them, and products with them (products.h, half_products.h). Keys that no row sees are not touched, and of tiles
// without a weight only the scores are computed, in the backward pass not even these. Every number is computed by the
// same operations in the same order whichever thread does it, so the result does not depend on their number.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "affinity_mix.h"
#include "half_products.h"
#include "kept.h"
#include "largest.h"
#include "live.h"
#include "products.h"
#include "threads.h"
#include "turns.h"

namespace glomo {
namespace {

// Roots of all keys of a block under Kind::topk: those of the largest squares of each row stay.
template <class Element>
class Choice {
 public:
  using T = Sum<Element>;

  explicit Choice(const Mix<Element>& problem) : problem_(problem) {
    row_.reserve(static_cast<std::size_t>(problem.units));
    candidates_.reserve(static_cast<std::size_t>(problem.units));
  }

  // roots [units][LANES]; sum[lane] becomes that of the squares that stay.
  void apply(const QueryBlock<Element>& block, T* roots, double* sum) {
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
  const Mix<Element>& problem_;
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
template <class Element, class T>
void clear_unseen(const QueryBlock<Element>& block, std::int64_t begin, std::int64_t units, T* kept) {
  const std::int64_t end = std::max(begin, block.high);
  std::fill_n(kept, begin * LANES, T(0));
  std::fill_n(kept + end * LANES, (units - end) * LANES, T(0));
  for (std::int64_t key = begin; key < end; ++key) {
    std::fill_n(kept + key * LANES + block.lanes, LANES - block.lanes, T(0));
  }
}

}  // namespace

template <class Element>
void affinity_mix(const Mix<Element>& problem, Element* mixed, Sum<Element>* norm, std::uint8_t* live,
                  std::int32_t* edges, Sum<Element>* entropy, Sum<Element>* for_backward, Keep most, int threads) {
  using T = Sum<Element>;
  const std::int64_t per_head = blocks(problem.rows), tiles = blocks(problem.units);
  const bool choose = problem.kind == Kind::topk;
  const Kept<T> kept(problem, for_backward, most);
  std::fill_n(live, problem.batch * problem.heads * per_head * tiles, std::uint8_t{0});  // not memset: it may be null
  RoundedKeys<Element> rounded(problem, threads);
  parallel(problem.batch * problem.heads * per_head, threads, [&](const auto& next) {
    QueryBlock<Element> block(problem, threads);
    Products<Element> products(problem, block, rounded, nullptr);
    Choice<Element> choice(problem);
    // All roots of the block only where they are kept, or are to be compared with each other.
    Buffer<T> roots(LANES * (choose && most != Keep::roots ? problem.units : LANES));
    for (std::int64_t item = next(); item >= 0; item = next()) {
      block.load(item);
      products.begin();
      double sum[LANES] = {}, log_sum[LANES] = {};
      std::int32_t count[LANES] = {};
      Keep keep = most == Keep::edges && !products.marks_edges() ? Keep::nothing : most;
      if (keep == Keep::edges) kept.clear(block.head, block.index);
      T* own = keep == Keep::roots ? kept.roots(block.head, block.index) : roots.get();
      const auto tile_at = [&](std::int64_t key) { return own + (keep == Keep::roots || choose ? key * LANES : 0); };
      const auto put_edges = [&](std::int64_t key, std::int64_t keys) {
        kept.put(block.head, block.index, key, keys, products.added(keys, tile_at(key)));
      };
      const auto add = [&](std::int64_t key, std::int64_t keys) {
        if (edges) add_stats(tile_at(key), keys, block.rows, count, log_sum);
        mark_live(block, products.add_values(key, keys, tile_at(key)), key, per_head, tiles, live);
        if (keep == Keep::edges) put_edges(key, keys);
      };
      const std::int64_t begin = block.low / LANES * LANES;
      bool sampled = false;
      for (std::int64_t key = begin; key < block.high; key += LANES) {
        const std::int64_t keys = block.keys_from(key);
        const bool any_score = products.scores(key, keys, tile_at(key));
        if (!any_score && keep == Keep::roots) std::fill_n(tile_at(key), keys * LANES, T(0));
        const bool alive = any_score && block.roots(key, keys, tile_at(key), sum);
        if (choose) continue;
        if (alive) add(key, keys);
        if (alive && !sampled && keep == Keep::roots && products.very_few()) {
          keep = Keep::edges;  // in the other tiles, it seems, as few as in the first one
          own = roots.get();
          kept.clear(block.head, block.index);
          put_edges(key, keys);
        }
        sampled |= alive;
      }
      if (keep == Keep::roots) clear_unseen(block, begin, problem.units, own);
      kept.set(block.head, block.index, keep);
      rounded.finished(block.head);
      if (choose) {
        choice.apply(block, own, sum);
        for (std::int64_t key = begin; key < block.high; key += LANES) {
          const std::int64_t keys = block.keys_from(key);
          if (any(tile_at(key), keys, block.rows)) add(key, keys);
        }
      }
      const std::int64_t row = block.head * problem.rows + block.first;
      products.write(sum, mixed + row * problem.values);
      for (std::int64_t i = 0; i < block.rows; ++i) {
        norm[row + i] = static_cast<T>(sum[i]);
        if (edges) {
          edges[row + i] = count[i];
          entropy[row + i] = static_cast<T>(sum[i] == 0 ? 0 : std::log(sum[i]) - log_sum[i] / sum[i]);
        }
      }
    }
  });
}

template <class Element>
void affinity_mix_backward(const Mix<Element>& problem, const Rows<Element>& grad, const Sum<Element>* norm,
                           const std::uint8_t* live, const Sum<Element>* from_forward, Keep most, Element* dq,
                           Element* dk, Element* dv, Sum<Element>* dtheta, int threads) {
  using T = Sum<Element>;
  const std::int64_t heads = problem.batch * problem.heads;
  const std::int64_t per_head = blocks(problem.rows), tiles = blocks(problem.units);
  const std::vector<std::uint8_t> live_of_blocks = live_blocks(problem, live);
  Turns turns(heads, per_head, tiles, live_of_blocks.data());
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      if (!turns.none(head, tile)) continue;
      const std::int64_t key = tile * LANES, keys = std::min(LANES, problem.units - key);
      const std::int64_t unit = head * problem.units + key;
      clear_keys(problem, keys, dk + unit * problem.width, dv + unit * problem.values);
    }
  }
  // A score that is no edge's, whatever theta.
  const T none = problem.kind == Kind::relu ? -std::numeric_limits<T>::infinity() : T(0);
  const Kept<const T> kept(problem, from_forward, most);
  const Accumulators<Element> sums(problem, threads);
  RoundedKeys<Element> rounded(problem, threads);
  parallel(heads * per_head, threads, [&](const auto& next) {
    QueryBlock<Element> block(problem, threads);
    Products<Element> products(problem, block, rounded, &grad);
    Choice<Element> choice(problem);
    const std::int64_t all = LANES * problem.units;
    Buffer<T> computed(all), slopes(all), share(LANES * LANES);
    for (std::int64_t item = next(); item >= 0; item = next()) {
      block.load(item);
      products.begin();
      const std::uint8_t* alive = live_of_blocks.data() + (block.head * per_head + block.index) * tiles;
      T row_norm[LANES], inverse[LANES], mean[LANES];
      double total[LANES] = {}, squares[LANES] = {}, sum[LANES] = {};
      const std::int64_t row = block.head * problem.rows + block.first;
      const std::int64_t begin = block.low / LANES * LANES;
      const auto for_tiles = [&](bool dead_too, const auto& step) {
        for (std::int64_t key = begin; key < block.high; key += LANES) {
          if (dead_too || alive[tile_of(key)]) step(key, block.keys_from(key));
        }
      };
      const Keep keep = kept.what(block.head, block.index);
      const T* roots = keep == Keep::roots ? kept.roots(block.head, block.index) : computed.get();
      if (keep != Keep::roots) {
        const bool choose = problem.kind == Kind::topk && keep == Keep::nothing;
        for_tiles(choose, [&](std::int64_t key, std::int64_t keys) {
          T* tile = computed.get() + key * LANES;
          std::uint64_t words[LANES];
          if (keep == Keep::edges) kept.get(block.head, block.index, key, keys, words);
          if ((keep == Keep::edges && products.scores_of(words, key, keys, none, tile)) ||
              products.scores(key, keys, tile)) {
            block.roots(key, keys, tile, squares);
          } else {
            std::fill_n(tile, keys * LANES, T(0));
          }
        });
        if (choose) choice.apply(block, computed.get(), squares);
      }
      for (std::int64_t i = 0; i < LANES; ++i) {
        // A score that is made again may be rounded in another way than in the forward pass, and so is the sum.
        const T known = keep != Keep::roots ? static_cast<T>(squares[i]) : i < block.rows ? norm[row + i] : T(0);
        row_norm[i] = static_cast<T>(static_cast<double>(known) + EPSILON);
        inverse[i] = 1 / row_norm[i];
        if (inverse[i] == 0) row_norm[i] = 1;  // a sum that has overflowed: nothing is left of the weights
      }
      rounded.finished(block.head);

      for_tiles(false, [&](std::int64_t key, std::int64_t keys) {
        T* product = slopes.get() + key * LANES;
        products.gradients(key, keys, roots + key * LANES, product);
        simd<T>().weighted_sum(roots + key * LANES, product, keys, block.lanes, row_norm, inverse, total);
      });
      for (std::int64_t i = 0; i < LANES; ++i) mean[i] = static_cast<T>(total[i]);

      for_tiles(false, [&](std::int64_t key, std::int64_t keys) {
        T* slope = slopes.get() + key * LANES;
        simd<T>().slopes(roots + key * LANES, slope, keys, block.lanes, row_norm, inverse, mean, share.get(),
                         sum);
        products.add_dq(key, keys, slope);
        const std::int64_t unit = block.head * problem.units + key, tile = tile_of(key);
        const bool first = turns.wait(block.head, block.index, tile);
        if (first) turns.wait_for_earlier(block.head, sums.heads(), tile);
        products.add_dk_dv(key, keys, slope, share.get(), first, turns.last(block.head, block.index, tile), sums,
                           dk + unit * problem.width, dv + unit * problem.values);
        turns.done(block.head, block.index, tile);
      });
      products.write_dq(dq + row * problem.width);
      for (std::int64_t i = 0; dtheta && i < block.rows; ++i) dtheta[row + i] = static_cast<T>(-sum[i]);
    }
  });
}

#define INSTANTIATE(E)                                                                                                \
  template void affinity_mix<E>(const Mix<E>&, E*, Sum<E>*, std::uint8_t*, std::int32_t*, Sum<E>*, Sum<E>*, Keep,      \
                                int);                                                                                 \
  template void affinity_mix_backward<E>(const Mix<E>&, const Rows<E>&, const Sum<E>*, const std::uint8_t*,            \
                                         const Sum<E>*, Keep, E*, E*, E*, Sum<E>*, int);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Half)

}  // namespace glomo
