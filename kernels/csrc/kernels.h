// The CPU kernels. Arrays are contiguous and row-major, but for Rows, and described in the Python modules that call
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

namespace glomo {

// glomo_kernels/extensions.py says when to raise it.
constexpr int INTERFACE = 7;

enum class Kind : int { relu = 0, square = 1, topk = 2 };

constexpr double EPSILON = 1e-16;  // glomo_kernels/scores.py

// Scores of affinity_graph: r_ij for the keys of row i's span, see glomo_kernels/scores.py.
template <class T>
struct Affinity {
  const T* q;                 // [batch, heads, units, width]
  const T* k;                 // [batch, heads, units, width]
  const T* theta;             // [batch, heads, units] or null
  const std::int64_t* spans;  // [batch, units, 2]
  const std::int64_t* topk;   // [batch], only for Kind::topk
  std::int64_t batch, heads, units, width;
  Kind kind;
  std::int64_t keep;  // edges per row, 0 for all
  bool renormalise;
};

// The edges of consecutive rows from `first` on, in pieces, since their number is not known before they are found.
template <class T>
struct EdgeRun {
  using Element = T;
  struct Piece {
    std::unique_ptr<std::int32_t[]> columns;
    std::unique_ptr<T[]> weights;
    std::int64_t room = 0, used = 0;
  };
  std::int64_t first = 0;
  std::vector<Piece> pieces;
};

// The edges of all rows, with their weights; counts [batch, heads, units] becomes their number in each row.
template <class T>
std::vector<EdgeRun<T>> find_edges(const Affinity<T>& problem, std::int64_t* counts, int threads);

// Lays the edges side by side, those of row r from offsets[r] on, and frees the runs one by one.
template <class T>
void place_edges(std::vector<EdgeRun<T>>& runs, const std::int64_t* offsets, std::int32_t* columns, T* weights,
                 int threads);

template <class T>
void affinity_graph_backward(const Affinity<T>& problem, const std::int64_t* offsets,
                             const std::int32_t* columns, const T* weights, const T* grad, T* dq, T* dk,
                             T* dtheta, int threads);

// Rows of `width` elements for each (sample, head), anywhere in memory; the elements of a row are side by side.
template <class T>
struct Rows {
  const T* data;
  std::int64_t sample, head, row;  // strides, in elements

  const T* at(std::int64_t b, std::int64_t h, std::int64_t i) const { return data + b * sample + h * head + i * row; }
};

using Half = std::uint16_t;  // the bits of a bfloat16

// What elements are added up in.
template <class Element>
using Sum = std::conditional_t<std::is_same_v<Element, Half>, float, Element>;

// Arguments of affinity_mix. `live`: [batch, heads, blocks(rows), blocks(units)], see affinity_mix/__init__.py.
template <class Element>
struct Mix {
  Rows<Element> q, k, v;
  const Sum<Element>* theta;  // [batch, heads, rows] or null
  const std::int64_t* spans;  // [batch, rows, 2]
  const std::int64_t* topk;   // [batch], only for Kind::topk
  std::int64_t batch, heads, rows, units, width, values;
  Kind kind;
};

// What is kept at most for the backward pass, see kept.h. In the order of KEEP in glomo_kernels/scores.py.
enum class Keep { nothing, edges, roots };

// mixed [batch, heads, rows, values]; norm, edges, entropy [batch, heads, rows], the last two or null; kept as `most`.
template <class Element>
void affinity_mix(const Mix<Element>& problem, Element* mixed, Sum<Element>* norm, std::uint8_t* live,
                  std::int32_t* edges, Sum<Element>* entropy, Sum<Element>* kept, Keep most, int threads);

// dq as q, dk and dv as k and v, contiguous; dtheta may be null.
template <class Element>
void affinity_mix_backward(const Mix<Element>& problem, const Rows<Element>& grad, const Sum<Element>* norm,
                           const std::uint8_t* live, const Sum<Element>* kept, Keep most, Element* dq, Element* dk,
                           Element* dv, Sum<Element>* dtheta, int threads);

// `count` components, from `first` on, of a batch of graphs with `components` per sample.
template <class T>
struct Graphs {
  const std::int64_t* offsets;  // [batch * components * units + 1]
  const std::int32_t* columns;
  const T* values;
  std::int64_t batch, components, units, first, count;

