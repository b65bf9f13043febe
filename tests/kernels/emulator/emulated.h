// Matrix instructions on a CPU: mma.m16n8k16 with the fragments of the PTX manual, see cuda_runtime.h.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emulated {

inline float number(__half x) { return __half2float(x); }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
float half_of(std::uint32_t word, unsigned which) {
  T element;
  std::memcpy(&element, reinterpret_cast<const unsigned char*>(&word) + 2 * which, 2);
  return number(element);
}

// Registers of a lane with group = lane / 4 and pair = lane % 4 hold, two elements each,
//   a: rows group and group + 8, columns 2 pair, then the same rows, columns 2 pair + 8
//   b: rows 2 pair and 2 pair + 8 of column group        c: columns 2 pair of rows group and group + 8
template <class T>
void multiply_tile(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], EMULATED_PLACE) {
  struct Shown {
    std::uint32_t a[4], b[2];
  } own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  unsigned which;
  const Exchange& e = exchange(own, place, &which);
  const unsigned lane = machine().current->thread % LANES, group = lane / 4, pair = lane % 4;
  for (unsigned n = 0; n < 4; ++n) {
    const unsigned row = n / 2, column = 2 * pair + n % 2;  // row: group or group + 8
    for (unsigned k = 0; k < 16; ++k) {
      const auto left = shown_by<Shown>(e, which, group * 4 + k % 8 / 2);
      const auto right = shown_by<Shown>(e, which, column * 4 + k % 8 / 2);
      c[n] = std::fma(half_of<T>(left.a[row + 2 * (k / 8)], k % 2), half_of<T>(right.b[k / 8], k % 2), c[n]);
    }
  }
}

}  // namespace emulated
