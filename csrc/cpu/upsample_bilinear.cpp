// Computes  upsample_bilinear  and its gradient (fastseg/ops/upsample_bilinear.py), one axis after the other.
//
// Both see a tensor as rows of numbers: in NCHW a row of one channel, in channels_last a row of pixels with all their
// channels, so that both formats run the same code. Along the columns a row is multiplied by a sparse matrix; along the
// rows, whole rows are added. The large tensor is written (output) or read (gradient) once and in order, and what lies
// between stays in the cache.
// Precision: float32 sums in a fixed order, rounded once.
#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "bilinear.h"
#include "cpu/floats.h"
#include "cpu/new_tensor.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "tensor.h"

namespace fastseg {
namespace {

constexpr int64_t kGrain = 32768;  // numbers that are worth waking a thread for
constexpr int64_t kChunk = 512;    // of a row: two sums stay in the L1 cache while the rows of a cell are added

// A tensor as rows. A plane is a channel of an image (NCHW) or a whole image (channels_last).
struct Rows {
  int64_t planes, planes_per_image, height, width, channels;
  int64_t image_stride, plane_stride, row_stride, column_stride, channel_stride;

  int64_t size() const { return width * channels; }
  bool dense() const { return channels == 1 ? column_stride == 1 : channel_stride == 1 && column_stride == channels; }
  int64_t offset(int64_t plane, int64_t y) const {
    return plane / planes_per_image * image_stride + plane % planes_per_image * plane_stride + y * row_stride;
  }
};

Rows rows_of(const Tensor& x, bool channels_last) {
  const int64_t planes = channels_last ? 1 : x.size(1), channels = channels_last ? x.size(1) : 1;
  return {x.size(0) * planes, planes,      x.size(2),   x.size(3),   channels,
          x.stride(0),        x.stride(1), x.stride(2), x.stride(3), x.stride(1)};
}

// What every output of an axis reads. The outputs in the cell of input i are those of [first[i], first[i + 1]).
struct Reads {
  std::vector<int64_t> low, high, first;
  std::vector<float> fraction;
};

Reads reads_of(const Axis& axis) {
  Reads reads;
  for (int64_t o = 0; o < axis.out; ++o) {
    const int64_t low = low_index(axis, o);
    reads.low.push_back(low), reads.high.push_back(neighbour(axis, low));
    reads.fraction.push_back(fraction(axis, o, low));
    while (int64_t(reads.first.size()) <= low) reads.first.push_back(o);
  }
  reads.first.resize(axis.in + 1, axis.out);
  return reads;
}

int64_t whole_vectors(int64_t count) { return (count + kShort - 1) / kShort * kShort; }

// A sparse matrix with `depth` entries in each row. A row makes one number or, from kShort channels on, a whole pixel.
// The entries of kShort rows lie together. (As fast as kWide with AVX-512, and twice as fast with AVX2.)
struct Matrix {
  int64_t rows, depth;
  std::vector<int32_t> column;  // int64_t took up to 1.4x as long
  std::vector<float> weight;

