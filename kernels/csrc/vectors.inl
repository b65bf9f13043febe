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

// All of its numbers taken together by f, half of them with the other half first.
template <class T, class V, class F>
inline T folded(const V& x, const F& f) {
  typedef T Eight __attribute__((vector_size(8 * sizeof(T))));
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  Eight eight[2];
  std::memcpy(eight, &x, sizeof(x));
  eight[0] = f(eight[0], eight[1]);
  Four four[2];
  std::memcpy(four, eight, sizeof(four));
  four[0] = f(four[0], four[1]);
  return f(f(four[0][0], four[0][1]), f(four[0][2], four[0][3]));
}

template <class T, class V>
inline T total(const V& x) {
  return folded<T>(x, [](auto a, auto b) { return a + b; });
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
