// Bilinear interpolation along one axis, in the float32 arithmetic of F.interpolate. Shared by CPU and CUDA code; the
// Triton twin is kernels/bilinear.py.
//
// Output o reads the input at source(o): in the cell between the neighbours low = floor(source) and low + 1, at the
// fraction source - low. The last input is its own neighbour, and so is every input of an axis that keeps its size, as
// in PyTorch's CPU kernel: there an inf or NaN does not leak through a weight of zero.
#pragma once
#include <cmath>
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

inline Axis make_axis(int64_t in, int64_t out, bool align_corners) {
  float scale = align_corners ? (out > 1 ? float(in - 1) / float(out - 1) : 0.0f) : float(in) / float(out);
  return {in, out, align_corners, scale};
}

// Negative for the outputs before the first input's centre, which sample the first input. fmaf so that every compiler
// rounds alike: two threads must agree on where a cell ends.
FASTSEG_HOST_DEVICE float source(const Axis& axis, int64_t o) {
  return axis.align_corners ? axis.scale * float(o) : fmaf(axis.scale, float(o) + 0.5f, -0.5f);
}

// The weight of low + 1 for output o in the cell at low; low itself weighs 1 - fraction.
FASTSEG_HOST_DEVICE float fraction(const Axis& axis, int64_t o, int64_t low) {
  float t = source(axis, o) - float(low);
  return t > 0.0f ? (t < 1.0f ? t : 1.0f) : 0.0f;
}

FASTSEG_HOST_DEVICE int64_t neighbour(const Axis& axis, int64_t low) {
  return low < axis.in - 1 && axis.in != axis.out ? low + 1 : low;
}

FASTSEG_HOST_DEVICE int64_t low_index(const Axis& axis, int64_t o) {
  float s = source(axis, o);
  int64_t low = s > 0.0f ? int64_t(s) : 0;
  return low < axis.in - 1 ? low : axis.in - 1;
}

// Consecutive outputs [begin, end) that share their two input neighbours.
struct Span {
  int64_t low, high, begin, end;
};

// A cut of the outputs into spans that each thread can find on its own. Scaling up, a span is a cell, with one more
// before the first centre (half-pixel coordinates only); scaling down, it is one output.
struct Spans {
  Axis axis;
  bool are_cells;
  int64_t first;  // cell of span 0
  int64_t count;
};

inline Spans make_spans(const Axis& axis) {
  if (axis.in > axis.out) return {axis, false, 0, axis.out};
  int64_t before = axis.align_corners ? 0 : 1;
  return {axis, true, -before, axis.in + before};
}

// The first output with source >= i, when scaling up. The division is off by less than one output, so start one early.
FASTSEG_HOST_DEVICE int64_t first_output_at(const Spans& spans, int64_t i) {
  const Axis& axis = spans.axis;
  if (i <= spans.first) return 0;
  if (i >= axis.in) return axis.out;
  float guess = axis.align_corners ? float(i) / axis.scale : (float(i) + 0.5f) / axis.scale - 0.5f;
  int64_t o = int64_t(guess) - 1 > 0 ? int64_t(guess) - 1 : 0;
  while (o < axis.out && source(axis, o) < float(i)) ++o;
  return o;
}

FASTSEG_HOST_DEVICE Span span(const Spans& spans, int64_t index) {
  if (!spans.are_cells) {
    int64_t low = low_index(spans.axis, index);
    return {low, neighbour(spans.axis, low), index, index + 1};
  }
  int64_t cell = index + spans.first, low = cell > 0 ? cell : 0;
  return {low, neighbour(spans.axis, low), first_output_at(spans, cell), first_output_at(spans, cell + 1)};
}

}  // namespace fastseg