  int64_t entry(int64_t row, int64_t j) const { return (row / kShort * depth + j) * kShort + row % kShort; }
};

// The column weights V or their transpose. Rows of the transpose that have fewer entries are filled with 0 times the
// number past the last one, which must be there and be 0: times an inf it would be NaN.
Matrix column_weights(const Axis& axis, int64_t channels, bool transpose) {
  const Reads reads = reads_of(axis);
  const int64_t step = channels < kShort ? channels : 1, outputs = step * axis.out, inputs = step * axis.in;
  STD_TORCH_CHECK(std::max(inputs, outputs) <= std::numeric_limits<int32_t>::max(),
                  "fastseg: upsample_bilinear has no CPU kernel for rows of 2^31 numbers");
  auto for_each = [&](auto&& take) {
    for (int64_t i = 0; i < outputs; ++i) {
      const int64_t o = i / step, low = reads.low[o] * step + i % step, high = reads.high[o] * step + i % step;
      take(transpose ? low : i, transpose ? i : low, 1.0f - reads.fraction[o]);
      take(transpose ? high : i, transpose ? i : high, reads.fraction[o]);
    }
  };
  const int64_t rows = transpose ? inputs : outputs;
  std::vector<int64_t> used(rows, 0);
  for_each([&](int64_t row, int64_t, float) { ++used[row]; });
  Matrix matrix{rows, *std::max_element(used.begin(), used.end()), {}, {}};
  matrix.column.assign(whole_vectors(rows) * matrix.depth, transpose ? outputs : 0);
  matrix.weight.assign(whole_vectors(rows) * matrix.depth, 0.0f);
  for_each([&](int64_t row, int64_t column, float weight) {
    const int64_t at = matrix.entry(row, --used[row]);
    matrix.column[at] = column, matrix.weight[at] = weight;
  });
  return matrix;
}

FASTSEG_CLONES void multiply_numbers(const Matrix& matrix, const float* from, float* to) {
  const int32_t* column = matrix.column.data();
  const float* weight = matrix.weight.data();
  for (int64_t i = 0; i < matrix.rows; i += kShort) {
    ShortFloat sum = {}, weights, values = {};
    for (int64_t j = 0; j < matrix.depth; ++j, column += kShort, weight += kShort) {
      load(weights, weight);
      for (int64_t lane = 0; lane < kShort; ++lane) values[lane] = from[column[lane]];
      sum += weights * values;
    }
    store(to + i, sum);
  }
}

// The last vector of a pixel overlaps the one before.
FASTSEG_CLONES void multiply_pixels(const Matrix& matrix, const float* from, int64_t channels, float* to) {
  for (int64_t i = 0; i < matrix.rows; ++i) {
    const int32_t* column = &matrix.column[matrix.entry(i, 0)];
    const float* weight = &matrix.weight[matrix.entry(i, 0)];
    for (int64_t start = 0; start < channels; start += kShort) {
      const int64_t k = std::min(start, channels - kShort);
      ShortFloat sum = {}, values;
      for (int64_t j = 0; j < matrix.depth; ++j) {
        load(values, from + column[j * kShort] * channels + k);
        sum += weight[j * kShort] * values;
      }
      store(to + i * channels + k, sum);
    }
  }
}

// Writes whole vectors: `to` has room for whole_vectors() of the result.
void multiply(const Matrix& matrix, const float* from, int64_t channels, float* to) {
  channels < kShort ? multiply_numbers(matrix, from, to) : multiply_pixels(matrix, from, channels, to);
}

template <typename T>
FASTSEG_CLONES void widen_row(const T* from, const Rows& rows, float* to) {
  if (rows.dense()) {
    for (int64_t j = 0; j < rows.size(); ++j) to[j] = to_float(from[j]);
  } else {
    for (int64_t x = 0; x < rows.width; ++x)
      for (int64_t k = 0; k < rows.channels; ++k)
        to[x * rows.channels + k] = to_float(from[x * rows.column_stride + k * rows.channel_stride]);
  }
}

template <typename T>
FASTSEG_CLONES void interpolate_rows(const float* low, const float* high, float t, int64_t size, T* to) {
  for (int64_t j = 0; j < size; ++j) to[j] = from_float<T>((1.0f - t) * low[j] + t * high[j]);
}

template <typename T>
FASTSEG_CLONES void add_row(const T* from, float t, int64_t size, float* low, float* high) {
  for (int64_t j = 0; j < size; ++j) {
    const float value = to_float(from[j]);
    low[j] += (1.0f - t) * value;
    high[j] += t * value;
  }
}

// A task is one output row. Input rows are interpolated along the columns once for all output rows that read them.
template <typename T>
void interpolate(const Tensor& input, const Axis& vertical, const Axis& horizontal, bool channels_last,
                 Tensor& output) {
  const Rows in = rows_of(input, channels_last);
  const int64_t size = horizontal.out * in.channels;
  const Reads rows = reads_of(vertical);
  const Matrix columns = column_weights(horizontal, in.channels, false);
  const T* from = input.const_data_ptr<T>();
  T* to = output.mutable_data_ptr<T>();

  struct Held {
    int64_t row = -1;  // of the batch
    std::vector<float> values;
  };
  parallel_for(in.planes * vertical.out, 1 + kGrain / size, [&](int64_t begin, int64_t end) {
    Held held[2];
    Held *low = &held[0], *high = &held[1];
    for (Held& row : held) row.values.resize(whole_vectors(size));
    std::vector<float> wide(in.size());
    auto hold = [&](Held& row, int64_t plane, int64_t index) {
      if (row.row == plane * in.height + index) return;
      row.row = plane * in.height + index;
      const T* values = from + in.offset(plane, index);
      if constexpr (std::is_same_v<T, float>) {
        if (in.dense()) return multiply(columns, values, in.channels, row.values.data());
      }
      widen_row(values, in, wide.data());
      multiply(columns, wide.data(), in.channels, row.values.data());
    };
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / vertical.out, y = task % vertical.out;
      if (high->row == plane * in.height + rows.low[y]) std::swap(low, high);
      hold(*low, plane, rows.low[y]);
      const bool is_own_neighbour = rows.high[y] == rows.low[y];
      if (!is_own_neighbour) hold(*high, plane, rows.high[y]);
      interpolate_rows(low->values.data(), (is_own_neighbour ? low : high)->values.data(), rows.fraction[y], size,
                       to + task * size);
    }
  });
}

// A task is one input row. The gradient rows of a cell are read once and added to the sums of both its input rows; the
// second sum waits for the next task. A thread that starts in between computes that sum again.
template <typename T>
void gather(const Tensor& grad, const Axis& vertical, const Axis& horizontal, bool channels_last, Tensor& output) {
  const Rows in = rows_of(grad, channels_last);
  const int64_t size = in.size(), result_size = horizontal.in * in.channels;
  const Reads rows = reads_of(vertical);
  const Matrix columns = column_weights(horizontal, in.channels, true);
  const T* from = grad.const_data_ptr<T>();
  T* to = output.mutable_data_ptr<T>();

  const int64_t grain = 1 + kGrain / (size * (1 + vertical.out / vertical.in));
  parallel_for(in.planes * vertical.in, grain, [&](int64_t begin, int64_t end) {
    // One pixel more than a row: the zeros that column_weights() wants.
    std::vector<float> sum(size + in.channels), next(size + in.channels), wide(size),
        result(whole_vectors(result_size));
    auto add_cell = [&](int64_t plane, int64_t r) {
      sum.swap(next);
      std::fill(next.begin(), next.end(), 0.0f);
      const int64_t chunk = in.dense() ? kChunk : size;
      for (int64_t j = 0; j < size; j += chunk) {
        for (int64_t y = rows.first[r]; y < rows.first[r + 1]; ++y) {
          const T* values = from + in.offset(plane, y);
          if (in.dense()) {
            add_row(values + j, rows.fraction[y], std::min(chunk, size - j), &sum[j], &next[j]);
          } else {
            widen_row(values, in, wide.data());
            add_row(wide.data(), rows.fraction[y], size, &sum[j], &next[j]);
          }
        }
      }
      if (neighbour(vertical, r) == r) {
        for (int64_t j = 0; j < size; ++j) sum[j] += next[j], next[j] = 0.0f;
      }
    };
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / vertical.in, r = task % vertical.in;
      if (task == begin && r > 0) add_cell(plane, r - 1);
      if (rows.first[std::max<int64_t>(r - 1, 0)] == rows.first[r + 1]) {  // scaling down: nobody read this row
        std::fill_n(to + task * result_size, result_size, T());
        continue;
      }
      add_cell(plane, r);
      multiply(columns, sum.data(), in.channels, result.data());
      round_to(result.data(), result_size, to + task * result_size);
    }
  });
}

