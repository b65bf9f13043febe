// Tiles of scores of affinity_graph in shared memory, and the walk of a block of threads over them.
//
// A block of threads has ROWS query rows of one (sample, head) and walks over the keys in tiles of COLUMNS. Each tile
// is computed by the whole block and then read row by row, a warp for every eighth row, lanes along the columns. What
// a warp has to remember of its row s between tiles is in a register of its lane s. No score is stored beyond its tile:
// a kernel that needs them again computes them again, with the same bits.
#pragma once

#include "device.h"
#include "kernels.h"

namespace glomo::cuda {

constexpr int ROWS = 64, ROWS_PER_WARP = ROWS / WARPS;

template <class T>
struct Tile {
  using C = Compute<T>;
  static constexpr int COLUMNS = sizeof(T) == 8 ? 64 : 128;
  static constexpr int PIECE = 16 / sizeof(T);   // elements of one copy
  static constexpr int DEPTH = 64 / sizeof(T);   // elements of a row that are in shared memory at a time
  static constexpr int STRIDE = 80 / sizeof(T);  // of these rows: 20 words, so that no two lanes meet in a bank
  static constexpr int STAGE = (ROWS + COLUMNS) * STRIDE;
  static constexpr int SCORE_STRIDE = COLUMNS + 8;
  static constexpr int BYTES_OF_STAGES = 2 * STAGE * sizeof(T);
  static constexpr int BYTES_OF_SCORES = ROWS * SCORE_STRIDE * sizeof(C);
};

// Columns column + lane, column + 32 + lane, ... of a tile: calls f(j), the same number of times in every lane.
template <class T, class F>
__device__ void for_each_column(int column, int lane, const F& f) {
#pragma unroll
  for (int n = 0; n < Tile<T>::COLUMNS; n += LANES) f(column + n + lane);
}

template <class T>
struct Problem {
  using C = Compute<T>;
  const T* q;
  const T* k;
  const C* theta;
  const std::int64_t* spans;
  std::int64_t heads, units, width, first, rows, all_heads;
  bool relu;

  explicit Problem(const Affinity& a)
      : q(static_cast<const T*>(a.q)),
        k(static_cast<const T*>(a.k)),
        theta(static_cast<const C*>(a.theta)),
        spans(a.spans),
        heads(a.heads),
        units(a.units),
        width(a.width),
        first(a.first),
        rows(a.rows),
        all_heads(a.batch * a.heads),
        relu(a.kind == Kind::relu) {}

  std::int64_t blocks() const { return (rows + ROWS - 1) / ROWS * all_heads; }
};

template <class T>
struct Shared {
  using C = Compute<T>;
  static constexpr int TILE = Tile<T>::BYTES_OF_STAGES > Tile<T>::BYTES_OF_SCORES ? Tile<T>::BYTES_OF_STAGES
                                                                                  : Tile<T>::BYTES_OF_SCORES;
  alignas(16) unsigned char tile[TILE];  // parts of q and k while they are multiplied, then the scores
  C theta[ROWS];
  int begin[ROWS], end[ROWS];  // equal for rows without keys and behind the last row
};

constexpr std::size_t MOST_SHARED = 81 * 1024;  // two blocks fit into a multiprocessor of sm_80, one into sm_86

template <class T>
class Walk {
 public:
  static_assert(sizeof(Shared<T>) <= MOST_SHARED);
  using C = Compute<T>;
  using Geometry = Tile<T>;
  static constexpr int COLUMNS = Geometry::COLUMNS;

