// Computes  pyramid_pool  and its gradient (fastseg/ops/pyramid_pool.py).
//
// The edges of all bins' cells cut the map into segments that no cell divides. A task takes some channels of an image:
//     pool    reads each pixel once, adds it to its segment (or compares it), then each segment to the cells it is in
//     spread  adds each cell's gradient to the cell's segments, then writes each pixel once, as its segment is
// Channels of a task lie beside one another in scratch memory, as in channels_last: NCHW is turned line by line.
// Precision: float32 sums, divided by the number of pixels and rounded once. Their order depends on shapes alone.
#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/floats.h"
#include "cpu/new_tensor.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "tensor.h"

namespace fastseg {
namespace {

constexpr int64_t kBlock = 64;         // channels in channels_last: 256 bytes of each pixel; kWide in NCHW
constexpr int64_t kScratch = 1 << 16;  // floats of all segments: they stay in the L2 cache
constexpr int64_t kGrain = 32768;      // pixels that are worth waking a thread for
constexpr int64_t kLongest = 1 << 24;  // segment: float holds the number of each of its rows

constexpr int64_t kNowhere = std::numeric_limits<int64_t>::max();  // after all pixels

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Segment t of an axis has the pixels from edges[t] on, below edges[t + 1].
struct Axis {
  std::vector<int64_t> edges;
  std::vector<std::vector<Range>> cells;  // of every bin, in segments

  int64_t segments() const { return int64_t(edges.size()) - 1; }
  int64_t length() const { return edges.back(); }
  int64_t pixels(Range cell) const { return edges[cell.end] - edges[cell.begin]; }
};

// Cell i of b has the pixels from floor(i n / b) on, below ceil((i + 1) n / b).
Axis axis_of(int64_t length, const std::vector<int64_t>& bins, size_t side) {
  Axis axis;
  for (size_t k = side; k < bins.size(); k += 2) {
    auto& cells = axis.cells.emplace_back();
    for (int64_t i = 0, b = bins[k]; i < b; ++i) {
      cells.push_back({i * length / b, ((i + 1) * length + b - 1) / b});
      axis.edges.push_back(cells.back().begin), axis.edges.push_back(cells.back().end);
    }
  }
  for (int64_t edge = kLongest; edge < length; edge += kLongest) axis.edges.push_back(edge);
  std::sort(axis.edges.begin(), axis.edges.end());
  axis.edges.erase(std::unique(axis.edges.begin(), axis.edges.end()), axis.edges.end());
  for (auto& cells : axis.cells)
    for (Range& cell : cells)
      for (int64_t* edge : {&cell.begin, &cell.end})
        *edge = std::lower_bound(axis.edges.begin(), axis.edges.end(), *edge) - axis.edges.begin();
  return axis;
}

// Calls visit(number, rows, columns), rows and columns in segments, for every cell in order.
template <typename Visit>
void for_each_cell(const Axis& vertical, const Axis& horizontal, const Visit& visit) {
  int64_t number = 0;
  for (size_t bin = 0; bin < vertical.cells.size(); ++bin)
    for (const Range& rows : vertical.cells[bin])
      for (const Range& columns : horizontal.cells[bin]) visit(number++, rows, columns);
}

int64_t cells_of(const std::vector<int64_t>& bins) {
  int64_t count = 0;
  for (size_t k = 0; k < bins.size(); k += 2) count += bins[k] * bins[k + 1];
  return count;
}

// What a call works on: images of channels, in blocks.
struct Problem {
  int64_t images, channels, cells, block;
  Axis vertical, horizontal;
  bool channels_last;

  Problem(const Tensor& like, std::vector<int64_t> size, const std::vector<int64_t>& bins, bool channels_last)
      : images(like.size(0)),
        channels(like.size(1)),
        cells(cells_of(bins)),
        vertical(axis_of(size[0], bins, 0)),
        horizontal(axis_of(size[1], bins, 1)),
        channels_last(channels_last) {
    const int64_t fit = std::max<int64_t>(1, kScratch / segments());
    block = std::min({channels_last ? kBlock : kWide, channels, fit});
  }

