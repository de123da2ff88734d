// backward_input channel by channel, where rows of the kernel are long and lie side by side in the gradient: in NCHW.
//
// Lanes are columns of the kernel. The sums over the lanes of kWide pixels are made together.
// Precision: float32; the order of sums depends on shapes alone.
#pragma once
#include "cpu/deconv2d_phases.h"
#include "cpu/floats.h"
#include "cpu/vector_math.h"

namespace fastseg {

// The kernel's rows `down`, kWide columns at a time, times those of a gradient: `across` of the columns are there.
FASTSEG_CLONES inline void sum_plane(const float* grad, int64_t grad_row, const float* weight, int64_t weight_row,
                                     Range down, Range across, WideFloat& sums) {
  WideFloat all = {}, some = {}, x, y;
  for (int64_t ky = down.begin; ky < down.end; ++ky) {
    const float *from = grad + ky * grad_row, *by = weight + ky * weight_row;
    int64_t kx = across.begin;
    for (; kx + kWide <= across.end; kx += kWide) load(x, from + kx), load(y, by + kx), all += x * y;
    for (int64_t k = 0; kx + k < across.end; ++k) some[k] += from[kx + k] * by[kx + k];
  }
  sums = all + some;
}

// to[k step] = the sum of block[k], for k < count.
template <typename T>
FASTSEG_CLONES void put_block(WideFloat (&block)[kWide], int64_t count, T* to, int64_t step) {
  transpose(block);
  for (int64_t width = kWide / 2; width > 0; width /= 2)
    for (int64_t k = 0; k < width; ++k) block[k] += block[k + width];
  for (int64_t k = 0; k < count; ++k) to[k * step] = from_float<T>(block[0][k]);
}

inline bool is_planewise(const Problem& problem, const Floats& grad) {
  return problem.channels == 1 && problem.outputs == 1 && problem.columns.dilation == 1 && grad.column == 1 &&
         problem.columns.kernel >= kWide;
}

template <typename T>
void planewise_input_gradient(const Problem& problem, const Floats& grad, const Floats& weight, bool channels_last,
                              T* output) {
  const Side &rows = problem.rows, &columns = problem.columns;
  const int64_t channels = problem.groups, width = columns.in;
  const int64_t step = channels_last ? channels : 1, kernel = columns.kernel;
  std::vector<float> packed(channels * rows.kernel * kernel);
  for (int64_t row = 0; row < channels * rows.kernel; ++row)
    copy(weight.at(row / rows.kernel, 0, row % rows.kernel, 0), 0, weight.column, &packed[row * kernel], 0, 1, kernel);
  const Reads vertical{-rows.begin, rows.stride, rows.dilation, rows.kernel, rows.out};
  const Reads horizontal{-columns.begin, columns.stride, 1, columns.kernel, columns.out};
  const auto make_rows = [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const int64_t i = line % rows.in, c = line / rows.in % channels, n = line / rows.in / channels;
      const Range down = vertical.taps_of(i);
      T* to = output + (channels_last ? (n * rows.in + i) * width * channels + c : line * width);
      for (int64_t first = 0; first < width; first += kWide) {
        const int64_t count = std::min(kWide, width - first);
        WideFloat block[kWide] = {};
        for (int64_t k = 0; k < count; ++k) {
          const int64_t j = first + k;
          sum_plane(grad.at(n, c, i * rows.stride - rows.begin, j * columns.stride - columns.begin),
                    rows.dilation * grad.row, &packed[c * rows.kernel * kernel], kernel, down, horizontal.taps_of(j),
                    block[k]);
        }
        put_block(block, count, to + first * step, step);
      }
    }
  };
  const int64_t work = width * rows.kernel * kernel;
  parallel_for(problem.images * channels * rows.in, 1 + 65536 * kWide / work, make_rows);
}

}  // namespace fastseg
