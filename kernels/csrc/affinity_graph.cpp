// affinity_graph: find the edges, scan their numbers (the caller does), place them. Scores are computed for LANES query
// rows at a time, so that a thread holds LANES x T of them and nothing of size T x T exists, and only once: beside them
// a copy of the edges costs little. Every row is computed in the same way by whichever thread takes it: the result
// does not depend on their number.

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "row_block.h"
#include "simd.h"
#include "threads.h"

namespace glomo {
namespace {

constexpr std::int64_t STRETCH = 256;    // keys whose edges are collected aside
constexpr std::int64_t PIECE = 1 << 16;  // edges for which memory is taken at once

// Adds the edges of row r of the block to a run; returns their number. most: edges that the run may still get.
template <class T>
std::int64_t add_row(const Affinity<T>& problem, RowBlock<T>& block, std::int64_t r, std::int64_t most,
                     EdgeRun<T>& run) {
  block.finish(r);
  double total = block.sum_of_squares(r);
  if (problem.keep) block.keep_largest(r, problem.keep);
  if (problem.renormalise) total = block.sum_of_squares(r);
  const T scale = static_cast<T>(total + EPSILON);
  const T* root = block.roots(r);
  // Without a branch on each key, which no processor can predict: a place is written again until an edge stays.
  T aside[STRETCH];
  std::int32_t aside_columns[STRETCH];
  std::int64_t edges = 0;
  for (std::int64_t j = block.begin(r); j < block.end(r);) {
    const std::int64_t stop = std::min(j + STRETCH, block.end(r));
    std::int64_t found = 0;
    for (; j < stop; ++j) {
      const T square = root[j] * root[j];
      aside[found] = square;
      aside_columns[found] = static_cast<std::int32_t>(j);
      found += square > 0;
    }
    if (run.pieces.empty() || run.pieces.back().used + found > run.pieces.back().room) {
      const std::int64_t room = std::min(PIECE, most - edges);
      run.pieces.push_back({std::unique_ptr<std::int32_t[]>(new std::int32_t[static_cast<std::size_t>(room)]),
                            std::unique_ptr<T[]>(new T[static_cast<std::size_t>(room)]), room});
    }
    auto& piece = run.pieces.back();
    for (std::int64_t e = 0; e < found; ++e) piece.weights[piece.used + e] = aside[e] / scale;
    std::copy_n(aside_columns, found, &piece.columns[piece.used]);
    piece.used += found;
    edges += found;
  }
  return edges;
}

}  // namespace

// A thread takes a part of a head at a time, whose keys it packs: a whole one, unless the heads are few.
template <class T>
std::vector<EdgeRun<T>> find_edges(const Affinity<T>& problem, std::int64_t* counts, int threads) {
  const std::int64_t heads = problem.batch * problem.heads, per_head = blocks(problem.units);
  const std::int64_t parts = std::min(per_head, (4 * threads + heads - 1) / std::max<std::int64_t>(heads, 1));
  std::vector<EdgeRun<T>> runs(static_cast<std::size_t>(heads * parts));
  const Mix<T> mix = as_mix(problem);
  RoundedKeys<T> rounded(mix, threads);
  parallel(heads * parts, threads, [&](const auto& next) {
    RowBlock<T> block(problem, mix, rounded, threads);
    for (std::int64_t item = next(); item >= 0; item = next()) {
      const std::int64_t head = item / parts, part = item % parts;
      EdgeRun<T>& run = runs[static_cast<std::size_t>(item)];
      const std::int64_t from = part * per_head / parts, to = (part + 1) * per_head / parts;
      const auto [last, last_rows] = rows_of_block(to - 1, problem.units);
      run.first = head * problem.units + rows_of_block(from, problem.units).first;
      for (std::int64_t index = from; index < to; ++index) {
        block.compute(head, index);
        rounded.finished(head);
        for (std::int64_t r = 0; r < block.rows(); ++r) {
          const std::int64_t most = (last + last_rows - block.first() - r) * problem.units;
          counts[head * problem.units + block.first() + r] = add_row(problem, block, r, most, run);
        }
      }
    }
  });
  return runs;
}

template <class T>
void place_edges(std::vector<EdgeRun<T>>& runs, const std::int64_t* offsets, std::int32_t* columns, T* weights,
                 int threads) {
  parallel(static_cast<std::int64_t>(runs.size()), threads, [&](const auto& next) {
    for (std::int64_t item = next(); item >= 0; item = next()) {
      EdgeRun<T>& run = runs[static_cast<std::size_t>(item)];
      std::int64_t edge = run.pieces.empty() ? 0 : offsets[run.first];
      for (auto& piece : run.pieces) {
        std::copy_n(piece.columns.get(), piece.used, columns + edge);
        std::copy_n(piece.weights.get(), piece.used, weights + edge);
        edge += piece.used;
        piece = {};
      }
    }
  });
}

// One thread per (sample, head), so that the rows of dk are written by one thread in one order. What a block of rows
// adds to one of them is summed up aside first: `gather` takes it from the slopes, which replace the roots.
template <class T>
void affinity_graph_backward(const Affinity<T>& problem, const std::int64_t* offsets,
                             const std::int32_t* columns, const T* weights, const T* grad, T* dq, T* dk,
                             T* dtheta, int threads) {
  const std::int64_t units = problem.units, width = problem.width;
  static_assert(LANES <= 64, "a word of 64 bits has a bit for each row");
  const Mix<T> mix = as_mix(problem);
  RoundedKeys<T> rounded(mix, threads);
  parallel(problem.batch * problem.heads, threads, [&](const auto& next) {
    RowBlock<T> block(problem, mix, rounded, threads);
    std::vector<T> slope(static_cast<std::size_t>(units));
    std::vector<std::uint64_t> masks(static_cast<std::size_t>(units));  // [key]: the rows with an edge to it
    std::vector<T> coefficients;
    std::vector<std::int32_t> index;
    for (std::int64_t head = next(); head >= 0; head = next()) {
      const T* q = problem.q + head * units * width;
      const T* k = problem.k + head * units * width;
      T* dk_head = dk + head * units * width;
      std::fill(dk_head, dk_head + units * width, T(0));
      for (std::int64_t block_index = 0; block_index < blocks(units); ++block_index) {
        block.compute(head, block_index);
        rounded.finished(head);
        const std::int64_t first = block.first(), rows = block.rows();
        std::fill(masks.begin(), masks.end(), std::uint64_t{0});
        for (std::int64_t r = 0; r < rows; ++r) {
          const std::int64_t row = head * units + first + r;
          block.finish(r);
          T* root = block.roots(r);
          double mean = 0, total = 0, sum = 0;
          for (std::int64_t e = offsets[row]; e < offsets[row + 1]; ++e) {
            mean += static_cast<double>(grad[e]) * static_cast<double>(weights[e]);
          }
          // dA_ij without its division: g_ij - D_i, over the edges or over the whole row.
          coefficients.clear();
          index.clear();
          if (problem.renormalise || problem.keep == 0) {
            for (std::int64_t e = offsets[row]; e < offsets[row + 1]; ++e) {
              const std::int32_t j = columns[e];
              total += static_cast<double>(root[j]) * static_cast<double>(root[j]);
              index.push_back(j);
              coefficients.push_back(static_cast<T>(2 * root[j] * (grad[e] - mean)));
            }
          } else {
            std::fill(slope.begin() + block.begin(r), slope.begin() + block.end(r), static_cast<T>(-mean));
            for (std::int64_t e = offsets[row]; e < offsets[row + 1]; ++e) slope[columns[e]] += grad[e];
            total = block.sum_of_squares(r);
            for (std::int64_t j = block.begin(r); j < block.end(r); ++j) {
              if (!(root[j] * root[j] > 0)) continue;
              index.push_back(static_cast<std::int32_t>(j));
              coefficients.push_back(2 * root[j] * slope[j]);
            }
          }
          const T scale = static_cast<T>(1 / (total + EPSILON));
          for (std::size_t e = 0; e < index.size(); ++e) {
            coefficients[e] *= scale;
            sum += static_cast<double>(coefficients[e]);
            root[index[e]] = coefficients[e];
            masks[static_cast<std::size_t>(index[e])] |= std::uint64_t{1} << r;
          }
          simd<T>().combine(coefficients.data(), index.data(), static_cast<std::int64_t>(index.size()), k, width,
                            dq + row * width);
          if (dtheta) dtheta[row] = static_cast<T>(-sum);
        }
        simd<T>().gather(masks.data(), units, block.roots(0), 1, block.pitch(), q + first * width, width, width,
                         dk_head, width);
      }
    }
  });
}

#define INSTANTIATE(T)                                                                                        \
  template std::vector<EdgeRun<T>> find_edges<T>(const Affinity<T>&, std::int64_t*, int);                     \
  template void place_edges<T>(std::vector<EdgeRun<T>>&, const std::int64_t*, std::int32_t*, T*, int);        \
  template void affinity_graph_backward<T>(const Affinity<T>&, const std::int64_t*, const std::int32_t*,      \
                                           const T*, const T*, T*, T*, T*, int);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace glomo
