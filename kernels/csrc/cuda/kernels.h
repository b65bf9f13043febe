// The launchers of the CUDA kernels. Arrays are contiguous, row-major, in device memory, and described in the Python
// module that calls them; `type` is that of the arrays marked T, those marked C are float32 (float64 for float64).
// Nothing here allocates, waits for the device or includes a torch header. Errors are std::runtime_error.
#pragma once

#include <cstdint>
#include <string>

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace glomo::cuda {

// glomo_kernels/extensions.py says when to raise it.
constexpr int INTERFACE = 2;

using Stream = CUstream_st*;
enum class Type : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };
enum class Kind : int { relu = 0, square = 1, topk = 2 };

// Scores of affinity_graph, of the query rows first .. first + rows of every head. A "row" of the arrays below is
// head * rows + (unit - first), with head = b * heads + h.
struct Affinity {
  Type type;
  const void* q;              // T [batch, heads, units, width]; width * sizeof(T) and q, k are multiples of 16
  const void* k;              // T [batch, heads, units, width]
  const void* theta;          // C [batch, heads, units] or null
  const std::int64_t* spans;  // [batch, units, 2]
  std::int64_t batch, heads, units, width;
  std::int64_t first, rows;
  Kind kind;
};

// Which squares of a row are kept: those above the limit, and those equal to it up to the column `last`.
struct Cut {
  const void* limits;        // C [batch * heads * rows], or null: every positive square
  const std::int32_t* last;  // [batch * heads * rows]
};

// The cut behind the `keep` largest squares of each row (0: no such bound) and behind the topk[b] largest (null: no
// such bound); of equal squares those in the lowest columns.
void select(const Affinity& problem, std::int64_t keep, const std::int64_t* topk, void* limits, std::int32_t* last,
            Stream stream);

// counts int64 [rows]: squares kept by `edges`; totals float64 [rows]: sum of the squares kept by `whole`.
void count(const Affinity& problem, Cut edges, Cut whole, std::int64_t* counts, double* totals, Stream stream);

// columns and values C of the edges: square / (total + EPSILON), or the root r_ij if totals is null.
void fill(const Affinity& problem, Cut edges, const double* totals, const std::int64_t* offsets, std::int32_t* columns,
          void* values, Stream stream);

// roots C: r_ij of given edges.
void roots(const Affinity& problem, const std::int64_t* offsets, const std::int32_t* columns, void* roots,
           Stream stream);

// Compressed rows: offsets [rows + 1], columns ascending within a row.
struct Rows {
  const std::int64_t* offsets;
  const std::int32_t* columns;
};

// slopes C: dS_ij at the entries of `whole`, whose roots are given; the edges, with weights and gradients C, are among
// them (the same arrays if they are the same). d_theta C [rows] or null.
void slopes(Type type, std::int64_t rows, Rows edges, const void* weights, const void* grad, Rows whole,
            const void* roots, void* slopes, void* d_theta, Stream stream);

// Sparse rows times features. With group g = b * outer + o, out row (g, i) is
//   sum over c < inner and the edges e of row (b * components + first + o * inner + c) * units + i
//   of w * values[e] * x[x_group, sources[e]],    x_group = b if shared, else g * inner + c,
// where w = 1 without weights, weights[c], or weights[(g * units + i) * inner + c] if per_unit.
struct Combine {
  Type type;
  const std::int64_t* offsets;
  const std::int32_t* sources;
  const void* values;   // C
  const void* weights;  // C, or null
  bool per_unit;
  const void* x;  // T [batch, source_rows, width] if shared, else [batch * outer * inner, source_rows, width]
  bool shared;
  std::int64_t batch, outer, inner, components, first, units, source_rows, width;
};

// result [batch * outer, units, width]: T, or C if `wide`.
void combine(const Combine& problem, void* result, bool wide, Stream stream);

// d_weights C [batch, units, inner] from grad T [batch, units, width]; outer is 1, weights are not read.
void combine_weights(const Combine& problem, const void* grad, void* d_weights, Stream stream);

// Makes a device the current one of this thread. This module has a CUDA runtime of its own, which does not hear of
// what torch tells its runtime.
void set_device(int index);

// Why the kernels cannot run on the current device; empty if they can.
std::string problem();

}  // namespace glomo::cuda
