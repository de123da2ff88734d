// Bilinear interpolation along one axis, in the float32 arithmetic of F.interpolate. Shared by CPU and CUDA code.
//
// Output index o reads the input at source(o); it lies in the cell between the neighbours low = floor(source) and
// low + 1 (the last index is its own neighbour), at the fraction source - low.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define FASTSEG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTSEG_HOST_DEVICE inline
#endif

namespace fastseg {

struct Axis {
  int64_t in, out;
  bool align_corners;
  float scale;  // input steps per output step
};

FASTSEG_HOST_DEVICE Axis make_axis(int64_t in, int64_t out, bool align_corners) {
  float scale = align_corners ? (out > 1 ? float(in - 1) / float(out - 1) : 0.0f) : float(in) / float(out);
  return {in, out, align_corners, scale};
}

// Negative for the outputs before the first input's centre; their sample is the first input.
FASTSEG_HOST_DEVICE float source(const Axis& axis, int64_t o) {
  return axis.align_corners ? axis.scale * float(o) : axis.scale * (float(o) + 0.5f) - 0.5f;
}

struct Sample {
  int64_t low, high;
  float fraction;  // weight of high; low has 1 - fraction
};

FASTSEG_HOST_DEVICE Sample sample(const Axis& axis, int64_t o) {
  float s = source(axis, o);
  s = s > 0.0f ? s : 0.0f;
  int64_t low = int64_t(s) < axis.in - 1 ? int64_t(s) : axis.in - 1;
  int64_t high = low < axis.in - 1 ? low + 1 : low;
  float fraction = s - float(low);
  return {low, high, fraction < 1.0f ? fraction : 1.0f};
}

}  // namespace fastseg
