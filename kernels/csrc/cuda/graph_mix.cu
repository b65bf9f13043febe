// graph_mix: sparse rows times features, summed over components without forming the sum. A warp has one row of the
// result and 32 x N features of it, N to a lane in one load; every row is summed in the order of its edges, so the
// result is the same on every run. The transposed products of the backward passes are the same kernel over rows that
// the caller has transposed.

#include "device.h"
#include "kernels.h"

namespace glomo::cuda {
namespace {

template <int BYTES>
struct Word;
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<2> {
  using type = unsigned short;
};

// N = BYTES / sizeof(T) elements, in one load or store.
template <class T, int BYTES>
struct Pack {
  static constexpr int N = BYTES / sizeof(T);
  typename Word<BYTES>::type word;

  __device__ static Pack load(const T* from) {
    return {*reinterpret_cast<const typename Word<BYTES>::type*>(from)};
  }
  __device__ void add_to(Compute<T> (&sum)[N], Compute<T> factor) const {
    T element[N];
    memcpy(element, &word, BYTES);
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] = fused(factor, up(element[n]), sum[n]);
  }
  __device__ static void store(T* to, const Compute<T> (&sum)[N]) {
    T element[N];
    typename Word<BYTES>::type word;
#pragma unroll
    for (int n = 0; n < N; ++n) down(sum[n], &element[n]);
    memcpy(&word, element, BYTES);
    *reinterpret_cast<typename Word<BYTES>::type*>(to) = word;
  }
};

template <class T>
struct Arguments {
  using C = Compute<T>;
  const std::int64_t* offsets;
  const std::int32_t* sources;
  const C* values;
  const C* weights;
  const T* x;
  bool per_unit, shared;
  std::int64_t batch, outer, inner, components, first, units, source_rows, width;

