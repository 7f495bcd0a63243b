// Panels of a product's right operand, and rows of its left one, as the inner loop of native.cc
// reads them: 32-bit words along the sum. A word is one float32; of bfloat16 two neighbours, if the
// processor multiplies such pairs (AVX512-BF16), and else one, widened.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace moegen {

constexpr int kLanes = 16;                   // floats of a vector
constexpr int kVectors = 4;                  // vectors of a panel's row
constexpr int kColumns = kLanes * kVectors;  // columns of a panel
constexpr int kLine = 64;                    // bytes of a cache line

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint16_t Pairs __attribute__((vector_size(64)));

// The same anywhere in memory. Sums of these types would not stay in registers.
template <typename V>
struct __attribute__((packed, may_alias)) Anywhere {
  V value;
};
template <typename V>
inline V read(const void* from) {
  return reinterpret_cast<const Anywhere<V>*>(from)->value;
}
template <typename V>
inline void write(void* to, V value) {
  reinterpret_cast<Anywhere<V>*>(to)->value = value;
}

struct Bf16 {
  uint16_t bits;
};

// How many neighbours along the sum are in a word.
template <typename T>
constexpr int kPerWord = 1;
#ifdef __AVX512BF16__
template <>
constexpr int kPerWord<Bf16> = 2;
#endif
// Whether words are as they lie in memory.
template <typename T>
constexpr bool kAsStored = kPerWord<T> * sizeof(T) == sizeof(float);
template <typename T>
inline int64_t words(int64_t depth) {
  return (depth + kPerWord<T> - 1) / kPerWord<T>;
}

inline Floats load(const float* from) { return read<Floats>(from); }
inline Floats load(const Bf16* from) {
  return (Floats)(__builtin_convertvector(read<Halves>(from), Words) << 16);
}
inline float load_one(const float* from) { return *from; }
inline float load_one(const Bf16* from) {
  const uint32_t word = uint32_t{from->bits} << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline void store(float* to, Floats value) { write(to, value); }
inline void store(Bf16* to, Floats value) {  // to nearest, ties to even; a NaN stays one
#ifdef __AVX512BF16__
  write(to, _mm512_cvtneps_pbh((__m512)value));
#else
  const Words bits = (Words)value;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words nan = (Words)(value != value);
  write(to, __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Halves));
#endif
}

// sum + left * right, word by word; the left one is the same for all lanes.
template <typename T>
inline Floats add_product(Floats sum, float left, Floats right) {
#ifdef __AVX512BF16__
  if constexpr (kPerWord<T> == 2) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(left), (__m512bh)right);
  }
#endif
  return sum + left * right;
}

// Writes a result past the caches: its lines may lie in the other core's, and need not be read first.
template <typename T>
inline void write_through(T* to, const T* row, int columns) {
#ifdef __AVX512F__
  if (columns == kColumns && reinterpret_cast<uintptr_t>(to) % kLine == 0) {
    auto* lines = reinterpret_cast<__m512i*>(to);
    for (size_t l = 0; l < kColumns * sizeof(T) / kLine; ++l) {
      _mm512_stream_si512(lines + l, _mm512_load_si512(reinterpret_cast<const __m512i*>(row) + l));
    }
    return;
  }
#endif
  std::memcpy(to, row, columns * sizeof(T));
}

// A matrix in memory, as it is stored or transposed.
template <typename T>
struct Matrix {
  const T* data;
  int64_t step;
  bool transposed;
  const T* at(int64_t row, int64_t column) const {
    return transposed ? data + column * step + row : data + row * step + column;
  }
};

// A word of what lies `apart` in memory, 0 in place of what is past the `left` ones.
template <typename T>
inline float word_of(const T* from, int64_t apart, int64_t left) {
  if constexpr (kPerWord<T> == 1) return load_one(from);
  T pair[2] = {*from, {}};
  if (left > 1) pair[1] = from[apart];
  float word;
  std::memcpy(&word, pair, sizeof(word));
  return word;
}

// 16 words of what lies side by side in memory.
template <typename T>
inline Floats words_at(const T* from) {
  if constexpr (kPerWord<T> == 1) return load(from);
  return read<Floats>(from);
}

// The words of `depth` neighbours in memory.
template <typename T>
void copy_along(const T* from, int64_t depth, float* to) {
  constexpr int kStep = kPerWord<T>;
  int64_t k = 0;
  for (; k + kLanes * kStep <= depth; k += kLanes * kStep, to += kLanes) store(to, words_at(from + k));
  for (; k < depth; k += kStep) *to++ = word_of(from + k, 1, depth - k);
}