  int64_t segments() const { return vertical.segments() * horizontal.segments(); }
  int64_t segment(int64_t row, int64_t column) const { return row * horizontal.segments() + column; }
  int64_t pixels() const { return vertical.length() * horizontal.length(); }

  // work(image, first channel, how many) for every task.
  template <typename Work>
  void for_each_task(const Work& work_of_thread) const {
    const int64_t blocks = (channels + block - 1) / block;
    parallel_for(images * blocks, 1 + kGrain / (pixels() * block), [&](int64_t begin, int64_t end) {
      auto work = work_of_thread();
      for (int64_t task = begin; task < end; ++task) {
        const int64_t channel = task % blocks * block;
        work(task / blocks, channel, std::min(block, channels - channel));
      }
    });
  }
};

template <typename T>
FASTSEG_CLONES void add_pixels(const T* from, int64_t column, int64_t width, int64_t count, float* sums) {
  for (int64_t x = 0; x < width; ++x)
    for (int64_t k = 0; k < count; ++k) sums[x * count + k] += to_float(from[x * column + k]);
}

template <typename T>
FASTSEG_CLONES void add_lines(const T* from, int64_t row, int64_t rows, int64_t column, int64_t width, float* sums) {
  for (int64_t y = 0; y < rows; ++y, from += row) {
    if (column == 1) {
      for (int64_t x = 0; x < width; ++x) sums[x] += to_float(from[x]);
    } else {
      for (int64_t x = 0; x < width; ++x) sums[x] += to_float(from[x * column]);
    }
  }
}

// line[x][k] = the sum of some rows of channel k at column x. `from`: the first row of the first channel.
template <typename T>
void sum_rows(const T* from, const Tensor& input, int64_t rows, int64_t count, std::vector<float>& scratch,
              float* line) {
  const int64_t width = input.size(3), channel = input.stride(1), row = input.stride(2), column = input.stride(3);
  if (channel == 1) {
    std::fill_n(line, width * count, 0.0f);
    for (int64_t y = 0; y < rows; ++y) add_pixels(from + y * row, column, width, count, line);
    return;
  }
  scratch.assign(width * count, 0.0f);
  for (int64_t k = 0; k < count; ++k) add_lines(from + k * channel, row, rows, column, width, &scratch[k * width]);
  convert(scratch.data(), 1, width, width, count, line, count);
}

// to[k] += the sum of so many neighbouring pixels.
FASTSEG_CLONES void add_up(const float* from, int64_t pixels, int64_t count, float* to) {
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t k = 0; k < count; ++k) to[k] += from[i * count + k];
}

template <typename T>
FASTSEG_CLONES void put(const float* from, int64_t count, float divisor, T* to, int64_t step) {
  for (int64_t k = 0; k < count; ++k) to[k * step] = from_float<T>(from[k] / divisor);
}

template <typename T>
void average(const Problem& problem, const Tensor& input, Tensor& output) {
  const Axis &vertical = problem.vertical, &horizontal = problem.horizontal;
  const T* from = input.const_data_ptr<T>();
  T* to = output.mutable_data_ptr<T>();
  problem.for_each_task([&] {
    std::vector<float> line(horizontal.length() * problem.block), sums(problem.segments() * problem.block), cell,
        scratch;
    return [&, line, sums, cell, scratch](int64_t n, int64_t c, int64_t count) mutable {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t r = 0; r < vertical.segments(); ++r) {
        const int64_t y = vertical.edges[r];
        sum_rows(from + n * input.stride(0) + c * input.stride(1) + y * input.stride(2), input,
                 vertical.edges[r + 1] - y, count, scratch, line.data());
        for (int64_t s = 0; s < horizontal.segments(); ++s)
          add_up(&line[horizontal.edges[s] * count], horizontal.edges[s + 1] - horizontal.edges[s], count,
                 &sums[problem.segment(r, s) * count]);
      }
      for_each_cell(vertical, horizontal, [&](int64_t number, Range rows, Range columns) {
        cell.assign(count, 0.0f);
        for (int64_t r = rows.begin; r < rows.end; ++r)
          add_up(&sums[problem.segment(r, columns.begin) * count], columns.size(), count, cell.data());
        put(cell.data(), count, float(vertical.pixels(rows) * horizontal.pixels(columns)),
            to + n * output.stride(0) + c * output.stride(1) + number * output.stride(2), output.stride(1));
      });
    };
  });
}

