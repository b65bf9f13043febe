// What decoder_loss does to a block of logits between the products, and to weights in half precision before them.
// Words are rows, `pitch` apart, and rows of `hidden` are lanes side by side, so that a lane's largest and sum need
// no shuffles. Included by simd.inl.

namespace SIMD_NAMESPACE {

template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  using Integer = std::int32_t;
  static constexpr int TERMS = 7, BIAS = 127, MANTISSA = 23;
  static constexpr float LEAST = -104, ROUND = 0x1.8p23f;            // e^LEAST is 0; x + ROUND is an integer
  static constexpr float LN2_HIGH = 0x1.62e4p-1f, LN2_LOW = 0x1.7f7d1cp-20f;  // the first times an integer is exact
};
template <>
struct Exponential<double> {
  using Integer = std::int64_t;
  static constexpr int TERMS = 13, BIAS = 1023, MANTISSA = 52;
  static constexpr double LEAST = -746, ROUND = 0x1.8p52;
  static constexpr double LN2_HIGH = 0x1.62e42feep-1, LN2_LOW = 0x1.a39ef35793c76p-33;
};

// e^x for x <= 0, within two units of the last place down to the smallest denormal number; of NaN it is NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its series, 2^n as two factors, since one alone may be too small.
template <class T>
[[gnu::always_inline]] inline typename Lanes<T>::Vec exponential(typename Lanes<T>::Vec x) {
  using Vec = typename Lanes<T>::Vec;
  using E = Exponential<T>;
  typedef typename E::Integer Integers __attribute__((vector_size(SIMD_BYTES)));
  const Vec none = {}, least = none + E::LEAST, round = none + E::ROUND;
  x = x < least ? least : x;
  const Vec near = x * static_cast<T>(1.4426950408889634) + round, n = near - round;
  const Vec r = x - n * E::LN2_HIGH - n * E::LN2_LOW;
  Vec series = none;
  double inverse = 1;  // 1 / TERMS!
  for (int k = 2; k <= E::TERMS; ++k) inverse /= k;
#pragma GCC unroll 16
  for (int k = E::TERMS; k >= 0; --k) {
    series = series * r + static_cast<T>(inverse);
    inverse *= k;
  }
  Integers bits, start;
  __builtin_memcpy(&bits, &near, sizeof(bits));
  __builtin_memcpy(&start, &round, sizeof(start));
  const Integers power = bits - start, half = power >> 1;
  const Integers first = (half + E::BIAS) << E::MANTISSA, second = (power - half + E::BIAS) << E::MANTISSA;
  Vec a, b;
  __builtin_memcpy(&a, &first, sizeof(a));
  __builtin_memcpy(&b, &second, sizeof(b));
  return series * a * b;
}

inline float as_float(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// float16 has 5 bits of exponent: as float32's lowest they are 112 too small, and those of infinity and NaN are not
// all. Its denormal numbers are no denormal ones of float32, which the processor may have been told to take for 0.
template <class T>
void widen(const std::uint16_t* x, std::int64_t n, bool bfloat, T* out) {
  if (bfloat) {
    for (std::int64_t i = 0; i < n; ++i) out[i] = as_float(static_cast<std::uint32_t>(x[i]) << 16);
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t bits = x[i], rest = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
    const float small = as_float(rest + 0x38800000) - 0x1p-14f;
    const float size = rest < 0x00800000 ? small : as_float(rest + 0x38000000);
    const float value = rest >= 0x0f800000 ? as_float(rest | 0x7f800000) : size;
    out[i] = sign ? -value : value;
  }
}

// peak[lane] = the largest logit of the lane.
template <class T>
void peaks(const T* logits, std::int64_t words, std::int64_t pitch, std::int64_t lanes, T* peak) {
  for (std::int64_t lane = 0; lane < lanes; lane += Lanes<T>::COUNT) {
    auto largest = load(logits + lane);
    for (std::int64_t w = 1; w < words; ++w) {
      const auto logit = load(logits + w * pitch + lane);
      largest = logit > largest ? logit : largest;
    }
    store(peak + lane, largest);
  }
}

// Logits become exp(logit - peak[lane]), 0 where all are -infinity; sum[lane] their sum.
template <class T>
void exponentials(T* logits, std::int64_t words, std::int64_t pitch, std::int64_t lanes, const T* peak, T* sum) {
  for (std::int64_t lane = 0; lane < lanes; lane += Lanes<T>::COUNT) {
    const typename Lanes<T>::Vec none = {}, lowest = none + std::numeric_limits<T>::lowest();
    auto largest = load(peak + lane);
    largest = largest < lowest ? lowest : largest;  // NaN stays
    typename Lanes<T>::Vec total = {};
    for (std::int64_t w = 0; w < words;) {
      typename Lanes<T>::Vec part = {};
      for (const std::int64_t stop = w + DEPTH < words ? w + DEPTH : words; w < stop; ++w) {
        T* at = logits + w * pitch + lane;
        const auto e = exponential<T>(load(at) - largest);
        store(at, e);
        part += e;
      }
      total += part;
    }
    store(sum + lane, total);
  }
}

// x[word][lane] *= factor[lane]
template <class T>
void scale_lanes(T* x, std::int64_t words, std::int64_t pitch, std::int64_t lanes, const T* factor) {
  for (std::int64_t w = 0; w < words; ++w) {
    for (std::int64_t lane = 0; lane < lanes; lane += Lanes<T>::COUNT) {
      store(x + w * pitch + lane, load(x + w * pitch + lane) * load(factor + lane));
    }
  }
}

}  // namespace SIMD_NAMESPACE
