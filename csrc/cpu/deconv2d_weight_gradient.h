// backward_weight: the sum over input pixels of input times grad, in a fixed number of parts that are added in order.
//
// Lanes are (output channel, row, column of the kernel), or in channels_last (row, column, output channel). Of a row of
// the kernel those are numbers that follow each other in a row of grad, `pixel_` for each column: a channel's, or all.
#pragma once

#include "cpu/deconv2d_plan.h"
#include "cpu/floats.h"
#include "cpu/parallel.h"

namespace fastseg {

template <typename T>
class WeightGradient {
 public:
  WeightGradient(const Problem& problem, const Floats& grad, const Floats& input, T* output)
      : problem_(problem),
        grad_(grad),
        input_(input),
        output_(output),
        by_channel_(grad.channel < grad.column),
        pixel_(by_channel_ ? problem.outputs : 1),
        kernel_(problem.rows.kernel * problem.columns.kernel),
        panels_(cut_into_panels(problem.outputs * kernel_)),
        lanes_(panels_.back().lane() + panels_.back().pitch()) {}

  void run() {
    const int64_t rows = problem_.images * problem_.rows.in, units = problem_.groups * panels_.size();
    const int64_t most = rows * problem_.columns.in / (kDepth * 4);
    const int64_t parts = std::max<int64_t>(1, std::min({kTasks / units, most, rows}));
    const int64_t floats = problem_.groups * problem_.channels * lanes_;
    sums_.assign(parts * floats, 0.0f);
    const int64_t work = 1 + rows * problem_.columns.in / parts * problem_.channels * panels_[0].pitch();
    parallel_for(parts * units, 1 + kWorth / work, [&](int64_t begin, int64_t end) {
      std::vector<float> packed;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task / units, p = task % panels_.size(), g = task % units / panels_.size();
        float* sums = &sums_[part * floats + (g * lanes_ + panels_[p].lane()) * problem_.channels];
        multiply_pixels(g, panels_[p], {part * rows / parts, (part + 1) * rows / parts}, packed, sums);
      }
    });
    parallel_for(problem_.groups * problem_.channels, 1 + 32768 / lanes_, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) write(c, parts, floats);
    });
  }

 private:
  // Some rows of the input at a time, whose panel stays in the L1 cache.
  void multiply_pixels(int64_t g, const Panel& panel, Range all, std::vector<float>& packed, float* sums) const {
    const int64_t width = problem_.columns.in, pitch = panel.pitch(), size = std::max<int64_t>(1, kDepth / width);
    packed.assign(size * width * pitch, 0.0f);
    std::vector<int64_t> bases(problem_.channels);
    std::vector<int64_t> places(problem_.channels);
    for (int64_t c = 0; c < problem_.channels; ++c)
      bases[c] = (g * problem_.channels + c) * input_.channel, places[c] = c * pitch;
    for (int64_t begin = all.begin; begin < all.end; begin += size) {
      const Range rows{begin, std::min(begin + size, all.end)};
      pack(g, panel, rows, packed.data());
      Runs runs{input_.column};
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float* from = input_.at(row / problem_.rows.in, 0, row % problem_.rows.in, 0);
        runs.add(from - input_.data, (row - rows.begin) * width, width);
      }
      for (int64_t block = 0, first = 0; block < int64_t(runs.ends.size()); first = runs.ends[block++]) {
        for_each_tile(problem_.channels, [&](int64_t m, int64_t count) {
          tile_kernel(count, panel.vectors)(input_.data, &bases[m], runs.step, runs.runs.data() + first,
                                            runs.runs.data() + runs.ends[block], packed.data(), sums + m * pitch, pitch,
                                            Target{sums, &places[m], kInARow});
        });
      }
    }
  }

  // packed[input pixel][lane] = the output's gradient that they share.
  void pack(int64_t g, const Panel& panel, Range rows, float* packed) const {
    const int64_t end = std::min(panel.lane() + panel.pitch(), problem_.outputs * kernel_);
    const int64_t line = problem_.columns.kernel * pixel_, along = follow() ? line : pixel_;
    for (int64_t lane = panel.lane(), length; lane < end; lane += length) {
      length = std::min(end, (lane / along + 1) * along) - lane;
      const int64_t o = by_channel_ ? lane % pixel_ : lane / kernel_, ky = lane / line % problem_.rows.kernel;
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        float* to = packed + (row - rows.begin) * problem_.columns.in * panel.pitch() + lane - panel.lane();
        pack_row(g * problem_.outputs + o, ky, lane % line / pixel_, length, row, panel.pitch(), to);
      }
    }
  }

  // Whether the columns of the kernel are neighbours in grad as they are among the lanes.
  bool follow() const {
    return problem_.columns.dilation == 1 && (!by_channel_ || grad_.column == pixel_ * grad_.channel);
  }

  // `length` lanes from column kx and channel o on, for the pixels of a row of the input: 0 where the window ends.
  void pack_row(int64_t o, int64_t ky, int64_t kx, int64_t length, int64_t row, int64_t pitch, float* to) const {
    const Side &rows = problem_.rows, &columns = problem_.columns;
    const int64_t n = row / rows.in, y = row % rows.in * rows.stride + ky * rows.dilation - rows.begin;
    const int64_t left = kx * columns.dilation - columns.begin, first = by_channel_ ? o % pixel_ : 0;
    const int64_t last = left + (first + length - 1) / pixel_;
    const bool inside = y >= 0 && y < rows.out;
    // Pixels of which all columns are in the window.
    const int64_t begin = inside ? std::clamp<int64_t>(ceil_div(-left, columns.stride), 0, columns.in) : columns.in;
    const int64_t room = columns.out - 1 - last;
    const int64_t end = std::clamp<int64_t>(room < 0 ? 0 : room / columns.stride + 1, begin, columns.in);
    const float* from = grad_.data + n * grad_.image + o * grad_.channel + y * grad_.row + left * grad_.column;
    const int64_t step = columns.stride * grad_.column, stride = by_channel_ ? grad_.channel : grad_.column;
    copy(from + begin * step, step, stride, to + begin * pitch, pitch, end - begin, length);
    const auto fill = [&](int64_t j) {
      for (int64_t k = 0; k < length; ++k) {
        const int64_t x = left + j * columns.stride + (first + k) / pixel_;
        to[j * pitch + k] = inside && x >= 0 && x < columns.out ? from[j * step + k * stride] : 0.0f;
      }
    };
    for (int64_t j = 0; j < begin; ++j) fill(j);
    for (int64_t j = end; j < columns.in; ++j) fill(j);
  }

  // The gradients of an input channel.
  void write(int64_t channel, int64_t parts, int64_t floats) {
    const int64_t g = channel / problem_.channels, c = channel % problem_.channels, outputs = problem_.outputs;
    T* to = output_ + channel * outputs * kernel_;
    for (const Panel& panel : panels_) {
      float* sums = &sums_[(g * lanes_ + panel.lane()) * problem_.channels + c * panel.pitch()];
      const int64_t count = std::min(panel.pitch(), outputs * kernel_ - panel.lane());
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t k = 0; k < count; ++k) sums[k] += sums[part * floats + k];
      for (int64_t k = 0, lane = panel.lane(); k < count; ++k, ++lane)
        to[by_channel_ ? lane % outputs * kernel_ + lane / outputs : lane] = from_float<T>(sums[k]);
    }
  }

  const Problem& problem_;
  const Floats &grad_, &input_;
  T* output_;
  const bool by_channel_;
  const int64_t pixel_, kernel_;
  const std::vector<Panel> panels_;
  const int64_t lanes_;
  std::vector<float> sums_;
};

}  // namespace fastseg