Tensor upsample_bilinear(const Tensor& input, std::vector<int64_t> size, bool align_corners, bool channels_last) {
  Tensor output = new_tensor(input, input.size(0), input.size(1), size[0], size[1], channels_last);
  const Axis vertical = make_axis(input.size(2), size[0], align_corners);
  const Axis horizontal = make_axis(input.size(3), size[1], align_corners);
  if (output.numel() == 0) return output;
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto number) {
    interpolate<decltype(number)>(input, vertical, horizontal, channels_last, output);
  });
  return output;
}

Tensor upsample_bilinear_backward(const Tensor& grad, std::vector<int64_t> size, bool align_corners,
                                  bool channels_last) {
  Tensor output = new_tensor(grad, grad.size(0), grad.size(1), size[0], size[1], channels_last);
  const Axis vertical = make_axis(size[0], grad.size(2), align_corners);
  const Axis horizontal = make_axis(size[1], grad.size(3), align_corners);
  if (output.numel() == 0) return output;
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto number) {
    gather<decltype(number)>(grad, vertical, horizontal, channels_last, output);
  });
  return output;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CPU, m) {
  m.impl("upsample_bilinear", TORCH_BOX(&fastseg::upsample_bilinear));
  m.impl("upsample_bilinear_backward", TORCH_BOX(&fastseg::upsample_bilinear_backward));
}