  explicit Arguments(const Combine& p)
      : offsets(p.offsets),
        sources(p.sources),
        values(static_cast<const C*>(p.values)),
        weights(static_cast<const C*>(p.weights)),
        x(static_cast<const T*>(p.x)),
        per_unit(p.per_unit),
        shared(p.shared),
        batch(p.batch),
        outer(p.outer),
        inner(p.inner),
        components(p.components),
        first(p.first),
        units(p.units),
        source_rows(p.source_rows),
        width(p.width) {}
};

// sum[] += factor * sum over the edges begin .. end of values[e] * x[sources[e], d ..]; lanes with `active` false only
// take part in the exchange. An edge that points outside of x makes the sum NaN and reads nothing.
template <class T, int BYTES>
__device__ void add_edges(const Arguments<T>& p, const T* x, std::int64_t begin, std::int64_t end, Compute<T> factor,
                          bool active, Compute<T> (&sum)[Pack<T, BYTES>::N]) {
  using C = Compute<T>;
  const int lane = threadIdx.x % LANES;
  for (std::int64_t e = begin; e < end; e += LANES) {
    int source = 0;
    C value = 0;
    if (e + lane < end) {
      source = p.sources[e + lane];
      value = factor * p.values[e + lane];
      if (source < 0 || source >= p.source_rows) {
        source = 0;
        value = C(NAN);
      }
    }
    const int here = static_cast<int>(end - e < LANES ? end - e : LANES);
#pragma unroll 4
    for (int n = 0; n < here; ++n) {
      const std::int64_t from = __shfl_sync(ALL, source, n);
      const C scale = __shfl_sync(ALL, value, n);
      if (active) Pack<T, BYTES>::load(x + from * p.width).add_to(sum, scale);
    }
  }
}

template <class T, int BYTES>
__global__ void __launch_bounds__(THREADS, 4) combine_kernel(const Arguments<T> p, void* result, bool wide) {
  using C = Compute<T>;
  using P = Pack<T, BYTES>;
  const int lane = threadIdx.x % LANES;
  // A block has WARPS units of one group, and of these one part of the features. 32-bit: the grid is below 2^31.
  const auto parts = static_cast<unsigned>((p.width + LANES * P::N - 1) / (LANES * P::N));
  const auto unit_blocks = static_cast<unsigned>((p.units + WARPS - 1) / WARPS);
  const unsigned group = blockIdx.x / parts / unit_blocks, b = group / static_cast<unsigned>(p.outer);
  const std::int64_t o = group % static_cast<unsigned>(p.outer);
  const std::int64_t unit = std::int64_t(blockIdx.x / parts % unit_blocks) * WARPS + threadIdx.x / LANES;
  if (unit >= p.units) return;
  const std::int64_t row = group * p.units + unit;
  const std::int64_t d = std::int64_t(blockIdx.x % parts * LANES + lane) * P::N;
  const bool active = d < p.width;
  C sum[P::N] = {};
  for (std::int64_t c = 0; c < p.inner; ++c) {
    const std::int64_t edges = (std::int64_t(b) * p.components + p.first + o * p.inner + c) * p.units + unit;
    const C factor = p.weights == nullptr ? C(1) : p.weights[p.per_unit ? row * p.inner + c : c];
    const T* x = p.x + (p.shared ? std::int64_t(b) : group * p.inner + c) * p.source_rows * p.width + d;
    add_edges<T, BYTES>(p, x, p.offsets[edges], p.offsets[edges + 1], factor, active, sum);
  }
  if (!active) return;
  if (wide) {
    C* to = static_cast<C*>(result) + row * p.width + d;
#pragma unroll
    for (int n = 0; n < P::N; ++n) to[n] = sum[n];
  } else {
    P::store(static_cast<T*>(result) + row * p.width + d, sum);
  }
}

// One warp per (sample, unit, component): the component's row of products, and its inner product with the gradient.
template <class T, int BYTES>
__global__ void __launch_bounds__(THREADS, 4)
    weights_kernel(const Arguments<T> p, const T* grad, Compute<T>* d_weights) {
  using C = Compute<T>;
  using P = Pack<T, BYTES>;
  const int lane = threadIdx.x % LANES;
  const auto parts = static_cast<unsigned>((p.inner + WARPS - 1) / WARPS);  // blocks with WARPS components of one unit
  const std::int64_t component = std::int64_t(blockIdx.x % parts) * WARPS + threadIdx.x / LANES;
  if (component >= p.inner) return;
  const unsigned row = blockIdx.x / parts, b = row / static_cast<unsigned>(p.units);
  const std::int64_t unit = row % static_cast<unsigned>(p.units);
  const std::int64_t edges = (std::int64_t(b) * p.components + p.first + component) * p.units + unit;
  const std::int64_t begin = p.offsets[edges], end = p.offsets[edges + 1];
  const T* x = p.x + (p.shared ? std::int64_t(b) : b * p.inner + component) * p.source_rows * p.width;
  C total = 0;
  for (std::int64_t start = 0; start < p.width; start += LANES * P::N) {
    const std::int64_t d = start + lane * P::N;
    const bool active = d < p.width;
    C sum[P::N] = {}, upstream[P::N] = {};
    add_edges<T, BYTES>(p, x + d, begin, end, C(1), active, sum);
    if (active) P::load(grad + std::int64_t(row) * p.width + d).add_to(upstream, C(1));
#pragma unroll
    for (int n = 0; n < P::N; ++n) total = fused(upstream[n], sum[n], total);
  }
  total = warp_sum(total);
  if (lane == 0) d_weights[row * p.inner + component] = total;
}

// The widest load that the addresses allow and that the lanes have use for: f(std::integral_constant<int, BYTES>).
template <class T, class F>
void with_bytes(std::int64_t width, std::uintptr_t addresses, const F& f) {
  const std::uintptr_t odd = addresses | static_cast<std::uintptr_t>(width) * sizeof(T);
  int bytes = 16;
  while (odd % bytes != 0) bytes /= 2;
  const int least = sizeof(T) > 4 ? static_cast<int>(sizeof(T)) : 4;
  while (bytes > least && width * static_cast<std::int64_t>(sizeof(T)) <= LANES * bytes / 2) bytes /= 2;
  if (bytes == 16) return f(std::integral_constant<int, 16>());
  if (bytes == 8) return f(std::integral_constant<int, 8>());
  if constexpr (sizeof(T) <= 4) {
    if (bytes == 4) return f(std::integral_constant<int, 4>());
  }
  if constexpr (sizeof(T) == 2) {
    if (bytes == 2) return f(std::integral_constant<int, 2>());
  }
  throw std::runtime_error("graph_mix: an array does not begin at a multiple of the size of its elements");
}

std::int64_t up_to(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

std::uintptr_t address(const void* x) { return reinterpret_cast<std::uintptr_t>(x); }

}  // namespace

void combine(const Combine& problem, void* result, bool wide, Stream stream) {
  with_type(problem.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_bytes<T>(problem.width, address(problem.x) | address(result), [&](auto bytes) {
      constexpr int BYTES = decltype(bytes)::value, FEATURES = LANES * BYTES / static_cast<int>(sizeof(T));
      const std::int64_t groups = problem.batch * problem.outer;
      launch("graph_mix combine_kernel", combine_kernel<T, BYTES>,
             groups * up_to(problem.units, WARPS) * up_to(problem.width, FEATURES), 0, stream, Arguments<T>(problem),
             result, wide);
    });
  });
}

void combine_weights(const Combine& problem, const void* grad, void* d_weights, Stream stream) {
  with_type(problem.type, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    with_bytes<T>(problem.width, address(problem.x) | address(grad), [&](auto bytes) {
      constexpr int BYTES = decltype(bytes)::value;
      launch("graph_mix weights_kernel", weights_kernel<T, BYTES>,
             problem.batch * problem.units * up_to(problem.inner, WARPS), 0, stream, Arguments<T>(problem),
             static_cast<const T*>(grad), static_cast<Compute<T>*>(d_weights));
    });
  });
}

}  // namespace glomo::cuda
