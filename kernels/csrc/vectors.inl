// What rows that are rounded (rounding.inl, bytes.cpp) take of the vector extensions, for processors with AVX-512.

typedef float Floats __attribute__((vector_size(4 * PANEL)));
typedef Word Words __attribute__((vector_size(4 * PANEL)));
typedef std::int32_t Ints __attribute__((vector_size(4 * PANEL)));

template <class V, class T>
inline V load(const T* at) {
  V x;
  std::memcpy(&x, at, sizeof(x));
  return x;
}

template <class V>
inline auto total(const V& x) {
  auto sum = x[0];
  for (int i = 1; i < PANEL; ++i) sum += x[i];
  return sum;
}

// f(n, x): PANEL numbers from column n on, with zeros beyond the last one.
template <class F>
inline void each(const float* x, std::int64_t columns, const F& f) {
  std::int64_t n = 0;
  for (; n + PANEL <= columns; n += PANEL) f(n, load<Floats>(x + n));
  if (n == columns) return;
  float last[PANEL] = {};
  std::copy_n(x + n, columns - n, last);
  f(n, load<Floats>(last));
}