  std::int64_t row(std::int64_t sample, std::int64_t component, std::int64_t unit) const {
    return (sample * components + first + component) * units + unit;
  }
};

// weights: [batch, units, count] if per_unit, else [count]; features: [batch, units, width] if shared, else [batch,
// count, units, width], each component's own; result: [batch, units, width].
template <class T>
void mix(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* features, bool shared, std::int64_t width,
         T* result, int threads);

// d_weights: [batch, units, count], to be summed by the caller if the weights were shared.
template <class T>
void mix_backward_weights(const Graphs<T>& graphs, const T* grad, const T* features, bool shared, std::int64_t width,
                          T* d_weights, int threads);

template <class T>
void mix_backward_features(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* grad, bool shared,
                           std::int64_t width, T* d_features, int threads);

// x: [batch, count, units, width], or [batch, 1, units, width] if shared; result: [batch, count, units, width].
template <class T>
void apply(const Graphs<T>& graphs, const T* x, bool shared, std::int64_t width, T* result, int threads);

template <class T>
void apply_backward(const Graphs<T>& graphs, const T* grad, bool shared, std::int64_t width, T* dx,
                    int threads);

// graph_mix: all components of a batch of graphs, `heads` of them in a layer (0 if there are none), and the weights of
// its terms, [batch, units, terms] if per_unit, else [terms]: of layer 0 its components, then of each layer its
// components and its products.
template <class T>
struct LayeredMix {
  Graphs<T> graphs;
  std::int64_t heads;
  const T* weights;
  bool per_unit;
  std::int64_t width;

  std::int64_t layers() const { return heads > 0 ? graphs.components / heads : 1; }
  std::int64_t terms() const { return (2 * layers() - 1) * heads; }
};

// features, result: [batch, units, width].
template <class T>
void mix_products(const LayeredMix<T>& problem, const T* features, T* result, int threads);

// d_weights: [batch, units, terms], as that of mix_backward_weights. The problem's weights are not read.
template <class T>
void mix_products_backward_weights(const LayeredMix<T>& problem, const T* grad, const T* features, T* d_weights,
                                   int threads);

template <class T>
void mix_products_backward_features(const LayeredMix<T>& problem, const T* grad, T* d_features, int threads);

// Words of a block of decoder_loss: each has its own largest logit.
constexpr std::int64_t DECODER_BLOCK = 256;

// How numbers lie in memory: as the type that is computed in, or in half of a float.
enum class Stored : int { same = 0, bfloat16 = 1, float16 = 2 };

// A chunk of rows of decoder_loss. With Half, `weight` is of Half too.
template <class Element>
struct Decoder {
  const Element* hidden;       // [rows, width]
  const void* weight;          // [words, width], `stored` so
  Stored stored;
  const std::int64_t* target;  // [rows]
  std::int64_t rows, words, width;
};

// kept [words, rows rounded up to 64 bytes] or null: exp(logit - peak of its block), 0 for the target; peak, sum
// [blocks, rows]: the largest logit of each block, the sum of the exponentials; likelihood [rows]: the target's logit.
template <class Element>
void decoder_exponentials(const Decoder<Element>& problem, Sum<Element>* kept, Sum<Element>* peak, Sum<Element>* sum,
                          Sum<Element>* likelihood, int threads);

// factor [blocks, rows] turns `kept`, which is overwritten, into softmax; slope [rows] is that of the target, less 1.
// d_weight is added to if `accumulate`.
template <class Element>
void decoder_gradients(const Decoder<Element>& problem, Sum<Element>* kept, const Sum<Element>* factor,
                       const Sum<Element>* slope, Sum<Element>* d_hidden, Sum<Element>* d_weight, bool accumulate,
                       int threads);

}  // namespace glomo