// The words of `count` sums side by side, whose next row, if there is `left` for it, is `apart`.
template <typename T>
void copy_across(const T* from, int64_t apart, int64_t left, int64_t count, float* to) {
  int64_t i = 0;
  if constexpr (kPerWord<T> == 1) {
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  } else {
    Pairs low, high;
    for (int l = 0; l < 2 * kLanes; ++l) low[l] = l / 2 + l % 2 * 32, high[l] = low[l] + kLanes;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
      const Pairs a = read<Pairs>(from + i);
      const Pairs b = left > 1 ? read<Pairs>(from + apart + i) : Pairs{};
      store(to + i, (Floats)__builtin_shuffle(a, b, low));
      store(to + i + kLanes, (Floats)__builtin_shuffle(a, b, high));
    }
  }
  for (; i < count; ++i) to[i] = word_of(from + i, apart, left);
}

// Four of the quarters of two vectors, 0 to 3 and 4 to 7.
template <int A, int B, int C, int D>
inline Floats quarters(Floats x, Floats y) {
  constexpr int from[] = {A, B, C, D};
  Words at;
  for (int l = 0; l < kLanes; ++l) at[l] = from[l / 4] * 4 + l % 4;
  return __builtin_shuffle(x, y, at);
}

// In each quarter four of its words in two vectors, 0 to 3 and 4 to 7.
template <int A, int B, int C, int D>
inline Floats in_quarters(Floats x, Floats y) {
  constexpr int from[] = {A, B, C, D};
  Words at;
  for (int l = 0; l < kLanes; ++l) at[l] = l / 4 * 4 + from[l % 4] % 4 + from[l % 4] / 4 * kLanes;
  return __builtin_shuffle(x, y, at);
}

// The transpose of 16 rows of 16 words, `apart` in `to`: of quarters, then of the words in each.
inline void turn(const Floats* rows, float* to, int apart) {
  Floats quads[4][4];
  for (int i = 0; i < 4; ++i) {
    const Floats a = rows[i], b = rows[i + 4], c = rows[i + 8], d = rows[i + 12];
    const Floats ab = quarters<0, 1, 4, 5>(a, b), cd = quarters<0, 1, 4, 5>(c, d);
    const Floats ab_high = quarters<2, 3, 6, 7>(a, b), cd_high = quarters<2, 3, 6, 7>(c, d);
    quads[0][i] = quarters<0, 2, 4, 6>(ab, cd), quads[1][i] = quarters<1, 3, 5, 7>(ab, cd);
    quads[2][i] = quarters<0, 2, 4, 6>(ab_high, cd_high);
    quads[3][i] = quarters<1, 3, 5, 7>(ab_high, cd_high);
  }
  for (int q = 0; q < 4; ++q, to += 4 * apart) {
    const Floats *r = quads[q];
    const Floats a = in_quarters<0, 4, 1, 5>(r[0], r[1]), b = in_quarters<0, 4, 1, 5>(r[2], r[3]);
    const Floats c = in_quarters<2, 6, 3, 7>(r[0], r[1]), d = in_quarters<2, 6, 3, 7>(r[2], r[3]);
    store(to, in_quarters<0, 1, 4, 5>(a, b)), store(to + apart, in_quarters<2, 3, 6, 7>(a, b));
    store(to + 2 * apart, in_quarters<0, 1, 4, 5>(c, d));
    store(to + 3 * apart, in_quarters<2, 3, 6, 7>(c, d));
  }
}

// panels[width / 64][words, 64] of a part of b, 0 past its width.
template <typename T>
void pack(Matrix<T> b, int64_t depth, int64_t width, float* panels) {
  constexpr int kStep = kPerWord<T>;
  const int64_t whole = width / kColumns * kColumns, size = words<T>(depth) * kColumns;
  if (whole < width) std::memset(panels + whole / kColumns * size, 0, size * sizeof(float));
  if (!b.transposed) {
    for (int64_t k = 0; k < depth; k += kStep) {
      for (int64_t c = 0; c < width; c += kColumns) {
        copy_across(b.at(k, c), b.step, depth - k, std::min<int64_t>(kColumns, width - c),
                    panels + c / kColumns * size + k / kStep * kColumns);
      }
    }
    return;
  }
  for (int64_t c = 0; c < width; c += kLanes) {
    float* to = panels + c / kColumns * size + c % kColumns;
    for (int64_t k = 0; k < depth; k += kLanes * kStep) {
      if (c + kLanes <= width && k + kLanes * kStep <= depth) {
        Floats rows[kLanes];
        for (int i = 0; i < kLanes; ++i) rows[i] = words_at(b.at(k, c + i));
        turn(rows, to + k / kStep * kColumns, kColumns);
      } else {
        for (int64_t i = k; i < std::min(k + kLanes * kStep, depth); i += kStep) {
          for (int64_t j = 0; j < std::min<int64_t>(kLanes, width - c); ++j) {
            to[i / kStep * kColumns + j] = word_of(b.at(i, c + j), 1, depth - i);
          }
        }
      }
    }
  }
}

}  // namespace moegen
