// Sums over rows of features that are named by their numbers, as the edges of a graph name them. Included by simd.inl.

namespace SIMD_NAMESPACE {

// Registers of a row that are summed together; a wider one goes in blocks of so many, the last of what is left.
constexpr int AT_ONCE = 8;

// f(d, registers, last) for the blocks of a row of at least COUNT numbers: `registers` of them from column d on, the
// last one at d + last. That of the row's end may overlap the one before.
template <class T, class F>
inline void each_block(std::int64_t width, const F& f) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  for (std::int64_t d = 0; d < width; d += AT_ONCE * COUNT) {
    const std::int64_t left = (width - d + COUNT - 1) / COUNT, registers = left < AT_ONCE ? left : AT_ONCE;
    const std::int64_t last = (registers - 1) * COUNT, end = width - COUNT - d;
    f(d, registers, last < end ? last : end);
  }
}

// `combine` for the columns of one block, from which x and y begin. A number that two registers have is the same in
// both: the order of its terms is.
template <class T, int BLOCK>
void combine_block(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x, std::int64_t width,
                   std::int64_t last, T* y) {
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  const auto at = [last](int v) { return v + 1 < BLOCK ? v * COUNT : last; };
  const std::int64_t parts = parts_of(n);
  for (std::int64_t part = 0; part < parts; ++part) {
    typename Lanes<T>::Vec sum[BLOCK] = {};
    for (std::int64_t e = n * part / parts; e < n * (part + 1) / parts; ++e) {
      const T* row = x + index[e] * width;
      const T c = coefficient[e];
#pragma GCC unroll 8
      for (int v = 0; v < BLOCK; ++v) sum[v] += c * load(row + at(v));
    }
    if (part > 0) {
#pragma GCC unroll 8
      for (int v = 0; v < BLOCK; ++v) sum[v] += load(y + at(v));
    }
#pragma GCC unroll 8
    for (int v = 0; v < BLOCK; ++v) store(y + at(v), sum[v]);
  }
}

template <class T>
void combine(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x, std::int64_t width,
             T* y) {
  constexpr decltype(&combine_block<T, 1>) OF[] = {combine_block<T, 1>, combine_block<T, 2>, combine_block<T, 3>,
                                                   combine_block<T, 4>, combine_block<T, 5>, combine_block<T, 6>,
                                                   combine_block<T, 7>, combine_block<T, 8>};
  if (width >= Lanes<T>::COUNT) {
    return each_block<T>(width, [&](std::int64_t d, std::int64_t registers, std::int64_t last) {
      OF[registers - 1](coefficient, index, n, x + d, width, last, y + d);
    });
  }
  const std::int64_t parts = parts_of(n);
  for (std::int64_t d = 0; d < width; ++d) {
    T total = 0;
    for (std::int64_t part = 0; part < parts; ++part) {
      T sum = 0;
      for (std::int64_t e = n * part / parts; e < n * (part + 1) / parts; ++e) {
        sum += coefficient[e] * x[index[e] * width + d];
      }
      total += sum;
    }
    y[d] = total;
  }
}

// total += what the columns of one block, from which x and y begin, have in `weighted_dots`.
template <class T, int BLOCK>
void dots_block_of_rows(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x, std::int64_t width,
                        std::int64_t last, const T* y, typename Lanes<T>::Vec& total) {
  using Vec = typename Lanes<T>::Vec;
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  const auto at = [last](int v) { return v + 1 < BLOCK ? v * COUNT : last; };
  Vec of_y[BLOCK];
#pragma GCC unroll 8
  for (int v = 0; v + 1 < BLOCK; ++v) of_y[v] = load(y + v * COUNT);
  T some[COUNT] = {};  // without what the register before has
  for (std::int64_t i = (BLOCK - 1) * COUNT - last; i < COUNT; ++i) some[i] = y[last + i];
  of_y[BLOCK - 1] = load(some);
  const std::int64_t parts = parts_of(n);
  for (std::int64_t part = 0; part < parts; ++part) {
    Vec sum = {};
    for (std::int64_t e = n * part / parts; e < n * (part + 1) / parts; ++e) {
      const T* row = x + index[e] * width;
      Vec product[2] = {};
#pragma GCC unroll 8
      for (int v = 0; v < BLOCK; ++v) product[v % 2] += of_y[v] * load(row + at(v));
      sum += coefficient[e] * (product[0] + product[1]);
    }
    total += sum;
  }
}

template <class T>
T weighted_dots(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x,
                std::int64_t width, const T* y) {
  constexpr decltype(&dots_block_of_rows<T, 1>) OF[] = {
      dots_block_of_rows<T, 1>, dots_block_of_rows<T, 2>, dots_block_of_rows<T, 3>, dots_block_of_rows<T, 4>,
      dots_block_of_rows<T, 5>, dots_block_of_rows<T, 6>, dots_block_of_rows<T, 7>, dots_block_of_rows<T, 8>};
  if (width >= Lanes<T>::COUNT) {
    typename Lanes<T>::Vec total = {};
    each_block<T>(width, [&](std::int64_t d, std::int64_t registers, std::int64_t last) {
      OF[registers - 1](coefficient, index, n, x + d, width, last, y + d, total);
    });
    return sum_of<T, SIMD_BYTES>(reinterpret_cast<const T*>(&total));
  }
  const std::int64_t parts = parts_of(n);
  T total = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    T sum = 0;
    for (std::int64_t e = n * part / parts; e < n * (part + 1) / parts; ++e) {
      T product = 0;
      for (std::int64_t d = 0; d < width; ++d) product += x[index[e] * width + d] * y[d];
      sum += coefficient[e] * product;
    }
    total += sum;
  }
  return total;
}

}  // namespace SIMD_NAMESPACE
