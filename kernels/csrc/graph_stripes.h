// The dense way through graph_mix, chosen in graph_mix.cpp.
#pragma once

#include "kernels.h"

namespace glomo {

// Whether the sum of a sample's components has so many entries that it is better treated as dense.
template <class T>
bool nearly_dense(const Graphs<T>& graphs);

// As mix, mix_backward_weights and mix_backward_features of kernels.h, with shared features.
template <class T>
void mix_dense(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* features, std::int64_t width,
               T* result, int threads);
template <class T>
void mix_dense_backward_weights(const Graphs<T>& graphs, const T* grad, const T* features, std::int64_t width,
                                T* d_weights, int threads);
template <class T>
void mix_dense_backward_features(const Graphs<T>& graphs, const T* weights, bool per_unit, const T* grad,
                                 std::int64_t width, T* d_features, int threads);

}  // namespace glomo
