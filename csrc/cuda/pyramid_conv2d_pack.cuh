// A convolution's weight as the dense factor of a product (fastseg/ops/pyramid_conv2d.py).
#pragma once
#include <type_traits>

#include "cuda/device.h"

namespace fastseg {

// (O, C, kh, kw), any strides, as (kh, kw, padded_channels, padded_outputs) with zeros added.
struct WeightPacking {
  int64_t strides[4];
  int outputs, channels, kernel_rows, kernel_columns, padded_outputs, padded_channels;

  __host__ __device__ __forceinline__ int taps() const { return kernel_rows * kernel_columns; }
  __host__ __device__ __forceinline__ int64_t rows() const { return int64_t(taps()) * padded_channels; }
};

template <typename T>
WeightPacking weight_packing(const int64_t* sizes, const int64_t* strides) {
  return {{strides[0], strides[1], strides[2], strides[3]},
          int(sizes[0]),
          int(sizes[1]),
          int(sizes[2]),
          int(sizes[3]),
          whole_vectors<T>(sizes[0]),
          whole_vectors<T>(sizes[1])};
}

constexpr int kPackSide = 32, kPackRows = 8;

// A block turns a square of channels (of taps) and outputs: reads neighbours in memory, and writes them.
template <typename Bits>
__global__ void __launch_bounds__(kPackSide* kPackRows)
    pyramid_conv2d_pack_kernel(const Bits* __restrict__ from, Bits* __restrict__ to, WeightPacking packing) {
  __shared__ Bits square[kPackSide][kPackSide + 1];
  const int across = ceil_div(packing.padded_outputs, kPackSide);
  const int64_t first_row = blockIdx.x / across * int64_t(kPackSide);
  const int first_output = int(blockIdx.x % across) * kPackSide, taps = packing.taps();
  const bool channels_first = packing.strides[1] <= packing.strides[3];  // neighbours are channels, not taps
  auto channel_of = [&](int64_t row) { return int(channels_first ? row % packing.padded_channels : row / taps); };
  auto tap_of = [&](int64_t row) { return int(channels_first ? row / packing.padded_channels : row % taps); };
  for (int i = threadIdx.y; i < kPackSide; i += kPackRows) {
    const int64_t row = first_row + threadIdx.x;
    const int output = first_output + i, channel = channel_of(row), tap = tap_of(row);
    const bool exists = output < packing.outputs && channel < packing.channels && tap < taps;
    square[i][threadIdx.x] = exists ? from[output * packing.strides[0] + channel * packing.strides[1] +
                                           tap / packing.kernel_columns * packing.strides[2] +
                                           tap % packing.kernel_columns * packing.strides[3]]
                                    : Bits(0);
  }
  __syncthreads();
  for (int i = threadIdx.y; i < kPackSide; i += kPackRows) {
    const int64_t row = first_row + i;
    const int output = first_output + threadIdx.x;
    if (row < packing.rows() && output < packing.padded_outputs)
      to[(int64_t(tap_of(row)) * packing.padded_channels + channel_of(row)) * packing.padded_outputs + output] =
          square[threadIdx.x][i];
  }
}

template <typename T, typename Device>
const T* packed_weight(Device& device, const T* from, const WeightPacking& packing) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  T* to = device.template scratch<T>(packing.rows() * packing.padded_outputs);
  const int64_t blocks =
      ceil_div<int64_t>(packing.rows(), kPackSide) * ceil_div<int64_t>(packing.padded_outputs, kPackSide);
  device.launch(row_of_blocks(blocks, dim3(kPackSide, kPackRows)), pyramid_conv2d_pack_kernel<Bits>,
                reinterpret_cast<const Bits*>(from), reinterpret_cast<Bits*>(to), packing);
  return to;
}

}  // namespace fastseg
