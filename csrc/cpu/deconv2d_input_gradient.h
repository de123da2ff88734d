// backward_input: the sum over the kernel of grad times weight, like a convolution of that stride.
#pragma once
#include <memory>

#include "cpu/deconv2d_plan.h"
#include "cpu/floats.h"
#include "cpu/parallel.h"
#include "cpu/vector_math.h"

namespace fastseg {

// to[x][c] = from[c][x], kWide lanes of c of which those from `count` on are 0.
FASTSEG_CLONES inline void pack_block(const float* from, int64_t from_step, int64_t stride, int64_t count,
                                      int64_t width, float* to, int64_t to_step) {
  WideFloat block[kWide] = {};
  if (stride == 1 && width == kWide) {
    for (int64_t c = 0; c < count; ++c) load(block[c], from + c * from_step);
    transpose(block);
  } else {
    for (int64_t c = 0; c < count; ++c)
      for (int64_t x = 0; x < width; ++x) block[x][c] = from[c * from_step + x * stride];
  }
  for (int64_t x = 0; x < width; ++x) store(to + x * to_step, block[x]);
}

template <typename T>
class InputGradient {
 public:
  InputGradient(const Problem& problem, const Floats& grad, const Floats& weight, bool channels_last, T* output)
      : problem_(problem),
        grad_(grad),
        weight_(weight),
        output_(output),
        channels_last_(channels_last),
        by_channel_(grad.channel < grad.column),
        panels_(cut_into_panels(problem.channels)),
        lanes_(panels_.back().lane() + panels_.back().pitch()),
        depth_(problem.outputs * problem.rows.kernel * problem.columns.kernel) {}

  void run() {
    const int64_t rows = problem_.images * problem_.rows.in, width = problem_.columns.in;
    packed_.reset(new float[problem_.groups * depth_ * lanes_]);
    const int64_t lines = problem_.groups * problem_.outputs * problem_.rows.kernel;
    parallel_for(lines, 1 + 16384 / (problem_.columns.kernel * lanes_), [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) pack(line);
    });
    const int64_t size = ceil_div(kFewPixels, width);
    const int64_t parts = ceil_div(rows, size), work = size * width * depth_ * lanes_;
    parallel_for(problem_.groups * parts, 1 + kWorth / work, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task % parts * size;
        multiply_pixels(task / parts, {first, std::min(first + size, rows)});
      }
    });
  }

 private:
  // Sums run over what is contiguous in grad: along the kernel's columns, or over the channels.
  int64_t packed_row(int64_t o, int64_t y, int64_t x) const {
    const int64_t columns = problem_.columns.kernel;
    return by_channel_ ? (y * columns + x) * problem_.outputs + o : (y * problem_.outputs + o) * columns + x;
  }

  // Some rows of the kernel of a group, input channels becoming lanes.
  void pack(int64_t line) const {
    const int64_t y = line % problem_.rows.kernel, o = line / problem_.rows.kernel % problem_.outputs,
                  g = line / problem_.rows.kernel / problem_.outputs;
    for (const Panel& panel : panels_) {
      float* packed = &packed_[g * depth_ * lanes_ + panel.begin(depth_)];
      for (int64_t lane = 0; lane < panel.pitch(); lane += kWide) {
        const int64_t first = panel.lane() + lane, count = std::min(kWide, problem_.channels - first);
        for (int64_t x = 0; x < problem_.columns.kernel; x += kWide) {
          const int64_t width = std::min(kWide, problem_.columns.kernel - x);
          pack_block(weight_.at(g * problem_.channels + first, o, y, x), weight_.image, weight_.column, count, width,
                     packed + packed_row(o, y, x) * panel.pitch() + lane,
                     (packed_row(o, y, 1) - packed_row(o, y, 0)) * panel.pitch());
        }
      }
    }
  }

  void multiply_pixels(int64_t g, Range task_rows) const {
    const Side &rows = problem_.rows, &columns = problem_.columns;
    const int64_t channels = problem_.channels * problem_.groups, outputs = problem_.outputs;
    const Range all{0, columns.in};
    std::vector<int64_t> bases, places;
    for (const Stretch& vertical :
         stretches_of({-rows.begin, rows.stride, rows.dilation, rows.kernel, rows.out}, {0, rows.in}, {0, rows.in})) {
      for (const Stretch& horizontal :
           stretches_of({-columns.begin, columns.stride, columns.dilation, columns.kernel, columns.out}, all, all)) {
        bases.clear(), places.clear();
        for (int64_t row = task_rows.begin; row < task_rows.end; ++row) {
          const int64_t n = row / rows.in, i = row % rows.in;
          if (i < vertical.positions.begin || i >= vertical.positions.end) continue;
          for (int64_t j = horizontal.positions.begin; j < horizontal.positions.end; ++j) {
            bases.push_back(n * grad_.image + g * outputs * grad_.channel + (i * rows.stride - rows.begin) * grad_.row +
                            (j * columns.stride - columns.begin) * grad_.column);
            places.push_back(channels_last_ ? (row * columns.in + j) * channels
                                            : (n * channels * rows.in + i) * columns.in + j);
          }
        }
        if (bases.empty()) continue;
        const int64_t step = by_channel_ ? grad_.channel : columns.dilation * grad_.column;
        const auto done = [&](int64_t p, int64_t m, int64_t count, const float* sums) {
          const int64_t plane = channels_last_ ? 1 : rows.in * columns.in, lane = panels_[p].lane();
          T* to = output_ + (g * problem_.channels + lane) * plane;
          for (int64_t c = 0; c < std::min(panels_[p].pitch(), problem_.channels - lane); ++c)
            for (int64_t k = 0; k < count; ++k)
              to[places[m + k] + c * plane] = from_float<T>(sums[k * panels_[p].pitch() + c]);
        };
        multiply(grad_.data, bases, runs_of(vertical.taps, horizontal.taps, step), &packed_[g * depth_ * lanes_],
                 depth_, panels_, zeros_.data(), {}, done);
      }
    }
  }

  Runs runs_of(Range vertical, Range horizontal, int64_t step) const {
    const int64_t row = problem_.rows.dilation * grad_.row, column = problem_.columns.dilation * grad_.column;
    Runs runs{step};
    for (int64_t y = vertical.begin; y < vertical.end; ++y) {
      if (by_channel_) {
        for (int64_t x = horizontal.begin; x < horizontal.end; ++x)
          runs.add(y * row + x * column, packed_row(0, y, x), problem_.outputs);
      } else {
        for (int64_t o = 0; o < problem_.outputs; ++o)
          runs.add(y * row + o * grad_.channel + horizontal.begin * column, packed_row(o, y, horizontal.begin),
                   horizontal.size());
      }
    }
    return runs;
  }

  const Problem& problem_;
  const Floats &grad_, &weight_;
  T* output_;
  const bool channels_last_, by_channel_;
  const std::vector<Panel> panels_;
  const int64_t lanes_, depth_;
  const std::vector<float> zeros_ = std::vector<float>(lanes_);
  std::unique_ptr<float[]> packed_;
};

}  // namespace fastseg
