// Copies of strided arrays as dense matrices of whole vectors.
#pragma once
#include "cuda/deconv2d_sides.cuh"

namespace fastseg {

// A strided array as a dense matrix (rows[0], ..., rows[3]) x pitch. rows[3] ends with rows of zeros from `given` on.
// A row holds the elements of all three columns side by side, and zeros up to `pitch`, a number of whole vectors.
struct Packing {
  int64_t rows[4], row_strides[4];
  int given, columns[3];
  int64_t column_strides[3];
  int pitch;

  __host__ __device__ __forceinline__ int64_t vectors(int per_vector) const {
    return rows[0] * rows[1] * rows[2] * rows[3] * (pitch / per_vector);
  }
};

constexpr int kPackThreads = 256;

// A thread owns 16 bytes of the result. Threads of a block read neighbouring elements, or the same sectors again.
template <typename Bits>
__global__ void __launch_bounds__(kPackThreads)
    deconv2d_pack_kernel(const Bits* __restrict__ from, Bits* __restrict__ to, Packing packing) {
  constexpr int kCount = kPerVector<Bits>;
  const int64_t vector = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (vector >= packing.vectors(kCount)) return;
  const int per_row = packing.pitch / kCount;
  int64_t row = vector / per_row;
  const int column = int(vector % per_row) * kCount;
  bool given = row % packing.rows[3] < packing.given;
#pragma unroll
  for (int axis = 3; axis >= 0; --axis) {
    from += row % packing.rows[axis] * packing.row_strides[axis];
    row /= packing.rows[axis];
  }
  int c = column % packing.columns[2], b = column / packing.columns[2] % packing.columns[1],
      a = column / packing.columns[2] / packing.columns[1];
  Elements<Bits, kCount> elements;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    given = given && a < packing.columns[0];
    elements.values[i] =
        given ? from[a * packing.column_strides[0] + b * packing.column_strides[1] + c * packing.column_strides[2]]
              : Bits(0);
    if (++c == packing.columns[2]) {
      c = 0;
      if (++b == packing.columns[1]) b = 0, ++a;
    }
  }
  elements.store(to + vector * kCount);
}

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

template <typename T, typename Device>
const T* pack(Device& device, const T* from, const Packing& packing) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
  const int64_t vectors = packing.vectors(kPerVector<T>);
  if (vectors == 0) return nullptr;
  T* to = device.template scratch<T>(vectors * kPerVector<T>);
  device.launch(row_of_blocks(ceil_div<int64_t>(vectors, kPackThreads), kPackThreads), deconv2d_pack_kernel<Bits>,
                reinterpret_cast<const Bits*>(from), reinterpret_cast<Bits*>(to), packing);
  return to;
}

// An image (N, C, H, W) as (N, H, W, groups, C / groups rounded up to whole vectors).
template <typename T, typename Device>
const T* packed_image(Device& device, const View<T>& image, int groups) {
  const int64_t *sizes = image.sizes, *strides = image.strides;
  const int channels = int(sizes[1] / groups), pitch = whole_vectors<T>(channels);
  const int64_t wanted[] = {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
  bool as_wanted = channels == pitch && is_aligned(image.data);
  for (int axis = 0; axis < 4; ++axis) as_wanted &= sizes[axis] == 1 || strides[axis] == wanted[axis];
  if (as_wanted) return image.data;
  return pack(device, image.data,
              {{sizes[0], sizes[2], sizes[3], groups},
               {strides[0], strides[2], strides[3], channels * strides[1]},
               groups,
               {1, 1, channels},
               {0, 0, strides[1]},
               pitch});
}

}  // namespace fastseg
