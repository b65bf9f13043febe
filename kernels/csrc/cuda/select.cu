// The k-th largest square of every row, exactly: the choice of edges for `keep` and for kind topk.
//
// Up to 32 edges: the row's best squares lie sorted across the lanes of its warp, and one walk over the scores inserts
// what is better. More: radix search on the bits of the squares, 7 at a time from the top, with a histogram per row
// and one walk per digit, until a bucket need not be divided; a last walk finds the columns of ties, if any are cut.
// Histograms are of integers, so that the order of their atomics does not matter.

#include "kernels.h"
#include "scores.h"

namespace glomo::cuda {
namespace {

constexpr int DIGIT = 7, BINS = 1 << DIGIT, BINS_PER_LANE = BINS / LANES;

template <class T>
struct SelectShared {
  using C = Compute<T>;
  struct Best {
    C square[ROWS][LANES];
    int column[ROWS][LANES];
  };
  Shared<T> walk;
  union {
    Best best;
    unsigned histogram[ROWS][BINS];
  };
};

// count <= 32. Equal squares keep their order: the first of them, with the lowest column, is the better one.
template <class T>
__device__ void select_few(Walk<T>& walk, SelectShared<T>& shared, int count, Compute<T>* limits, std::int32_t* last) {
  using C = Compute<T>;
  const int lane = walk.lane();
  for (int s = 0; s < ROWS_PER_WARP; ++s) {
    shared.best.square[walk.row(s)][lane] = C(0);
    shared.best.column[walk.row(s)][lane] = -1;
  }
  walk.sweep([&](int, int r, int column) {
    C best = shared.best.square[r][lane];
    int best_column = shared.best.column[r][lane];
    C limit = __shfl_sync(ALL, best, count - 1);
#pragma unroll 1
    for (int n = 0; n < Tile<T>::COLUMNS; n += LANES) {
      const C root = walk.root(r, column, column + n + lane), square = root * root;
      for (unsigned better = __ballot_sync(ALL, square > limit); better != 0; better &= better - 1) {
        const int from = __ffs(static_cast<int>(better)) - 1;
        const C candidate = __shfl_sync(ALL, square, from);
        if (!(candidate > limit)) continue;  // the limit has risen since
        const int place = __popc(__ballot_sync(ALL, best >= candidate));
        const C previous = __shfl_up_sync(ALL, best, 1);
        const int previous_column = __shfl_up_sync(ALL, best_column, 1);
        if (lane > place) {
          best = previous;
          best_column = previous_column;
        } else if (lane == place) {
          best = candidate;
          best_column = column + n + from;
        }
        limit = __shfl_sync(ALL, best, count - 1);
      }
    }
    shared.best.square[r][lane] = best;
    shared.best.column[r][lane] = best_column;
  });
  __syncwarp();
  if (walk.owns_real_row()) {
    const int r = walk.own_row();
    limits[walk.place(r)] = shared.best.square[r][count - 1];
    last[walk.place(r)] = shared.best.column[r][count - 1];
  }
}

// The bin of `histogram` that holds the need-th largest, counted from the last bin: (bin, in bins above it, in it).
// Bin -1 if there are fewer than `need`. The same in every lane.
struct Found {
  int bin;
  unsigned above, inside;
};

__device__ inline Found find_bin(const unsigned* histogram, unsigned need, int lane) {
  unsigned own = 0;
#pragma unroll
  for (int m = 0; m < BINS_PER_LANE; ++m) own += histogram[BINS - 1 - (lane * BINS_PER_LANE + m)];
  unsigned upto = own;
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) {
    const unsigned before = __shfl_up_sync(ALL, upto, step);
    if (lane >= step) upto += before;
  }
  const unsigned reached = __ballot_sync(ALL, upto >= need);
  if (reached == 0) return {-1, 0, 0};
  const int owner = __ffs(static_cast<int>(reached)) - 1;
  Found found = {-1, upto - own, 0};
#pragma unroll
  for (int m = 0; m < BINS_PER_LANE; ++m) {
    const int bin = BINS - 1 - (lane * BINS_PER_LANE + m);
    if (found.bin < 0) {
      found.inside = histogram[bin];
      if (found.above + found.inside >= need) {
        found.bin = bin;
      } else {
        found.above += found.inside;
      }
    }
  }
  return {__shfl_sync(ALL, found.bin, owner), __shfl_sync(ALL, found.above, owner),
          __shfl_sync(ALL, found.inside, owner)};
}

enum class Search : int { open, tied, done };

template <class T>
__device__ void select_many(Walk<T>& walk, SelectShared<T>& shared, int count, Compute<T>* limits,
                            std::int32_t* last) {
  using C = Compute<T>;
  using Bits = decltype(bits(C(0)));
  const int lane = walk.lane();
  // Of the row of this lane: the digits of the limit that are known, squares still to be found, column of the last tie.
  Bits prefix = 0;
  int need = count, behind = -1;
  Search state = walk.owns_real_row() ? Search::open : Search::done;

  bool open = true;
  for (int top = 8 * sizeof(C) - 1; open && top > 0;) {  // squares have no sign
    const int shift = top > DIGIT ? top - DIGIT : 0, bins = 1 << (top - shift);
    for (int s = 0; s < ROWS_PER_WARP; ++s) {
      for (int bin = lane; bin < BINS; bin += LANES) shared.histogram[walk.row(s)][bin] = 0;
    }
    __syncwarp();
    walk.sweep([&](int s, int r, int column) {
      if (walk.of(s, static_cast<int>(state)) != static_cast<int>(Search::open)) return;
      const Bits known = walk.of(s, prefix) >> top;
      for_each_column<T>(column, lane, [&](int j) {
        const C root = walk.root(r, column, j), square = root * root;
        if (square > C(0) && (bits(square) >> top) == known) {
          atomicAdd(&shared.histogram[r][static_cast<int>(bits(square) >> shift) & (bins - 1)], 1u);
        }
      });
    });
    __syncwarp();
    for (int s = 0; s < ROWS_PER_WARP; ++s) {
      const Found found = find_bin(shared.histogram[walk.row(s)], static_cast<unsigned>(walk.of(s, need)), lane);
      if (!walk.owns(s) || state != Search::open) continue;
      if (found.bin < 0) {  // fewer positive squares than edges wanted
        state = Search::done;
        continue;
      }
      need -= static_cast<int>(found.above);
      prefix |= static_cast<Bits>(found.bin) << shift;
      if (static_cast<int>(found.inside) == need) {  // all of this bin: from its lower end on
        behind = INT32_MAX;
        state = Search::done;
      } else if (shift == 0) {
        state = Search::tied;
      }
    }
    open = __syncthreads_or(state == Search::open) != 0;
    top = shift;
  }

  if (__syncthreads_or(state == Search::tied)) {
    walk.sweep([&](int s, int r, int column) {
      int ties = walk.of(s, state == Search::tied ? need : 0), place = -1;
      const C limit = from_bits(walk.of(s, prefix));
      for_each_column<T>(column, lane, [&](int j) {
        const C root = walk.root(r, column, j), square = root * root;
        for (unsigned equal = __ballot_sync(ALL, square == limit); equal != 0 && ties > 0; equal &= equal - 1) {
          place = j - lane + __ffs(static_cast<int>(equal)) - 1;
          --ties;
        }
      });
      if (walk.owns(s) && state == Search::tied && place >= 0) {
        need = ties;
        behind = place;
      }
    });
  }
  if (walk.owns_real_row()) {
    limits[walk.place(walk.own_row())] = from_bits(prefix);
    last[walk.place(walk.own_row())] = behind;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    select_kernel(const Problem<T> problem, std::int64_t keep, const std::int64_t* topk, Compute<T>* limits,
                  std::int32_t* last) {
  static_assert(sizeof(SelectShared<T>) <= MOST_SHARED);
  auto& shared = *reinterpret_cast<SelectShared<T>*>(dynamic_shared());
  Walk<T> walk(problem, shared.walk);
  std::int64_t count = keep > 0 && keep < problem.units ? keep : problem.units;
  if (topk != nullptr) {
    const std::int64_t best = topk[walk.sample()];
    count = best < 1 ? 1 : best < count ? best : count;
  }
  if (count <= LANES) {
    select_few(walk, shared, static_cast<int>(count), limits, last);
  } else {
    select_many(walk, shared, static_cast<int>(count), limits, last);
  }
}

}  // namespace

void select(const Affinity& problem, std::int64_t keep, const std::int64_t* topk, void* limits, std::int32_t* last,
            Stream stream) {
  with_type(problem.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Problem<T> p(problem);
    launch("affinity_graph select_kernel", select_kernel<T>, p.blocks(), sizeof(SelectShared<T>), stream, p, keep,
           topk, static_cast<Compute<T>*>(limits), last);
  });
}

}  // namespace glomo::cuda
