// affinity_graph: count, scan (by the caller), fill; and of the backward pass what is not a sparse product. Every
// row belongs to one warp, which takes its columns in order: no atomics, the same result on every run.

#include "kernels.h"
#include "scores.h"

namespace glomo::cuda {
namespace {

template <class C>
struct Limits {
  const C* limits;
  const std::int32_t* last;

  explicit Limits(const Cut& cut) : limits(static_cast<const C*>(cut.limits)), last(cut.last) {}

  struct Row {
    C limit;
    std::int32_t last;
    __device__ bool keeps(C square, int column) const {
      return square > C(0) && (square > limit || (square == limit && column <= last));
    }
  };
  __device__ Row row(std::int64_t r) const {
    return limits == nullptr ? Row{C(0), -1} : Row{limits[r], last[r]};
  }
};

template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    count_kernel(const Problem<T> problem, Limits<Compute<T>> edges, Limits<Compute<T>> whole, std::int64_t* counts,
                 double* totals) {
  using C = Compute<T>;
  Walk<T> walk(problem, *reinterpret_cast<Shared<T>*>(dynamic_shared()));
  int count = 0;
  double total = 0;
  walk.sweep([&](int s, int r, int column) {
    const auto edge = edges.row(walk.place(r)), all = whole.row(walk.place(r));
    int found = 0;
    C sum = 0;
    for_each_column<T>(column, walk.lane(), [&](int j) {
      const C root = walk.root(r, column, j), square = root * root;
      found += __popc(__ballot_sync(ALL, edge.keeps(square, j)));
      if (all.keeps(square, j)) sum += square;
    });
    sum = warp_sum(sum);
    if (walk.owns(s)) {
      count += found;
      total += static_cast<double>(sum);
    }
  });
  if (walk.owns_real_row()) {
    counts[walk.place(walk.own_row())] = count;
    totals[walk.place(walk.own_row())] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    fill_kernel(const Problem<T> problem, Limits<Compute<T>> edges, const double* totals, const std::int64_t* offsets,
                std::int32_t* columns, Compute<T>* values) {
  using C = Compute<T>;
  Walk<T> walk(problem, *reinterpret_cast<Shared<T>*>(dynamic_shared()));
  const unsigned below = (1u << walk.lane()) - 1;
  int filled = 0;
  walk.sweep([&](int s, int r, int column) {
    const std::int64_t place = walk.place(r);
    const std::int64_t begin = offsets[place] + walk.of(s, filled);
    int found = 0;
    const auto edge = edges.row(place);
    const C scale = totals == nullptr ? C(0) : static_cast<C>(totals[place] + EPSILON);
    for_each_column<T>(column, walk.lane(), [&](int j) {
      const C root = walk.root(r, column, j), square = root * root;
      const bool kept = edge.keeps(square, j);
      const unsigned all = __ballot_sync(ALL, kept);
      if (kept) {
        const std::int64_t e = begin + found + __popc(all & below);
        columns[e] = j;
        values[e] = totals == nullptr ? root : square / scale;
      }
      found += __popc(all);
    });
    if (walk.owns(s)) filled += found;
  });
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    roots_kernel(const Problem<T> problem, const std::int64_t* offsets, const std::int32_t* columns,
                 Compute<T>* roots) {
  Walk<T> walk(problem, *reinterpret_cast<Shared<T>*>(dynamic_shared()));
  int done = 0;
  walk.sweep([&](int s, int r, int column) {
    const std::int64_t begin = offsets[walk.place(r)] + walk.of(s, done), end = offsets[walk.place(r) + 1];
    int found = 0, more = LANES;
    while (more == LANES) {  // the row's edges in this tile, 32 at a time
      const std::int64_t e = begin + found + walk.lane();
      const bool here = e < end && columns[e] < column + Tile<T>::COLUMNS;
      if (here && columns[e] >= column) roots[e] = walk.root(r, column, columns[e]);
      more = __popc(__ballot_sync(ALL, here));
      found += more;
    }
    if (walk.owns(s)) done += found;
  });
}

// The place of `column` among columns[begin .. end), or -1.
__device__ std::int64_t find(const std::int32_t* columns, std::int64_t begin, std::int64_t end, std::int32_t column) {
  const std::int64_t behind = end;
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (columns[middle] < column) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin < behind && columns[begin] == column ? begin : -1;
}

// One warp per row. With g the gradient of a weight, D = sum g w and l = sum r^2: dS = 2 r (g - D) / (l + epsilon),
// with g = 0 where there is no edge. Sums in float64: in rows with little weight they cancel.
template <class C>
__global__ void __launch_bounds__(THREADS)
    slopes_kernel(std::int64_t rows, Rows edges, const C* weights, const C* grad, Rows whole, const C* roots,
                  C* slopes, C* d_theta) {
  const int lane = threadIdx.x % LANES;
  const std::int64_t row = std::int64_t(blockIdx.x) * WARPS + threadIdx.x / LANES;
  if (row >= rows) return;
  const std::int64_t edge0 = edges.offsets[row], edge1 = edges.offsets[row + 1];
  const std::int64_t begin = whole.offsets[row], end = whole.offsets[row + 1];
  const bool same = edges.columns == whole.columns;
  double mean = 0, total = 0, sum = 0;
  for (std::int64_t e = edge0 + lane; e < edge1; e += LANES) mean += double(grad[e]) * double(weights[e]);
  for (std::int64_t e = begin + lane; e < end; e += LANES) total += double(roots[e]) * double(roots[e]);
  mean = warp_sum(mean);
  const double scale = 2 / (warp_sum(total) + EPSILON);
  for (std::int64_t e = begin + lane; e < end; e += LANES) {
    slopes[e] = static_cast<C>(scale * double(roots[e]) * ((same ? double(grad[e]) : 0.0) - mean));
  }
  if (!same) {
    __syncwarp();
    for (std::int64_t e = edge0 + lane; e < edge1; e += LANES) {
      const std::int64_t at = find(whole.columns, begin, end, edges.columns[e]);
      if (at >= 0) slopes[at] = static_cast<C>(scale * double(roots[at]) * (double(grad[e]) - mean));
    }
    __syncwarp();
  }
  if (d_theta == nullptr) return;
  for (std::int64_t e = begin + lane; e < end; e += LANES) sum += double(slopes[e]);
  sum = warp_sum(sum);
  if (lane == 0) d_theta[row] = static_cast<C>(-sum);
}

}  // namespace

void count(const Affinity& problem, Cut edges, Cut whole, std::int64_t* counts, double* totals, Stream stream) {
  with_type(problem.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Problem<T> p(problem);
    launch("affinity_graph count_kernel", count_kernel<T>, p.blocks(), sizeof(Shared<T>), stream, p,
           Limits<Compute<T>>(edges), Limits<Compute<T>>(whole), counts, totals);
  });
}

void fill(const Affinity& problem, Cut edges, const double* totals, const std::int64_t* offsets, std::int32_t* columns,
          void* values, Stream stream) {
  with_type(problem.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Problem<T> p(problem);
    launch("affinity_graph fill_kernel", fill_kernel<T>, p.blocks(), sizeof(Shared<T>), stream, p,
           Limits<Compute<T>>(edges), totals, offsets, columns, static_cast<Compute<T>*>(values));
  });
}

void roots(const Affinity& problem, const std::int64_t* offsets, const std::int32_t* columns, void* roots,
           Stream stream) {
  with_type(problem.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Problem<T> p(problem);
    launch("affinity_graph roots_kernel", roots_kernel<T>, p.blocks(), sizeof(Shared<T>), stream, p, offsets, columns,
           static_cast<Compute<T>*>(roots));
  });
}

void slopes(Type type, std::int64_t rows, Rows edges, const void* weights, const void* grad, Rows whole,
            const void* roots, void* slopes, void* d_theta, Stream stream) {
  const auto run = [&](auto* element) {
    using C = std::remove_pointer_t<decltype(element)>;
    launch("affinity_graph slopes_kernel", slopes_kernel<C>, (rows + WARPS - 1) / WARPS, 0, stream, rows, edges,
           static_cast<const C*>(weights), static_cast<const C*>(grad), whole, static_cast<const C*>(roots),
           static_cast<C*>(slopes), static_cast<C*>(d_theta));
  };
  type == Type::float64 ? run(static_cast<double*>(nullptr)) : run(static_cast<float*>(nullptr));
}

void set_device(int index) { check(cudaSetDevice(index), "cudaSetDevice"); }

std::string problem() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(slopes_kernel<float>));
  if (status == cudaSuccess) return "";
  cudaGetLastError();
  return cudaGetErrorString(status);
}

}  // namespace glomo::cuda
