// Computes  labels = argmax over classes of the bilinearly upsampled input  (fastseg/ops/upsample_argmax.py).
//
// A warp owns one cell: the outputs between the same four input pixels. First its lanes take classes: which classes can
// win in the cell (largest corner not below another's smallest)? A ballot leaves one bit per class in shared memory.
// Then its lanes take pixels and compare the survivors, whose corners all lanes read alike (one broadcast).
// Reads each logit of a channels_last input up to 8 times, coalesced along classes (DRAM sees it once, L1 the rest);
// writes each label once.
// Precision: float32. Cells with an inf or NaN corner keep every class, so they follow F.interpolate exactly.
#pragma once
#include <algorithm>

#include "bilinear.h"
#include "cuda/device.h"

namespace fastseg {

constexpr int kCellsPerBlock = 8;  // one per warp

// The four input pixels of a cell, as pointers to their class 0.
template <typename T>
struct Cell {
  const T *top_left, *top_right, *bottom_left, *bottom_right;  // (C,)
};

struct Corners {
  float top_left, top_right, bottom_left, bottom_right;
};

template <typename T>
__device__ __forceinline__ Corners corners(const Cell<T>& cell, int k) {
  return {to_float(cell.top_left[k]), to_float(cell.top_right[k]), to_float(cell.bottom_left[k]),
          to_float(cell.bottom_right[k])};
}

__device__ __forceinline__ float interpolate(const Corners& c, float right, float lower) {
  float left = 1.0f - right, upper = 1.0f - lower;
  return left * (upper * c.top_left + lower * c.bottom_left) + right * (upper * c.top_right + lower * c.bottom_right);
}

// The value that some class is sure to reach everywhere in the cell; -inf if any corner is not finite.
template <typename T>
__device__ float guaranteed_value(const Cell<T>& cell, int classes, int lane) {
  float guaranteed = -INFINITY;
  bool odd = false;
  for (int k = lane; k < classes; k += kWarp) {
    Corners c = corners(cell, k);
    guaranteed = fmaxf(guaranteed, fminf(fminf(c.top_left, c.top_right), fminf(c.bottom_left, c.bottom_right)));
    odd |= !((c.top_left + c.top_right + c.bottom_left + c.bottom_right) * 0.0f == 0.0f);
  }
  for (int apart = kWarp / 2; apart > 0; apart /= 2)
    guaranteed = fmaxf(guaranteed, __shfl_xor_sync(kAllLanes, guaranteed, apart));
  return __any_sync(kAllLanes, odd) ? -INFINITY : guaranteed;
}

// Sets bit k % 32 of survivors[k / 32] for every class that may win in the cell.
template <typename T>
__device__ void prune(const Cell<T>& cell, int classes, int lane, unsigned* survivors) {
  float guaranteed = guaranteed_value(cell, classes, lane);
  for (int first = 0; first < classes; first += kWarp) {
    bool keep = false;
    if (first + lane < classes) {
      Corners c = corners(cell, first + lane);
      float most = fmaxf(fmaxf(c.top_left, c.top_right), fmaxf(c.bottom_left, c.bottom_right));
      keep = !(most < guaranteed);  // not `>=`: NaN is kept
    }
    unsigned kept = __ballot_sync(kAllLanes, keep);
    if (lane == 0) survivors[first / kWarp] = kept;
  }
  __syncwarp();
}

// Calls f(k) for every survivor, lowest first.
template <typename F>
__device__ __forceinline__ void for_each_survivor(const unsigned* survivors, int classes, F&& f) {
  for (int word = 0; word * kWarp < classes; ++word)
    for (unsigned bits = survivors[word]; bits; bits &= bits - 1) f(word * kWarp + __ffs(bits) - 1);
}

// The best class at one pixel. As argmax: the first of equals wins, and so does the first NaN.
template <typename T>
__device__ int best_class(const Cell<T>& cell, const unsigned* survivors, int classes, float right, float lower) {
  float best = -INFINITY;
  int label = 0;
  for_each_survivor(survivors, classes, [&](int k) {
    float value = interpolate(corners(cell, k), right, lower);
    if (!(value <= best) && best == best) best = value, label = k;
  });
  return label;
}

// A block per kCellsPerBlock column spans, row span and image; in shared memory a word per warp and 32 classes.
inline LaunchShape launch_shape(int64_t images, int64_t classes, const Spans& rows, const Spans& columns,
                                int64_t most_blocks = kMostBlocksYZ) {
  const dim3 grid((columns.count + kCellsPerBlock - 1) / kCellsPerBlock, std::min(rows.count, most_blocks),
                  std::min(images, most_blocks));
  return {grid, kWarp * kCellsPerBlock, kCellsPerBlock * ((classes + kWarp - 1) / kWarp) * sizeof(unsigned)};
}

template <typename T, typename Label>
__global__ void __launch_bounds__(kWarp* kCellsPerBlock)
    upsample_argmax_kernel(const T* __restrict__ input,  // (N, h, w, C), dense
                           Label* __restrict__ labels,   // (N, H, W), dense
                           int64_t images, int classes, Spans rows, Spans columns) {
  unsigned* all_survivors = dynamic_shared<unsigned>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned* survivors = all_survivors + warp * ((classes + kWarp - 1) / kWarp);
  const int64_t column = int64_t(blockIdx.x) * kCellsPerBlock + warp;
  if (column >= columns.count) return;
  const Span x = span(columns, column);
  for (int64_t image = blockIdx.z; image < images; image += gridDim.z) {
    for (int64_t row = blockIdx.y; row < rows.count; row += gridDim.y) {
      const Span y = span(rows, row);
      const int width = int(x.end - x.begin), height = int(y.end - y.begin);
      if (width == 0 || height == 0) continue;
      const T* top = input + (image * rows.axis.in + y.low) * columns.axis.in * classes;
      const T* bottom = input + (image * rows.axis.in + y.high) * columns.axis.in * classes;
      const Cell<T> cell = {top + x.low * classes, top + x.high * classes, bottom + x.low * classes,
                            bottom + x.high * classes};
      prune(cell, classes, lane, survivors);
      // Lane after lane along the rows of the cell, without a division per pixel.
      for (int dy = lane / width, dx = lane % width; dy < height; dy += kWarp / width, dx += kWarp % width) {
        if (dx >= width) {
          dx -= width;
          if (++dy >= height) break;
        }
        const int64_t out_y = y.begin + dy, out_x = x.begin + dx;
        const float lower = fraction(rows.axis, out_y, y.low), right = fraction(columns.axis, out_x, x.low);
        const int label = best_class(cell, survivors, classes, right, lower);
        labels[(image * rows.axis.out + out_y) * columns.axis.out + out_x] = Label(label);
      }
      __syncwarp();  // the next cell overwrites survivors
    }
  }
}

}  // namespace fastseg