// If `other` counts rather than `value`, replaces it and its place. A NaN is the largest; of equals the first counts,
// of NaNs the last. What is kept is read in any case: a condition would keep loops over this from becoming vectors.
template <typename Place>
FASTSEG_INLINE void take(float other, Place other_place, bool other_is_first, float& value, Place& place) {
  const float old = value;
  const Place old_place = place;
  const bool better =
      (other > old) | ((other == old) & other_is_first) | ((other != other) & ((old == old) | !other_is_first));
  value = better ? other : old;
  place = better ? other_place : old_place;
}

// value[a][b] = the largest of so many rows, at[a][b] = its row, counted from the first. What is left over of whole
// vectors of b is taken with its neighbours, so that it is one: to take a number twice changes nothing.
template <typename T>
FASTSEG_CLONES void take_rows(const T* from, int64_t row, int64_t rows, int64_t from_a, int64_t from_b, int64_t count_a,
                              int64_t count_b, float* __restrict value, float* __restrict at) {
  std::fill_n(value, count_a * count_b, -std::numeric_limits<float>::infinity());
  std::fill_n(at, count_a * count_b, 0.0f);
  const int64_t whole = count_b < kWide ? count_b : count_b / kWide * kWide;
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t a = 0; a < count_a; ++a)
      for (int64_t b = 0, end = whole; b < count_b; b = end == count_b ? end : count_b - kWide, end = count_b) {
        const T* numbers = from + y * row + a * from_a;
        const int64_t i = a * count_b;
        const float number = float(y);
        if (from_b == 1) {
          for (int64_t k = b; k < end; ++k) take(to_float(numbers[k]), number, false, value[i + k], at[i + k]);
        } else {
          for (int64_t k = b; k < end; ++k) take(to_float(numbers[k * from_b]), number, false, value[i + k], at[i + k]);
        }
      }
}

// Some rows of channels at each column: value[x][k] and at[x][k]. `from`: the first row of the first channel.
template <typename T>
void take_rows(const T* from, const Tensor& input, int64_t rows, int64_t count, std::vector<float>& scratch,
               float* value, float* at) {
  const int64_t width = input.size(3), channel = input.stride(1), row = input.stride(2), column = input.stride(3);
  if (channel == 1) return take_rows(from, row, rows, column, 1, width, count, value, at);
  scratch.resize(2 * width * count);
  float *values = scratch.data(), *places = values + width * count;
  for (int64_t k = 0; k < count; ++k)
    take_rows(from + k * channel, row, rows, 0, column, 1, width, values + k * width, places + k * width);
  convert(values, 1, width, width, count, value, count);
  convert(places, 1, width, width, count, at, count);
}

// Of neighbouring columns, from pixel `first` on, in a map of that width.
FASTSEG_CLONES void take_columns(const float* value, const float* at, int64_t columns, int64_t count, int64_t first,
                                 int64_t width, float* __restrict largest, int64_t* __restrict pixels) {
  std::fill_n(largest, count, -std::numeric_limits<float>::infinity());
  std::fill_n(pixels, count, kNowhere);
  for (int64_t x = 0; x < columns; ++x)
    for (int64_t k = 0; k < count; ++k) {
      const int64_t pixel = int32_t(at[x * count + k]) * width + first + x;
      take(value[x * count + k], pixel, pixel < pixels[k], largest[k], pixels[k]);
    }
}

// Of neighbouring segments, and of what was found before.
FASTSEG_CLONES void take_segments(const float* value, const int64_t* at, int64_t segments, int64_t count,
                                  float* __restrict largest, int64_t* __restrict pixels) {
  for (int64_t s = 0; s < segments; ++s)
    for (int64_t k = 0; k < count; ++k) {
      const int64_t pixel = at[s * count + k];
      take(value[s * count + k], pixel, pixel < pixels[k], largest[k], pixels[k]);
    }
}

