// Vectors for CPU kernels. Operators on these types compile to the widest instructions of the function they are in;
// FASTSEG_CLONES makes three versions of a function (AVX-512, AVX2, SSE2) and picks one when the library is loaded.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define FASTSEG_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FASTSEG_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
#else
#define FASTSEG_CLONES
#endif
// A helper must become part of the cloned function that calls it, or it would run as the SSE2 version.
#define FASTSEG_INLINE inline __attribute__((always_inline))

namespace fastseg {

constexpr int64_t kWide = 16;  // one AVX-512 register of floats
constexpr int64_t kShort = 8;  // for runs of a few pixels

typedef float WideFloat __attribute__((vector_size(kWide * 4)));
typedef int32_t WideInt __attribute__((vector_size(kWide * 4)));
typedef float ShortFloat __attribute__((vector_size(kShort * 4)));
typedef int32_t ShortInt __attribute__((vector_size(kShort * 4)));

template <typename Vector, typename T>
FASTSEG_INLINE void load(Vector& v, const T* from) {
  std::memcpy(&v, from, sizeof(Vector));
}

template <typename T, typename Vector>
FASTSEG_INLINE void store(T* to, const Vector& v) {
  std::memcpy(to, &v, sizeof(Vector));
}

FASTSEG_INLINE float to_float(float x) { return x; }

FASTSEG_INLINE float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

FASTSEG_INLINE float to_float(torch::headeronly::BFloat16 x) { return from_bits(uint32_t(x.x) << 16); }

// Exact, without a branch, so that loops over it vectorise: 2^112 moves the exponent from half's bias to float's.
FASTSEG_INLINE float to_float(torch::headeronly::Half x) {
  uint32_t sign = uint32_t(x.x & 0x8000) << 16, magnitude = uint32_t(x.x & 0x7fff) << 13;
  uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;  // inf and NaN
  float scaled = from_bits(magnitude) * 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  return from_bits(bits | special | sign);
}

FASTSEG_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// float to T, rounded to the nearest, ties to even; NaN stays NaN. Also without a branch.
template <typename T>
T from_float(float x) = delete;

template <>
FASTSEG_INLINE float from_float<float>(float x) {
  return x;
}

template <>
FASTSEG_INLINE torch::headeronly::BFloat16 from_float<torch::headeronly::BFloat16>(float x) {
  const uint32_t bits = to_bits(x), nearest = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
  const uint32_t kept = x == x ? nearest : quiet;
  return {uint16_t(kept >> 16), torch::headeronly::BFloat16::from_bits()};
}

// Beside 2^13 times x's power of two, one unit of a float is one of half: the addition rounds. The smallest power is
// that of half's subnormals. What is too large only has to stay so.
template <>
FASTSEG_INLINE torch::headeronly::Half from_float<torch::headeronly::Half>(float x) {
  const uint32_t magnitude = to_bits(x) & 0x7fffffff, sign = to_bits(x) >> 16 & 0x8000;
  const uint32_t power = std::max<uint32_t>(magnitude >> 23, 113), beside = std::min<uint32_t>(power + 13, 254) << 23;
  const uint32_t units = to_bits(from_bits(magnitude) + from_bits(beside)) - beside;
  const uint32_t nearest = std::min<uint32_t>(((power - 113) << 10) + units, 0x7c00);
  const uint32_t nan = magnitude > 0x7f800000 ? 0x200 : 0;
  return {uint16_t(nearest | nan | sign), torch::headeronly::Half::from_bits()};
}

}  // namespace fastseg