  __device__ Walk(const Problem<T>& problem, Shared<T>& shared)
      : problem_(problem), shared_(shared), lane_(threadIdx.x % LANES), warp_(threadIdx.x / LANES) {
    // In causal order the last rows have the most keys: they come first, all heads side by side.
    const auto all_heads = static_cast<unsigned>(problem.all_heads);
    head_ = blockIdx.x % all_heads;
    sample_ = static_cast<unsigned>(head_) / static_cast<unsigned>(problem.heads);
    first_ = problem.first + ((problem.rows + ROWS - 1) / ROWS - 1 - blockIdx.x / all_heads) * ROWS;
    if (threadIdx.x < ROWS) {
      const std::int64_t unit = first_ + threadIdx.x;
      std::int64_t begin = 0, end = 0;
      if (real(threadIdx.x)) {
        const std::int64_t* span = problem.spans + 2 * (sample_ * problem.units + unit);
        begin = span[0] > 0 ? span[0] : 0;
        end = span[1] < problem.units ? span[1] : problem.units;
      }
      shared.begin[threadIdx.x] = begin < end ? static_cast<int>(begin) : 0;
      shared.end[threadIdx.x] = begin < end ? static_cast<int>(end) : 0;
      shared.theta[threadIdx.x] =
          problem.theta != nullptr && real(threadIdx.x) ? problem.theta[head_ * problem.units + unit] : C(0);
    }
    __syncthreads();
    low_ = INT32_MAX;
    high_ = 0;
    for (int r = lane_; r < ROWS; r += LANES) {
      if (shared.begin[r] >= shared.end[r]) continue;
      low_ = min(low_, shared.begin[r]);
      high_ = max(high_, shared.end[r]);
    }
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
      low_ = min(low_, __shfl_xor_sync(ALL, low_, step));
      high_ = max(high_, __shfl_xor_sync(ALL, high_, step));
    }
  }

  // Calls visit(s, r, column) for every tile, columns ascending, and each of the warp's rows r = row(s) that has keys
  // in it; root() then gives the row's roots. Every thread of the block has to call.
  template <class Visit>
  __device__ void sweep(const Visit& visit) {
    for (int column = low_ / COLUMNS * COLUMNS; column < high_; column += COLUMNS) {
      compute(column);
#pragma unroll 1
      for (int s = 0; s < ROWS_PER_WARP; ++s) {
        const int r = row(s);
        if (shared_.begin[r] < column + COLUMNS && shared_.end[r] > column) visit(s, r, column);
      }
      __syncthreads();
    }
  }

  // r_ij for row r and column j of the tile that begins at `column`; 0 outside of the row's span.
  __device__ C root(int r, int column, int j) const {
    const C score = scores()[r * Geometry::SCORE_STRIDE + (j - column)] - shared_.theta[r];
    const bool seen = j >= shared_.begin[r] && j < shared_.end[r];
    return seen && (score > C(0) || !problem_.relu) ? score : C(0);
  }

  __device__ int lane() const { return lane_; }
  // Of the variables that hold one thing per row of the warp: whether the one here is that of row s; that of row s.
  __device__ bool owns(int s) const { return lane_ == s; }
  template <class X>
  __device__ static X of(int s, X x) {
    return __shfl_sync(ALL, x, s);
  }
  // The row that this lane remembers things of; none, and not real, in the other lanes.
  __device__ int own_row() const { return row(lane_); }
  __device__ bool owns_real_row() const { return lane_ < ROWS_PER_WARP && real(own_row()); }
  __device__ int row(int s) const { return warp_ + s * WARPS; }
  __device__ bool real(int r) const {
    return first_ + r < problem_.first + problem_.rows && first_ + r < problem_.units;
  }
  // The place of row r in arrays with one element per row.
  __device__ std::int64_t place(int r) const { return head_ * problem_.rows + (first_ - problem_.first) + r; }
  __device__ std::int64_t sample() const { return sample_; }

 private:
  __device__ C* scores() const { return reinterpret_cast<C*>(shared_.tile); }

  // Starts to copy elements depth .. depth + DEPTH of the block's query rows and of COLUMNS keys.
  __device__ void load(int stage, int column, std::int64_t depth) {
    T* to = reinterpret_cast<T*>(shared_.tile) + stage * Geometry::STAGE;
    const T* q = problem_.q + head_ * problem_.units * problem_.width;
    const T* k = problem_.k + head_ * problem_.units * problem_.width;
    const std::int64_t last = problem_.units - 1;
    constexpr int PIECES = Geometry::DEPTH / Geometry::PIECE;
#pragma unroll
    for (int n = 0; n < (ROWS + COLUMNS) * PIECES / THREADS; ++n) {
      const int piece = n * THREADS + threadIdx.x, r = piece / PIECES, within = piece % PIECES * Geometry::PIECE;
      const std::int64_t unit = r < ROWS ? first_ + r : std::int64_t(column) + (r - ROWS);
      const bool real = depth + within < problem_.width;
      const T* from = (r < ROWS ? q : k) + (unit < last ? unit : last) * problem_.width + (real ? depth + within : 0);
      copy_async(to + r * Geometry::STRIDE + within, from, real);
    }
    commit_copies();
  }

