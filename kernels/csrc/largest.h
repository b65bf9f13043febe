// The choice of the largest squares of a row, as `largest` in glomo_kernels/scores.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace glomo {

// Sets all but the `count` largest squares of root[0 .. n) to 0; of equal ones the first stay. Squares of 0 count
// as no edge and are left as they are, and so are those that are NaN: a wrong number must not be lost.
template <class T>
void keep_largest(T* root, std::int64_t n, std::int64_t count, std::vector<T>& candidates) {
  candidates.clear();
  for (std::int64_t j = 0; j < n; ++j) {
    const T square = root[j] * root[j];
    if (square > 0) candidates.push_back(square);
  }
  if (static_cast<std::int64_t>(candidates.size()) <= count) return;
  const auto smallest = candidates.begin() + (count - 1);
  std::nth_element(candidates.begin(), smallest, candidates.end(), std::greater<T>());
  const T limit = *smallest;
  std::int64_t room = count - std::count_if(candidates.begin(), smallest, [limit](T x) { return x > limit; });
  for (std::int64_t j = 0; j < n; ++j) {
    const T square = root[j] * root[j];
    if (!(square <= limit)) continue;
    if (square == limit && room > 0) {
      --room;
    } else {
      root[j] = 0;
    }
  }
}

}  // namespace glomo
