// The weights of bilinear interpolation that a convolution's taps read (fastseg/ops/pyramid_conv2d.py):
//     M[s, y + a - p, x + b - q] = rows[i, a, y] columns[j, b, x]       for cell s = (i, j) of a prior
// A *line* is what one axis contributes: a row (or column) of a prior's cells and a tap, for all outputs.
#pragma once
#include <algorithm>
#include <vector>

#include "cuda/device.h"

namespace fastseg {

constexpr int kMostPriors = 256;                     // what the 4 KB of a launch's arguments hold
constexpr int64_t kMostElements = int64_t(1) << 30;  // of a table or along an axis: they are counted in `int`

// One axis of a call.
struct PriorAxis {
  int pixels, taps, padding, outputs, all_cells;  // all_cells: of all priors
  int cells[kMostPriors];

  __host__ __device__ __forceinline__ int lines() const { return all_cells * taps; }
};

inline PriorAxis prior_axis(const std::vector<int64_t>& bins, size_t axis, int64_t pixels, int64_t taps,
                            int64_t padding) {
  PriorAxis result{int(pixels), int(taps), int(padding), int(pixels + 2 * padding - taps + 1), 0, {}};
  for (size_t k = axis; k < bins.size(); k += 2) {
    result.cells[k / 2] = int(bins[k]);
    result.all_cells += int(bins[k]);
  }
  return result;
}

struct Priors {
  PriorAxis rows, columns;
  int cells;  // S
  bool align_corners;

  // Of M: cells and taps.
  __host__ __device__ __forceinline__ int depth() const { return cells * rows.taps * columns.taps; }
};

inline Priors make_priors(const std::vector<int64_t>& bins, const PriorAxis& rows, const PriorAxis& columns,
                          bool align_corners) {
  int cells = 0;
  for (size_t k = 0; k < bins.size(); k += 2) cells += int(bins[k] * bins[k + 1]);
  return {rows, columns, cells, align_corners};
}

// Where a line is not zero.
struct LineRange {
  int begin, end;
};

// The two lines whose product is a column of M.
struct LinePair {
  int row, column;
};

// Tables of a call.
struct PriorWeights {
  float *rows, *columns;                  // (lines, outputs)
  LineRange *row_ranges, *column_ranges;  // (lines)
  LinePair* pairs;                        // (S, kh, kw)
};

template <typename Device>
PriorWeights allocate_weights(Device& device, const Priors& priors) {
  const PriorAxis &rows = priors.rows, &columns = priors.columns;
  return {device.template scratch<float>(int64_t(rows.lines()) * rows.outputs),
          device.template scratch<float>(int64_t(columns.lines()) * columns.outputs),
          device.template scratch<LineRange>(rows.lines()), device.template scratch<LineRange>(columns.lines()),
          device.template scratch<LinePair>(priors.depth())};
}

// The weight of `cell` at a pixel; falls from 1 at its centre to 0 at its neighbours'. 0 outside of the image.
__device__ __forceinline__ float weight_at(int pixel, int pixels, int cell, int cells, bool align_corners) {
  if (unsigned(pixel) >= unsigned(pixels)) return 0.0f;
  double centre;
  if (align_corners)
    centre = double(pixel) * (cells - 1) / max(pixels - 1, 1);
  else
    centre = min(max((pixel + 0.5) * cells / pixels - 0.5, 0.0), cells - 1.0);
  return float(max(1.0 - fabs(centre - cell), 0.0));
}

constexpr int kWeightThreads = 128;

// A warp fills a line.
__device__ __forceinline__ void fill_line(const PriorAxis& axis, int line, bool align_corners, float* weights,
                                          LineRange* ranges) {
  const int tap = line % axis.taps, lane = threadIdx.x % kWarp;
  int cell = line / axis.taps, prior = 0;
  while (cell >= axis.cells[prior]) cell -= axis.cells[prior++];
  int begin = axis.outputs, end = 0;
  for (int output = lane; output < axis.outputs; output += kWarp) {
    const float weight = weight_at(output + tap - axis.padding, axis.pixels, cell, axis.cells[prior], align_corners);
    weights[int64_t(line) * axis.outputs + output] = weight;
    if (weight != 0.0f) begin = min(begin, output), end = output + 1;
  }
#pragma unroll
  for (int apart = kWarp / 2; apart > 0; apart /= 2) {
    begin = min(begin, __shfl_xor_sync(kAllLanes, begin, apart));
    end = max(end, __shfl_xor_sync(kAllLanes, end, apart));
  }
  if (lane == 0) ranges[line] = {begin, end};
}

__global__ void __launch_bounds__(kWeightThreads) pyramid_conv2d_weights_kernel(Priors priors, PriorWeights weights) {
  const PriorAxis &rows = priors.rows, &columns = priors.columns;
  const int thread = blockIdx.x * kWeightThreads + threadIdx.x, threads = gridDim.x * kWeightThreads;
  const int lines = rows.lines() + columns.lines();
  for (int line = thread / kWarp; line < lines; line += threads / kWarp) {
    if (line < rows.lines())
      fill_line(rows, line, priors.align_corners, weights.rows, weights.row_ranges);
    else
      fill_line(columns, line - rows.lines(), priors.align_corners, weights.columns, weights.column_ranges);
  }
  for (int i = thread; i < priors.depth(); i += threads) {
    int cell = i / columns.taps / rows.taps, row = 0, column = 0, prior = 0;
    for (; cell >= rows.cells[prior] * columns.cells[prior]; ++prior) {
      cell -= rows.cells[prior] * columns.cells[prior];
      row += rows.cells[prior], column += columns.cells[prior];
    }
    row += cell / columns.cells[prior], column += cell % columns.cells[prior];
    weights.pairs[i] = {row * rows.taps + i / columns.taps % rows.taps, column * columns.taps + i % columns.taps};
  }
}

template <typename Device>
PriorWeights make_weights(Device& device, const Priors& priors) {
  const PriorWeights weights = allocate_weights(device, priors);
  const int64_t lines = int64_t(priors.rows.lines()) + priors.columns.lines();
  const int64_t most = std::max<int64_t>(lines * kWarp, priors.depth());
  device.launch(row_of_blocks(std::min<int64_t>(ceil_div<int64_t>(most, kWeightThreads), 1024), kWeightThreads),
                pyramid_conv2d_weights_kernel, priors, weights);
  return weights;
}

}  // namespace fastseg