template <typename T>
void largest(const Problem& problem, const Tensor& input, Tensor& output, Tensor& indices) {
  const Axis &vertical = problem.vertical, &horizontal = problem.horizontal;
  const T* from = input.const_data_ptr<T>();
  T* to = output.mutable_data_ptr<T>();
  int64_t* to_index = indices.mutable_data_ptr<int64_t>();
  problem.for_each_task([&] {
    const int64_t width = horizontal.length();
    std::vector<float> line(width * problem.block), rows(line.size()), values(problem.segments() * problem.block),
        value(problem.block), scratch;
    std::vector<int64_t> pixels(values.size()), pixel(problem.block);
    return [&, width, line, rows, values, value, scratch, pixels, pixel](int64_t n, int64_t c, int64_t count) mutable {
      for (int64_t r = 0; r < vertical.segments(); ++r) {
        const int64_t y = vertical.edges[r];
        take_rows(from + n * input.stride(0) + c * input.stride(1) + y * input.stride(2), input,
                  vertical.edges[r + 1] - y, count, scratch, line.data(), rows.data());
        for (int64_t s = 0; s < horizontal.segments(); ++s) {
          const int64_t x = horizontal.edges[s], at = problem.segment(r, s) * count;
          take_columns(&line[x * count], &rows[x * count], horizontal.edges[s + 1] - x, count, y * width + x, width,
                       &values[at], &pixels[at]);
        }
      }
      for_each_cell(vertical, horizontal, [&](int64_t number, Range rows, Range columns) {
        std::fill(value.begin(), value.end(), -std::numeric_limits<float>::infinity());
        std::fill(pixel.begin(), pixel.end(), kNowhere);
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          const int64_t at = problem.segment(r, columns.begin) * count;
          take_segments(&values[at], &pixels[at], columns.size(), count, value.data(), pixel.data());
        }
        const int64_t at = n * output.stride(0) + c * output.stride(1) + number * output.stride(2);
        put(value.data(), count, 1.0f, to + at, output.stride(1));
        for (int64_t k = 0; k < count; ++k) to_index[at + k * output.stride(1)] = pixel[k];
      });
    };
  });
}

template <typename T>
FASTSEG_CLONES void add_scaled(const T* from, int64_t step, int64_t count, float divisor, float* to) {
  for (int64_t k = 0; k < count; ++k) to[k] += to_float(from[k * step]) / divisor;
}

// line[x][k] to some rows of channels, of a dense tensor. `to`: the first row of the first channel.
template <typename T>
void put_rows(const float* line, int64_t rows, int64_t count, std::vector<float>& scratch, T* to,
              const Tensor& output) {
  const int64_t width = output.size(3), channel = output.stride(1), row = output.stride(2), column = output.stride(3);
  if (channel == 1) {
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < width; ++x) round_to(line + x * count, count, to + y * row + x * column);
    return;
  }
  scratch.resize(width * count);
  convert(line, 1, count, count, width, scratch.data(), width);
  for (int64_t k = 0; k < count; ++k)
    for (int64_t y = 0; y < rows; ++y) round_to(&scratch[k * width], width, to + k * channel + y * row);
}

