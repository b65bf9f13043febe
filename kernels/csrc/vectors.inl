// What rows that are rounded (rounding.inl, bytes.inl) take of the vector extensions. VECTOR_BYTES: in a register, 32
// or 64.

constexpr std::int64_t COUNT = VECTOR_BYTES / 4;

typedef float Floats __attribute__((vector_size(VECTOR_BYTES)));
typedef Word Words __attribute__((vector_size(VECTOR_BYTES)));
typedef std::int32_t Ints __attribute__((vector_size(VECTOR_BYTES)));

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
  Eight eight[COUNT / 8];
  std::memcpy(eight, &x, sizeof(x));
  if (COUNT == 16) eight[0] = f(eight[0], eight[COUNT / 8 - 1]);
  Four four[2];
  std::memcpy(four, eight, sizeof(four));
  four[0] = f(four[0], four[1]);
  return f(f(four[0][0], four[0][1]), f(four[0][2], four[0][3]));
}

template <class T, class V>
inline T total(const V& x) {
  return folded<T>(x, [](auto a, auto b) { return a + b; });
}

// f(n, x): COUNT numbers from column n on, with zeros beyond the last one.
template <class F>
inline void each(const float* x, std::int64_t columns, const F& f) {
  std::int64_t n = 0;
  for (; n + COUNT <= columns; n += COUNT) f(n, load<Floats>(x + n));
  if (n == columns) return;
  float last[COUNT] = {};
  std::copy_n(x + n, columns - n, last);
  f(n, load<Floats>(last));
}
