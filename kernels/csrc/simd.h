// The inner loops, compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>

#ifdef __FAST_MATH__
#error "glomo_kernels keep NaN and denormal numbers: take -ffast-math and -Ofast out of CXXFLAGS and CFLAGS"
#endif

namespace glomo {

// Query rows that affinity_mix computes side by side; a tile of scores has as many keys. Also a stripe of graph_mix.
constexpr std::int64_t LANES = 64;

// Values in a line of the cache: the fewest columns that `multiply` computes at once.
template <class T>
constexpr std::int64_t LINE = 64 / static_cast<std::int64_t>(sizeof(T));

template <class T>
struct Simd {
  const char* name;
  std::int64_t columns;  // that `multiply` computes at once where there are enough: a multiple of LINE<T>

  // y = sum_{e < n} coefficient[e] * x[index[e]], rows of `width`; y is overwritten.
  void (*combine)(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x,
                  std::int64_t width, T* y);

  // y += c * x over `width` elements.
  void (*add_scaled)(T c, const T* x, std::int64_t width, T* y);

  // sum_{e < n} coefficient[e] * (x_index[e] . y), rows of `width`.
  T (*weighted_dots)(const T* coefficient, const std::int32_t* index, std::int64_t n, const T* x,
                     std::int64_t width, const T* y);

  // c[rows][columns] = (or +=) a b with a(r, k) at a[r * lda + k], or if `across` at a[k * lda + r], and
  // b[k][n] at b[k * ldb + n], readable up to the next multiple of LINE<T> columns.
  void (*multiply)(std::int64_t rows, std::int64_t columns, std::int64_t depth, const T* a, std::int64_t lda,
                   bool across, const T* b, std::int64_t ldb, T* c, std::int64_t ldc, bool accumulate);

  // out[d * ld + i] = x[i * stride + d] for i < rows, d < width.
  void (*transpose)(const T* x, std::int64_t stride, std::int64_t rows, std::int64_t width, T* out,
                    std::int64_t ld);

  // Products over the elements of a tile that are not 0, see sparse.inl. masks[key]: their lanes; returns their number.
  std::int64_t (*nonzero)(const T* tile, std::int64_t keys, std::int64_t rows, std::uint64_t* masks);
  // c[r] += sum over the bits n of masks[r]: a[r * row + n * step] * x[n], rows of `width`.
  void (*gather)(const std::uint64_t* masks, std::int64_t rows, const T* a, std::int64_t row, std::int64_t step,
                 const T* x, std::int64_t pitch, std::int64_t width, T* c, std::int64_t ldc);
  // tile[key][lane] = x[key] . y[lane] for the lanes of masks[key]; y has zeros up to the next multiple of LINE<T>.
  void (*dots)(const std::uint64_t* masks, std::int64_t keys, const T* x, std::int64_t pitch_x, const T* y,
               std::int64_t pitch_y, std::int64_t width, T* tile);

  // The steps on a tile of scores, [keys][LANES] with `lanes` in use: see tile.inl.
  bool (*roots)(T* tile, std::int64_t keys, std::int64_t first, std::int64_t lanes, const T* theta, bool relu,
                const T* begin, const T* end, bool crossed, double* sum);
  std::int64_t (*above)(const T* tile, std::int64_t keys, std::int64_t first, std::int64_t rows, const T* theta,
                        const T* begin, const T* end, bool crossed, const T* reach, const T* norms,
                        std::uint64_t* masks);
  void (*square)(const T* roots, std::int64_t keys, std::int64_t lanes, T* out);
  void (*weighted_sum)(const T* root, const T* product, std::int64_t keys, std::int64_t lanes, const T* norm,
                       const T* inverse, double* sum);
  void (*slopes)(const T* root, T* product, std::int64_t keys, std::int64_t lanes, const T* norm, const T* inverse,
                 const T* mean, T* share, double* sum);

  // The same for one row of scores: their roots, and the sum of their squares.
  void (*edges)(T* row, std::int64_t keys, T theta, bool relu, double* sum);

  // out[i] = x[i] of bfloat16 or, if not `bfloat`, of IEEE's float16.
  void (*widen)(const std::uint16_t* x, std::int64_t n, bool bfloat, T* out);

  // Softmax of blocks of logits, [words][pitch] with `lanes` in use, a multiple of LINE<T>: see softmax.inl.
  void (*peaks)(const T* logits, std::int64_t words, std::int64_t pitch, std::int64_t lanes, T* peak);
  void (*exponentials)(T* logits, std::int64_t words, std::int64_t pitch, std::int64_t lanes, const T* peak, T* sum);
  void (*scale_lanes)(T* x, std::int64_t words, std::int64_t pitch, std::int64_t lanes, const T* factor);
};

// Whether GLOMO_SIMD, if it is set, names this instruction set or a greater one.
bool allowed(const char* name);

// The best version that this machine runs.
template <class T>
const Simd<T>& simd();

#if defined(__x86_64__)
// A feature of the processor that compilers do not name yet: a bit of what cpuid says of leaf 7. word: 0 for eax to 3
// for edx.
bool has_feature(unsigned part, int word, int bit);
#endif

}  // namespace glomo
