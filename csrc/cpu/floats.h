// Tensors of any dtype and strides as float32, and copies of short runs of numbers.
#pragma once
#include <algorithm>
#include <memory>
#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/vector_math.h"
#include "tensor.h"

namespace fastseg {

// (N, C, H, W), which may be the tensor itself.
struct Floats {
  const float* data;
  int64_t image, channel, row, column;  // strides
  std::unique_ptr<float[]> copy;        // not cleared

  const float* at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return data + n * image + c * channel + y * row + x * column;
  }
};

// to[a][b] = from[a][b]. The inner loop is over neighbours of `from`.
template <typename T>
FASTSEG_CLONES void convert(const T* from, int64_t from_a, int64_t from_b, int64_t count_a, int64_t count_b, float* to,
                            int64_t to_step) {
  if (from_b == 1) {
    for (int64_t a = 0; a < count_a; ++a)
      for (int64_t b = 0; b < count_b; ++b) to[a * to_step + b] = to_float(from[a * from_a + b]);
    return;
  }
  int64_t whole = 0;  // so many columns b are done in blocks
  for (; from_a == 1 && whole + kWide <= count_b; whole += kWide) {
    for (int64_t a = 0; a < count_a; a += kWide) {
      WideFloat block[kWide] = {};
      for (int64_t b = 0; b < kWide; ++b) {
        const T* row = from + a + (whole + b) * from_b;
        const int64_t count = std::min(kWide, count_a - a);
        if (count == kWide) {
          for (int64_t k = 0; k < kWide; ++k) block[b][k] = to_float(row[k]);
        } else {
          for (int64_t k = 0; k < count; ++k) block[b][k] = to_float(row[k]);
        }
      }
      transpose(block);
      for (int64_t k = 0; k < std::min(kWide, count_a - a); ++k) store(to + (a + k) * to_step + whole, block[k]);
    }
  }
  for (int64_t b = whole; b < count_b; ++b)
    for (int64_t a = 0; a < count_a; ++a) to[a * to_step + b] = to_float(from[a * from_a + b * from_b]);
}

template <typename T>
FASTSEG_CLONES void round_to(const float* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_float<T>(from[i]);
}

enum class Order { kAny, kChannelsLast };  // kAny: whatever strides the tensor has

// `least`: of a copied or given channels_last pixel so many floats may be read.
inline Floats floats_of(const Tensor& tensor, Order order, int64_t least = 1) {
  const int64_t images = tensor.size(0), channels = tensor.size(1), height = tensor.size(2), width = tensor.size(3);
  const int64_t image = tensor.stride(0), channel = tensor.stride(1), row = tensor.stride(2), column = tensor.stride(3);
  const bool fits = order == Order::kAny || (channel == 1 && channels >= least);
  if (tensor.scalar_type() == ScalarType::Float && fits)
    return {tensor.const_data_ptr<float>(), image, channel, row, column, nullptr};
  const bool channels_last = order == Order::kChannelsLast || channel < column;
  const int64_t pixel = channels_last ? std::max(channels, least) : 1, line = width * pixel;
  const int64_t planes = channels_last ? 1 : channels, lines = images * planes * height;
  Floats floats{nullptr,
                planes * height * line,
                channels_last ? 1 : height * line,
                line,
                pixel,
                std::unique_ptr<float[]>(new float[lines * line])};
  floats.data = floats.copy.get();
  with_type<float, Half, BFloat16>(tensor.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T* data = tensor.const_data_ptr<T>();
    parallel_for(lines, 1 + 32768 / line, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* from = data + i / height / planes * image + i / height % planes * channel + i % height * row;
        float* to = floats.copy.get() + i * line;
        if (channels_last) {
          convert(from, column, channel, width, channels, to, pixel);
        } else {
          convert(from, 0, column, 1, width, to, line);
        }
      }
    });
  });
  return floats;
}

// Calls f with the length as a compile-time number, if it is a common one.
template <typename F>
FASTSEG_INLINE void with_length(int64_t length, const F& f) {
  switch (length) {
    case 1:
      return f(std::integral_constant<int64_t, 1>());
    case 2:
      return f(std::integral_constant<int64_t, 2>());
    case 4:
      return f(std::integral_constant<int64_t, 4>());
    case 8:
      return f(std::integral_constant<int64_t, 8>());
    case 16:
      return f(std::integral_constant<int64_t, 16>());
    case 32:
      return f(std::integral_constant<int64_t, 32>());
    case 48:
      return f(std::integral_constant<int64_t, 48>());
    default:
      return f(length);
  }
}

// `count` times `length` numbers; those of `from` are `stride` apart.
FASTSEG_CLONES inline void copy(const float* from, int64_t from_step, int64_t stride, float* to, int64_t to_step,
                                int64_t count, int64_t length) {
  if (stride == 1) {
    with_length(length, [&](auto length) {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < length; ++k) to[i * to_step + k] = from[i * from_step + k];
    });
  } else {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < length; ++k) to[i * to_step + k] = from[i * from_step + k * stride];
  }
}

}  // namespace fastseg
