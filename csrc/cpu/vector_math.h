// Functions of whole vectors: exponentials, logarithms, a transpose. Polynomials are minimax fits of relative error.
#pragma once
#include "cpu/simd.h"

namespace fastseg {

FASTSEG_INLINE WideInt bits_of(WideFloat x) {
  WideInt bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

FASTSEG_INLINE WideFloat of_bits(WideInt bits) {
  WideFloat x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Whether any bit is set.
FASTSEG_INLINE bool any(WideFloat x) {
  uint64_t words[kWide / 2], all = 0;
  std::memcpy(words, &x, sizeof x);
  for (uint64_t word : words) all |= word;
  return all != 0;
}

// 2^x for x <= 127, to 1e-7 of itself, and 2^-126 for smaller results; NaN for NaN.
FASTSEG_INLINE WideFloat exp2(WideFloat x) {
  const WideFloat least = WideFloat{} - 126.0f;
  x = least > x ? least : x;                      // keeps NaN
  const WideFloat rounded = x + 0x1.8p23f;        // whole part in the low bits
  const WideFloat r = x - (rounded - 0x1.8p23f);  // in [-1/2, 1/2]
  WideFloat p = WideFloat{} + 1.5353362e-4f;
  p = p * r + 1.3398875e-3f;
  p = p * r + 9.6184369e-3f;
  p = p * r + 5.5503323e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return p * of_bits((bits_of(rounded) << 23) + (127 << 23));
}

// Natural logarithm of normal numbers > 0, to 1e-7 of itself, near 1 too.
FASTSEG_INLINE WideFloat log(WideFloat x) {
  const WideInt bits = bits_of(x);
  const WideInt exponent = (bits - 0x3f3504f3) >> 23;           // of x relative to [sqrt(1/2), sqrt(2)]
  const WideFloat f = of_bits(bits - (exponent << 23)) - 1.0f;  // x = 2^exponent (1 + f)
  WideFloat p = WideFloat{} - 7.6211244e-2f;
  p = p * f + 1.2904674e-1f;
  p = p * f - 1.3243463e-1f;
  p = p * f + 1.4181833e-1f;
  p = p * f - 1.6609012e-1f;
  p = p * f + 2.0001969e-1f;
  p = p * f - 2.5001586e-1f;
  p = p * f + 3.3333325e-1f;
  p = p * f - 0.5f;
  return __builtin_convertvector(exponent, WideFloat) * 0.69314718f + (p * f * f + f);
}

// {a[0], b[0], a[1], b[1], ...} of the lower or upper half.
FASTSEG_INLINE WideFloat zip(WideFloat a, WideFloat b, bool upper) {
#ifdef __clang__
  return upper ? __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
               : __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
  const WideInt low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const WideInt high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return upper ? __builtin_shuffle(a, b, high) : __builtin_shuffle(a, b, low);
#endif
}

// rows[i][j] <-> rows[j][i]: zipping row i with row i + 8 four times moves every index bit to its place.
FASTSEG_INLINE void transpose(WideFloat (&rows)[kWide]) {
  for (int stage = 0; stage < 4; ++stage) {
    WideFloat zipped[kWide];
    for (int64_t i = 0; i < kWide / 2; ++i) {
      zipped[2 * i] = zip(rows[i], rows[i + kWide / 2], false);
      zipped[2 * i + 1] = zip(rows[i], rows[i + kWide / 2], true);
    }
    for (int64_t i = 0; i < kWide; ++i) rows[i] = zipped[i];
  }
}

}  // namespace fastseg
