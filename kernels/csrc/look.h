// Scores of rounded rows, and how far off they may be (screen.h): in bfloat16 where the processor has AMX, at a tenth
// of the cost of float's, else in int8, at a quarter.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "bfloat16.h"
#include "bytes.h"
#include "rounded.h"
#include "scratch.h"

namespace glomo {

class Look {
 public:
  static const char* name();  // empty where this machine has no such products

  // Words of a rounded row; 0 where there is no look at such rows.
  static std::int64_t words(std::int64_t width);
  // Between rounded rows: not a power of two, see `padded`.
  static std::int64_t pitch(std::int64_t width) { return words(width) + PANEL; }

  static std::unique_ptr<Look> at(std::int64_t width);
  virtual ~Look() = default;

  // Whether so few of the scores remain that it is faster to compute these by themselves.
  bool pays(std::int64_t remaining, std::int64_t scores) const { return 5 * remaining <= fifths_ * scores; }

  virtual void round_keys(const float* k, std::int64_t stride, std::int64_t keys, Word* out, Rounded* of) const = 0;

  // The queries of the scores that follow, up to LANES; own: room for as many rounded keys.
  void take(const float* q, std::int64_t stride, std::int64_t rows, Word* own) {
    if (rows < LANES) queries_.clear();
    round_keys(q, stride, rows, own, &of_queries_);
    lay_words(own, pitch_, rows, words_, queries_.get());
    taken();
  }

  // tile[j][lane]: score of rounded rows, which is off by reach[lane] * keys.norm[j] at most.
  void scores(const Word* k, const Rounded& keys, std::int64_t count, std::int64_t lanes, float* tile, float* reach) {
    multiply(k, keys, count, lanes, tile);
    // |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|, and the errors of products and lengths in float.
    const float rounding = of_queries_.worst + keys.worst + of_queries_.worst * keys.worst;
    const float share = 1.01f * rounding + static_cast<float>(width_) * 0x1p-22f;
    for (std::int64_t i = 0; i < lanes; ++i) reach[i] = share * of_queries_.norm[i];
  }

 protected:
  Look(std::int64_t width, std::int64_t fifths)
      : fifths_(fifths), width_(width), words_(words(width)), pitch_(pitch(width)), queries_(LANES * words_) {}

  virtual void taken() {}
  virtual void multiply(const Word* k, const Rounded& keys, std::int64_t count, std::int64_t lanes, float* tile) = 0;

  const std::int64_t fifths_, width_, words_, pitch_;
  Buffer<Word> queries_;  // [panels of PANEL][words]
  Rounded of_queries_ = {};
};

// Fifths: measured, with AMX and on Zen 4. A score by itself costs as much as a few in a whole tile, and the look comes
// on top.
class HalfLook : public Look {
 public:
  explicit HalfLook(std::int64_t width) : Look(width, 1), any_(LANES, 2 * words_) {}

  void round_keys(const float* k, std::int64_t stride, std::int64_t keys, Word* out, Rounded* of) const override {
    bfloat16()->round_rows(k, stride, keys, width_, reinterpret_cast<Half*>(out), 2 * pitch_, of);
  }

 private:
  void multiply(const Word* k, const Rounded&, std::int64_t count, std::int64_t lanes, float* tile) override {
    any_.multiply(count, lanes, 2 * words_, reinterpret_cast<const Half*>(k), 2 * pitch_, queries_.get(),
                  words_ * PANEL, tile, LANES, false);
  }

  Session session_;
  AnyRows any_;
};

class ByteLook : public Look {
 public:
  explicit ByteLook(std::int64_t width) : Look(width, 2) {}

  void round_keys(const float* k, std::int64_t stride, std::int64_t keys, Word* out, Rounded* of) const override {
    bytes()->round_rows(k, stride, keys, width_, out, pitch_, of);
  }

 private:
  // The instruction multiplies int8 by numbers that are not negative.
  void taken() override {
    for (std::int64_t i = 0; i < LANES * words_; ++i) queries_.get()[i] ^= 0x80808080;
  }

  void multiply(const Word* k, const Rounded& keys, std::int64_t count, std::int64_t lanes, float* tile) override {
    bytes()->multiply(count, lanes, words_, k, pitch_, keys, queries_.get(), of_queries_, tile);
  }
};

inline bool looks_in_halves() { return bfloat16() && bfloat16()->tiles; }

inline const char* Look::name() {
  if (looks_in_halves()) return bfloat16()->name;
  return bytes() ? bytes()->name : "";
}

inline std::int64_t Look::words(std::int64_t width) {
  if (looks_in_halves()) return half_depth(width) / 2;
  return bytes() && width < WIDEST_BYTES ? byte_words(width) : 0;
}

inline std::unique_ptr<Look> Look::at(std::int64_t width) {
  if (looks_in_halves()) return std::make_unique<HalfLook>(width);
  return std::make_unique<ByteLook>(width);
}

}  // namespace glomo
