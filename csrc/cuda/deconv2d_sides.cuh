// What the kernels of deconv2d share: the geometry of a call. Coordinates are `int`, and so are rows and columns of a
// packed weight: they end at kLongestSide.
#pragma once
#include <algorithm>
#include <climits>
#include <numeric>
#include <vector>

#include "cuda/position.h"

namespace fastseg {

constexpr int64_t kLongestSide = int64_t(1) << 29;  // sums of two of them are numbers too

// A tensor of four axes, any strides.
template <typename T>
struct View {
  const T* data;
  int64_t sizes[4], strides[4];
};

// One axis of a deconvolution: input i and tap k reach output y where  i stride + k dilation = y + start.
//
// Outputs y with equal (y + start) mod stride are a phase. With g = gcd(stride, dilation), phase p reads the taps p,
// p + period, ... with period = stride / g, from inputs that are reach = dilation / g apart, and consists of
//   y = base stride + offset(p) - start,  where base is the input of its first tap.
// Phases from `period` on have no taps.
struct DeconvSide {
  int in, out, kernel, stride, dilation, start, period, reach;

  __host__ __device__ __forceinline__ int offset(int phase) const { return phase % period * dilation + phase / period; }
  __host__ __device__ __forceinline__ int taps(int phase) const {
    return phase < period && phase < kernel ? ceil_div(kernel - phase, period) : 0;
  }
};

inline DeconvSide deconv_side(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t dilation,
                              int64_t start) {
  const int64_t common = std::gcd(stride, dilation);
  return {int(in),       int(out),   int(kernel),          int(stride),
          int(dilation), int(start), int(stride / common), int(dilation / common)};
}

// Neighbouring phases with the same number of taps, and the bases that any output of theirs has.
struct PhaseRange {
  int first, count, taps, first_base, bases;
};

inline PhaseRange phase_range(const DeconvSide& side, int first, int end) {
  auto floor_div = [&](int64_t y) { return (y >= 0 ? y : y - side.stride + 1) / side.stride; };
  int64_t first_base = INT64_MAX, last_base = INT64_MIN;
  for (int phase = first; phase < end; ++phase) {
    const int64_t start = int64_t(side.start) - side.offset(phase);
    first_base = std::min(first_base, floor_div(start + side.stride - 1));
    last_base = std::max(last_base, floor_div(start + side.out - 1));
  }
  const int64_t bases = std::max<int64_t>(last_base - first_base + 1, 0);
  return {first, end - first, side.taps(first), int(first_base), int(bases)};
}

inline std::vector<PhaseRange> phase_ranges(const DeconvSide& side) {
  const int ends[] = {0, side.kernel % side.period, side.period, side.stride};
  std::vector<PhaseRange> ranges;
  for (int i = 0; i < 3; ++i)
    if (ends[i] < ends[i + 1]) ranges.push_back(phase_range(side, ends[i], ends[i + 1]));
  return ranges;
}

// A call: the input has `channels` channels in each group, the output `outputs`.
struct Deconv {
  DeconvSide y, x;
  int64_t images;
  int groups, channels, outputs;
  bool channels_last;  // the result; of a weight's gradient, the output's gradient

  int64_t all_channels() const { return int64_t(groups) * channels; }
};

}  // namespace fastseg
