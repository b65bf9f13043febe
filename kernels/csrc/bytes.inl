// Loops of bytes.h for one instruction set. Included by bytes.cpp with
//   BYTES_NAMESPACE  where they go
//   VECTOR_BYTES     bytes in a register, BYTES_REGISTER
//   BYTES_ROWS       rows of a block of `multiply`, of two registers of columns each
//   BYTES_DOT        the instruction: before + products of four unsigned and four signed bytes

namespace BYTES_NAMESPACE {

#include "vectors.inl"

typedef std::int8_t Chars __attribute__((vector_size(COUNT)));

void round_rows(const float* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, Word* out,
                std::int64_t pitch, Rounded* of) {
  for (std::int64_t r = 0; r < rows; ++r, x += stride, out += pitch) {
    Floats most = {};
    each(x, columns, [&](std::int64_t, Floats some) {
      some = some < 0 ? -some : some;
      most = some > most ? some : most;  // NaN is not
    });
    const float largest = folded<float>(most, [](auto a, auto b) { return a > b ? a : b; });
    const float scale = largest / 127, inverse = largest > 1e-30f ? 127 / largest : 0;
    std::fill(out + columns / COUNT * COUNT / 4, out + byte_words(columns), Word{0});
    Floats squares = {}, errors = {};
    Words sum = {};  // of numbers that are not finite it may leave its range
    each(x, columns, [&](std::int64_t n, Floats some) {
      const Floats half = (some < 0 ? Floats{} - 1 : Floats{} + 1) / 2;
      const Ints whole = __builtin_convertvector(some * inverse + half, Ints);
      const Chars bytes = __builtin_convertvector(whole, Chars);
      std::memcpy(reinterpret_cast<char*>(out) + n, &bytes, sizeof(bytes));
      const Floats error = some - __builtin_convertvector(whole, Floats) * scale;
      squares += some * some;
      errors += error * error;
      sum += reinterpret_cast<Words>(whole);
    });
    of->norm[r] = std::sqrt(total<float>(squares)) + TINY;
    of->off[r] = std::sqrt(total<float>(errors)) + LOST;
    of->scale[r] = scale;
    of->sum[r] = total<Word>(sum);
  }
  of->find_worst(rows);
}

inline Ints add_products(Ints before, Ints unsigned_bytes, Ints signed_bytes) {
  using Register = BYTES_REGISTER;
  const auto numbers = reinterpret_cast<Register>(unsigned_bytes), factors = reinterpret_cast<Register>(signed_bytes);
  return reinterpret_cast<Ints>(BYTES_DOT(reinterpret_cast<Register>(before), numbers, factors));
}

// Numbers of b are 128 too great: 128 times the sum of a's comes off.
template <int ROWS, int VECTORS>
inline void block(std::int64_t words, const Word* a, std::int64_t pitch, const float* scale_a, const Word* sum,
                  const Word* b, const float* scale_b, float* c) {
  Ints sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = reinterpret_cast<Ints>(Words{} - 128 * sum[r]);
  }
  for (std::int64_t k = 0; k < words; ++k, b += PANEL) {
    Ints columns[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      columns[v] = load<Ints>(b + v * COUNT / PANEL * words * PANEL + v * COUNT % PANEL);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Ints four = Ints{} + static_cast<std::int32_t>(a[r * pitch + k]);
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = add_products(sums[r][v], columns[v], four);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      // Not by the product of the scales, which may be too small for float where the score is not.
      const Floats score = __builtin_convertvector(sums[r][v], Floats) * scale_a[r] * load<Floats>(scale_b + v * COUNT);
      std::memcpy(c + r * LANES + v * COUNT, &score, sizeof(score));
    }
  }
}

template <int VECTORS>
inline void strip(std::int64_t rows, std::int64_t words, const Word* a, std::int64_t pitch, const Rounded& of_a,
                  const Word* b, const float* scale_b, float* c) {
  std::int64_t r = 0;
  for (; r + BYTES_ROWS <= rows; r += BYTES_ROWS) {
    block<BYTES_ROWS, VECTORS>(words, a + r * pitch, pitch, of_a.scale + r, of_a.sum + r, b, scale_b, c + r * LANES);
  }
  for (; r < rows; ++r) {
    block<1, VECTORS>(words, a + r * pitch, pitch, of_a.scale + r, of_a.sum + r, b, scale_b, c + r * LANES);
  }
}

void multiply(std::int64_t rows, std::int64_t columns, std::int64_t words, const Word* a, std::int64_t pitch,
              const Rounded& of_a, const Word* b, const Rounded& of_b, float* c) {
  constexpr int OF_PANEL = PANEL / COUNT;
  for (std::int64_t n = 0; n < columns; n += 2 * COUNT) {
    const auto run = n + PANEL < columns || OF_PANEL == 2 ? strip<2> : strip<OF_PANEL>;
    run(rows, words, a, pitch, of_a, b + n * words, of_b.scale + n, c + n);
  }
}

}  // namespace BYTES_NAMESPACE

#undef BYTES_NAMESPACE
#undef VECTOR_BYTES
#undef BYTES_REGISTER
#undef BYTES_ROWS
#undef BYTES_DOT