// Of averages. `output` is dense.
template <typename T>
void spread(const Problem& problem, const Tensor& grad, Tensor& output) {
  const Axis &vertical = problem.vertical, &horizontal = problem.horizontal;
  const T* from = grad.const_data_ptr<T>();
  T* to = output.mutable_data_ptr<T>();
  problem.for_each_task([&] {
    std::vector<float> line(horizontal.length() * problem.block), sums(problem.segments() * problem.block),
        cell(problem.block), scratch;
    return [&, line, sums, cell, scratch](int64_t n, int64_t c, int64_t count) mutable {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for_each_cell(vertical, horizontal, [&](int64_t number, Range rows, Range columns) {
        std::fill(cell.begin(), cell.end(), 0.0f);
        add_scaled(from + n * grad.stride(0) + c * grad.stride(1) + number * grad.stride(2), grad.stride(1), count,
                   float(vertical.pixels(rows) * horizontal.pixels(columns)), cell.data());
        for (int64_t r = rows.begin; r < rows.end; ++r)
          for (int64_t s = columns.begin; s < columns.end; ++s)
            add_up(cell.data(), 1, count, &sums[problem.segment(r, s) * count]);
      });
      for (int64_t r = 0; r < vertical.segments(); ++r) {
        for (int64_t s = 0; s < horizontal.segments(); ++s)
          for (int64_t x = horizontal.edges[s]; x < horizontal.edges[s + 1]; ++x)
            std::copy_n(&sums[problem.segment(r, s) * count], count, &line[x * count]);
        const int64_t y = vertical.edges[r];
        put_rows(line.data(), vertical.edges[r + 1] - y, count, scratch,
                 to + n * output.stride(0) + c * output.stride(1) + y * output.stride(2), output);
      }
    };
  });
}

// Of maxima: each cell's gradient goes to its pixel, cell after cell.
template <typename T>
void scatter(const Problem& problem, const Tensor& grad, const Tensor& indices, Tensor& output) {
  const int64_t width = problem.horizontal.length();
  const T* from = grad.const_data_ptr<T>();
  const int64_t* index = indices.const_data_ptr<int64_t>();
  T* to = output.mutable_data_ptr<T>();
  problem.for_each_task([&] {
    std::vector<float> map(problem.pixels() * problem.block), scratch;
    return [&, map, scratch](int64_t n, int64_t c, int64_t count) mutable {
      std::fill(map.begin(), map.end(), 0.0f);
      for (int64_t number = 0; number < problem.cells; ++number)
        for (int64_t k = 0; k < count; ++k) {
          const int64_t at = n * indices.stride(0) + (c + k) * indices.stride(1) + number * indices.stride(2);
          map[index[at] * count + k] +=
              to_float(from[n * grad.stride(0) + (c + k) * grad.stride(1) + number * grad.stride(2)]);
        }
      for (int64_t y = 0; y < problem.vertical.length(); ++y)
        put_rows(&map[y * width * count], 1, count, scratch,
                 to + n * output.stride(0) + c * output.stride(1) + y * output.stride(2), output);
    };
  });
}

// (N, C, S), or with channels_last a dense (N, S, C) seen so.
Tensor new_cells(const Tensor& like, const Problem& problem, ScalarType dtype) {
  const std::vector<int64_t> shape{problem.images, problem.channels_last ? problem.cells : problem.channels,
                                   problem.channels_last ? problem.channels : problem.cells};
  Tensor cells = torch::stable::empty(shape, dtype, {}, like.device());
  return problem.channels_last ? torch::stable::transpose(cells, 1, 2) : cells;
}

std::tuple<Tensor, Tensor> pyramid_pool(const Tensor& input, std::vector<int64_t> bins, bool max, bool channels_last) {
  const Problem problem(input, {input.size(2), input.size(3)}, bins, channels_last);
  Tensor output = new_cells(input, problem, input.scalar_type());
  Tensor indices = max ? new_cells(input, problem, ScalarType::Long)
                       : torch::stable::empty({0}, ScalarType::Long, {}, input.device());
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto number) {
    using T = decltype(number);
    max ? largest<T>(problem, input, output, indices) : average<T>(problem, input, output);
  });
  return {output, indices};
}

Tensor pyramid_pool_backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> bins, bool max,
                             std::vector<int64_t> size, bool channels_last) {
  const Problem problem(grad, size, bins, channels_last);
  Tensor output = new_tensor(grad, grad.size(0), grad.size(1), size[0], size[1], channels_last);
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto number) {
    using T = decltype(number);
    max ? scatter<T>(problem, grad, indices, output) : spread<T>(problem, grad, output);
  });
  return output;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CPU, m) {
  m.impl("pyramid_pool", TORCH_BOX(&fastseg::pyramid_pool));
  m.impl("pyramid_pool_backward", TORCH_BOX(&fastseg::pyramid_pool_backward));
}
