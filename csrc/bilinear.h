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
FASTSEG_HOST_DEVICE float source_of(const Axis& axis, float o) {
  return axis.align_corners ? axis.scale * o : fmaf(axis.scale, o + 0.5f, -0.5f);
}

FASTSEG_HOST_DEVICE float source(const Axis& axis, int64_t o) { return source_of(axis, float(o)); }

// The weight of low + 1 for an output at `source` in the cell at low; low itself weighs 1 - fraction.
FASTSEG_HOST_DEVICE float fraction_at(float source, float low) {
  float t = source - low;
  return t > 0.0f ? (t < 1.0f ? t : 1.0f) : 0.0f;
}

FASTSEG_HOST_DEVICE float fraction(const Axis& axis, int64_t o, int64_t low) {
  return fraction_at(source(axis, o), float(low));
}

// How many inputs the outputs of an axis read: themselves alone if it keeps its size.
FASTSEG_HOST_DEVICE int reach(const Axis& axis) { return axis.in == axis.out ? 1 : 2; }

FASTSEG_HOST_DEVICE int64_t neighbour(const Axis& axis, int64_t low) {
  return low < axis.in - 1 && reach(axis) == 2 ? low + 1 : low;
}

// The lower neighbour of an output at `source` among `in` inputs.
template <typename Index>
FASTSEG_HOST_DEVICE Index low_at(float source, Index in) {
  Index low = source > 0.0f ? Index(source) : 0;
  return low < in - 1 ? low : in - 1;
}

FASTSEG_HOST_DEVICE int64_t low_index(const Axis& axis, int64_t o) { return low_at(source(axis, o), axis.in); }

// The first output with source >= i. The division is off by less than one output, so start one early.
template <typename Index>
FASTSEG_HOST_DEVICE Index first_output_at(const Axis& axis, Index i) {
  if (i >= axis.in) return Index(axis.out);
  if (axis.scale == 0.0f) return i > 0 ? Index(axis.out) : 0;
  float guess = axis.align_corners ? float(i) / axis.scale : (float(i) + 0.5f) / axis.scale - 0.5f;
  Index o = Index(guess) - 1 > 0 ? Index(guess) - 1 : 0;
  while (o < axis.out && source_of(axis, float(o)) < float(i)) ++o;
  return o;
}

struct Range {
  int64_t begin, end;
};

// The outputs that read input i, be it with a weight of zero: those whose low index is i, or i - 1 if they reach on.
FASTSEG_HOST_DEVICE Range outputs_of(const Axis& axis, int64_t i) {
  int64_t low = i + 1 - reach(axis);
  return {low > 0 ? first_output_at(axis, low) : 0, first_output_at(axis, i + 1)};
}

// Consecutive outputs [begin, end) that share their two input neighbours.
struct Span {
  int64_t low, high, begin, end;
};

// A cut of the outputs into spans that each thread can find on its own. Scaling up, a span is a cell, with one more
// before the first centre (half-pixel coordinates only), or one of the equal parts that each cell is cut into;
// otherwise it is one output.
struct Spans {
  Axis axis;
  bool are_cells;
  int64_t first;  // cell of span 0
  int64_t parts;  // of a cell
  int64_t count;
};

inline Spans make_spans(const Axis& axis, int64_t parts = 1) {
  if (axis.in >= axis.out) return {axis, false, 0, 1, axis.out};
  int64_t before = axis.align_corners ? 0 : 1;
  return {axis, true, -before, parts, (axis.in + before) * parts};
}

// The cell that a span belongs to; -1 lies before the first centre.
template <typename Index>
FASTSEG_HOST_DEVICE Index cell_of(const Spans& spans, Index index) {
  return (spans.parts > 1 ? index / Index(spans.parts) : index) + Index(spans.first);
}

// The low input of a span; neighbour() tells the other.
template <typename Index>
FASTSEG_HOST_DEVICE Index low_of(const Spans& spans, Index index) {
  if (!spans.are_cells) return Index(low_index(spans.axis, index));
  Index cell = cell_of(spans, index);
  return cell > 0 ? cell : 0;
}

// A span's part of the outputs of its cell.
FASTSEG_HOST_DEVICE Range part_of(const Spans& spans, int64_t index, Range outputs) {
  if (spans.parts == 1) return outputs;
  int64_t part = index % spans.parts, count = outputs.end - outputs.begin;
  return {outputs.begin + count * part / spans.parts, outputs.begin + count * (part + 1) / spans.parts};
}

FASTSEG_HOST_DEVICE Span span(const Spans& spans, int64_t index) {
  int64_t low = low_of(spans, index), high = neighbour(spans.axis, low);
  if (!spans.are_cells) return {low, high, index, index + 1};
  int64_t cell = cell_of(spans, index);
  Range outputs = part_of(spans, index, {first_output_at(spans.axis, cell), first_output_at(spans.axis, cell + 1)});
  return {low, high, outputs.begin, outputs.end};
}

// The spans of the outputs that read input i.
FASTSEG_HOST_DEVICE Range spans_of(const Spans& spans, int64_t i) {
  if (!spans.are_cells) return outputs_of(spans.axis, i);
  return {(i > 1 ? i - 1 - spans.first : 0) * spans.parts, (i + 1 - spans.first) * spans.parts};
}

}  // namespace fastseg