  // The products of one tile, into shared memory.
  __device__ void compute(int column) {
    const int parts = static_cast<int>((problem_.width + Geometry::DEPTH - 1) / Geometry::DEPTH);
    load(0, column, 0);
    if constexpr (IS_HALF<T>) {
      products_half(column, parts);
    } else {
      products(column, parts);
    }
    __syncthreads();
  }

  // Waits for part p of the rows, with the next one under way.
  __device__ const T* ready(int p, int parts, int column) {
    if (p + 1 < parts) {
      load((p + 1) % 2, column, std::int64_t(p + 1) * Geometry::DEPTH);
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    return reinterpret_cast<const T*>(shared_.tile) + p % 2 * Geometry::STAGE;
  }

  // float32 and float64: each thread has 4 rows, 16 apart, and every 16th column.
  __device__ void products(int column, int parts) {
    constexpr int M = ROWS / 16, N = COLUMNS / 16, PIECE = Geometry::PIECE;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    C sum[M][N] = {};
    for (int p = 0; p < parts; ++p) {
      const T* q = ready(p, parts, column);
      const T* k = q + ROWS * Geometry::STRIDE;
#pragma unroll 1  // unrolled, loads are taken so far ahead that registers run out
      for (int d = 0; d < Geometry::DEPTH; d += PIECE) {
        T a[M][PIECE], b[PIECE];
#pragma unroll
        for (int m = 0; m < M; ++m) read(q + (ty + 16 * m) * Geometry::STRIDE + d, a[m]);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          read(k + (tx + 16 * n) * Geometry::STRIDE + d, b);
#pragma unroll
          for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int e = 0; e < PIECE; ++e) sum[m][n] = fused(a[m][e], b[e], sum[m][n]);
          }
        }
      }
      __syncthreads();  // before the stage is loaded again, or taken for the scores
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < N; ++n) scores()[(ty + 16 * m) * Geometry::SCORE_STRIDE + tx + 16 * n] = sum[m][n];
    }
  }

  __device__ static void read(const float* from, float (&to)[4]) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  }
  __device__ static void read(const double* from, double (&to)[2]) {
    const double2 x = *reinterpret_cast<const double2*>(from);
    to[0] = x.x, to[1] = x.y;
  }

  // float16 and bfloat16 on tensor cores: products are exact, sums float32. A warp has 32 rows and 32 columns.
  __device__ void products_half(int column, int parts) {
    const int row0 = warp_ / 4 * 32, column0 = warp_ % 4 * 32;
    const int group = lane_ / 4, pair = lane_ % 4 * 2;
    float sum[2][4][4] = {};
    for (int p = 0; p < parts; ++p) {
      const T* q = ready(p, parts, column);
      const T* k = q + ROWS * Geometry::STRIDE;
#pragma unroll
      for (int d = 0; d < Geometry::DEPTH; d += 16) {
        std::uint32_t a[2][4], b[4][2];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const T* at = q + (row0 + 16 * m + group) * Geometry::STRIDE + d + pair;
          a[m][0] = two(at);
          a[m][1] = two(at + 8 * Geometry::STRIDE);
          a[m][2] = two(at + 8);
          a[m][3] = two(at + 8 * Geometry::STRIDE + 8);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const T* at = k + (column0 + 8 * n + group) * Geometry::STRIDE + d + pair;
          b[n][0] = two(at);
          b[n][1] = two(at + 8);
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < 4; ++n) multiply_tile<T>(sum[m][n], a[m], b[n]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        C* to = scores() + (row0 + 16 * m + group) * Geometry::SCORE_STRIDE + column0 + 8 * n + pair;
        *reinterpret_cast<float2*>(to) = make_float2(sum[m][n][0], sum[m][n][1]);
        *reinterpret_cast<float2*>(to + 8 * Geometry::SCORE_STRIDE) = make_float2(sum[m][n][2], sum[m][n][3]);
      }
    }
  }

  __device__ static std::uint32_t two(const T* from) { return *reinterpret_cast<const std::uint32_t*>(from); }

  const Problem<T>& problem_;
  Shared<T>& shared_;
  std::int64_t head_, sample_, first_;
  int lane_, warp_, low_, high_;
};

}  // namespace glomo::cuda
