// Deconvolution channel by channel, one input channel and one output channel in each group, and its gradients.
//
// Lanes are channels, in both memory formats. A pixel is vectors of which the last ends with the last channel; below
// kWide channels it is padded. An output and tap is one multiply-add, so the large tensor's reading and writing takes
// most of the time: its rows are made, or turned, in the cache.
// Precision: float32; the order of sums depends on shapes alone.
#pragma once
#include <cstring>
#include <type_traits>

#include "cpu/deconv2d_phases.h"
#include "cpu/floats.h"
#include "cpu/vector_math.h"

namespace fastseg {

// Floats of a pixel, of which whole vectors are read.
inline int64_t pitch_of(int64_t channels) { return std::max(channels, kWide); }

// Where vector v of a pixel begins.
FASTSEG_INLINE int64_t vector_begin(int64_t v, int64_t pitch) { return std::min(v * kWide, pitch - kWide); }

// A weight (C, 1, k, k) as [row][column][pitch].
inline std::vector<float> channelwise_weight(const Problem& problem, const Floats& weight) {
  const int64_t pitch = pitch_of(problem.groups), columns = problem.columns.kernel;
  std::vector<float> packed(problem.rows.kernel * columns * pitch);
  for (int64_t y = 0; y < problem.rows.kernel; ++y)
    convert(weight.at(0, 0, y, 0), weight.column, weight.image, columns, problem.groups, &packed[y * columns * pitch],
            pitch);
  return packed;
}

struct TapPointers {
  const float *pixel, *weight;
};

// to[p] = sum over taps of pixel times weight[p], for neighbouring outputs p that read the same pixels.
FASTSEG_CLONES inline void sum_taps(const std::vector<TapPointers>& taps, int64_t pixels, int64_t pitch, float* to) {
  constexpr int64_t kBlock = 4;
  for (int64_t v = 0; v * kWide < pitch; ++v) {
    const int64_t begin = vector_begin(v, pitch);
    for (int64_t p = 0; p < pixels; p += kBlock) {
      const int64_t last = std::min(kBlock, pixels - p) - 1;
      WideFloat sums[kBlock] = {};
      for (const TapPointers& tap : taps) {
        WideFloat pixel, weight;
        load(pixel, tap.pixel + begin);
        for (int64_t b = 0; b < kBlock; ++b) {
          load(weight, tap.weight + (p + std::min(b, last)) * pitch + begin);
          sums[b] += pixel * weight;
        }
      }
      for (int64_t b = 0; b <= last; ++b) store(to + (p + b) * pitch + begin, sums[b]);
    }
  }
}

// sums[v] += sum over i of a[i] b[i], pixels so far apart.
FASTSEG_CLONES inline void add_products(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t count,
                                        int64_t pitch, float* sums) {
  for (int64_t v = 0; v * kWide < pitch; ++v) {
    const int64_t begin = vector_begin(v, pitch);
    WideFloat even = {}, odd = {}, x, y, before;
    int64_t i = 0;
    for (; i + 1 < count; i += 2) {
      load(x, a + i * a_step + begin), load(y, b + i * b_step + begin), even += x * y;
      load(x, a + (i + 1) * a_step + begin), load(y, b + (i + 1) * b_step + begin), odd += x * y;
    }
    if (i < count) load(x, a + i * a_step + begin), load(y, b + i * b_step + begin), even += x * y;
    load(before, sums + v * kWide);
    store(sums + v * kWide, before + (even + odd));
  }
}

// A row of pixels [width][pitch] to the rows of its channels, `plane` apart.
template <typename T>
FASTSEG_CLONES void put_planes(const float* row, int64_t width, int64_t channels, int64_t pitch, T* to, int64_t plane) {
  for (int64_t x = 0; x < width; x += kWide) {
    const int64_t columns = std::min(kWide, width - x);
    for (int64_t c = 0; c < channels; c += kWide) {
      WideFloat block[kWide] = {};
      for (int64_t k = 0; k < columns; ++k) load(block[k], row + (x + k) * pitch + c);
      transpose(block);
      for (int64_t k = 0; k < std::min(kWide, channels - c); ++k) {
        T* line = to + (c + k) * plane + x;
        if (columns == kWide) {
          for (int64_t i = 0; i < kWide; ++i) line[i] = from_float<T>(block[k][i]);
        } else {
          for (int64_t i = 0; i < columns; ++i) line[i] = from_float<T>(block[k][i]);
        }
      }
    }
  }
}

// to[a][b] = row[a][b], the former `pitch` apart.
template <typename T>
FASTSEG_CLONES void put_pixels(const float* row, int64_t width, int64_t channels, int64_t pitch, T* to) {
  if (channels == pitch) channels *= width, width = 1;
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = 0; c < channels; ++c) to[x * channels + c] = from_float<T>(row[x * pitch + c]);
}

// row[x][c] += from[x][c].
template <typename T>
FASTSEG_CLONES void add_to(float* row, int64_t width, int64_t channels, int64_t pitch, const T* from, int64_t column,
                           int64_t channel) {
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = 0; c < channels; ++c) row[x * pitch + c] += to_float(from[x * column + c * channel]);
}

// Row y of image n, [width][pitch], to where it belongs.
template <typename T>
void put_row(const float* row, int64_t height, int64_t width, int64_t channels, int64_t n, int64_t y,
             bool channels_last, T* output) {
  const int64_t pitch = pitch_of(channels);
  if (channels_last) {
    put_pixels(row, width, channels, pitch, output + (n * height + y) * width * channels);
  } else {
    put_planes(row, width, channels, pitch, output + (n * channels * height + y) * width, height * width);
  }
}

// A pixel from its vectors.
inline void put_sums(const float* sums, int64_t pitch, float* pixel) {
  for (int64_t v = 0; v * kWide < pitch; ++v) std::copy_n(sums + v * kWide, kWide, pixel + vector_begin(v, pitch));
}

// Makes rows of the deconvolution, [width][pitch]. The input is in channels_last, pixels as pitch_of().
class ChannelwiseRows {
 public:
  ChannelwiseRows(const Problem& problem, const Floats& input, const Floats& weight)
      : problem_(problem),
        input_(input),
        pitch_(pitch_of(problem.groups)),
        weight_(channelwise_weight(problem, weight)),
        vertical_(phases_of(problem.rows)),
        horizontal_(phases_of(problem.columns)),
        row_groups_(problem.rows.stride) {
    for (const PhaseGroup& group : vertical_.groups)
      for (size_t p = 0; p < group.phases.size(); ++p) row_groups_[group.phases[p]] = {&group, group.first[p]};
  }

  void make(int64_t n, int64_t y, std::vector<TapPointers>& taps, float* row) const {
    const Side &rows = problem_.rows, &columns = problem_.columns;
    const int64_t i = (y + rows.begin) / rows.stride;
    const auto [down, first] = row_groups_[(y + rows.begin) % rows.stride];
    const Range t = Reads{-down->shift, 1, -vertical_.step, down->taps, rows.in}.taps_of(i);
    for (int64_t j = columns.begin / columns.stride; j * columns.stride < columns.begin + columns.out; ++j) {
      for (const PhaseGroup& across : horizontal_.groups) {
        const Range u = Reads{-across.shift, 1, -horizontal_.step, across.taps, columns.in}.taps_of(j);
        for (int64_t p = 0, length; p < int64_t(across.phases.size()); p += length) {
          length = across.neighbours(p);
          const int64_t x = j * columns.stride + across.phases[p] - columns.begin, cut = std::max<int64_t>(0, -x);
          const int64_t count = std::min(length, columns.out - x) - cut;
          if (count <= 0) continue;
          taps.clear();
          for (int64_t a = t.begin; a < t.end; ++a) {
            for (int64_t b = u.begin; b < u.end; ++b) {
              const int64_t ky = first + a * vertical_.period, kx = across.first[p] + cut + b * horizontal_.period;
              taps.push_back(
                  {input_.at(n, 0, i - down->shift - a * vertical_.step, j - across.shift - b * horizontal_.step),
                   &weight_[(ky * columns.kernel + kx) * pitch_]});
            }
          }
          sum_taps(taps, count, pitch_, row + (x + cut) * pitch_);
        }
      }
    }
  }

 private:
  const Problem& problem_;
  const Floats& input_;
  const int64_t pitch_;
  const std::vector<float> weight_;
  const Phases vertical_, horizontal_;
  std::vector<std::pair<const PhaseGroup*, int64_t>> row_groups_;  // of every phase, and its `first`
};

constexpr int64_t kChannelwiseGrain = 65536;  // multiply-adds that are worth waking a thread for

template <typename T>
void channelwise_deconv(const Problem& problem, const Tensor& input, const Tensor& weight, const Added& added,
                        bool channels_last, T* output) {
  const int64_t channels = problem.groups, pitch = pitch_of(channels), width = problem.columns.out;
  const Floats inputs = floats_of(input, Order::kChannelsLast, kWide), weights = floats_of(weight, Order::kAny);
  const ChannelwiseRows rows(problem, inputs, weights);
  const bool in_place = std::is_same_v<T, float> && channels_last && pitch == channels;
  const auto make_rows = [&](int64_t begin, int64_t end) {
    std::vector<TapPointers> taps;
    std::vector<float> scratch(width * pitch + kWide);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t n = line / problem.rows.out, y = line % problem.rows.out;
      float* row = scratch.data();
      if constexpr (std::is_same_v<T, float>)
        if (in_place) row = output + line * width * pitch;
      rows.make(n, y, taps, row);
      if (!added.bias.empty()) add_to(row, width, channels, pitch, added.bias.data(), 0, 1);
      const int64_t* strides = added.strides;
      const T* skip = static_cast<const T*>(added.skip);
      if (skip)
        skip += n * strides[0] + y * strides[2], add_to(row, width, channels, pitch, skip, strides[3], strides[1]);
      if (!in_place) put_row(row, problem.rows.out, width, channels, n, y, channels_last, output);
    }
  };
  parallel_for(problem.images * problem.rows.out, 1 + kChannelwiseGrain / (width * pitch), make_rows);
}

template <typename T>
void channelwise_input_gradient(const Problem& problem, const Tensor& grad, const Tensor& weight, bool channels_last,
                                T* output) {
  const Side &rows = problem.rows, &columns = problem.columns;
  const int64_t channels = problem.groups, pitch = pitch_of(channels), width = columns.in;
  const Floats grads = floats_of(grad, Order::kChannelsLast, kWide);
  const std::vector<float> weights = channelwise_weight(problem, floats_of(weight, Order::kAny));
  const Reads vertical{-rows.begin, rows.stride, rows.dilation, rows.kernel, rows.out};
  const Reads horizontal{-columns.begin, columns.stride, columns.dilation, columns.kernel, columns.out};
  const auto make_rows = [&](int64_t begin, int64_t end) {
    std::vector<float> row(width * pitch + kWide), sums(pitch + kWide);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t n = line / rows.in, i = line % rows.in;
      const Range down = vertical.taps_of(i);
      for (int64_t j = 0; j < width; ++j) {
        const Range across = horizontal.taps_of(j);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t ky = down.begin; ky < down.end && across.size() > 0; ++ky) {
          const int64_t x = j * columns.stride + across.begin * columns.dilation - columns.begin;
          add_products(grads.at(n, 0, i * rows.stride + ky * rows.dilation - rows.begin, x),
                       columns.dilation * grads.column, &weights[(ky * columns.kernel + across.begin) * pitch], pitch,
                       across.size(), pitch, sums.data());
        }
        put_sums(sums.data(), pitch, &row[j * pitch]);
      }
      put_row(row.data(), rows.in, width, channels, n, i, channels_last, output);
    }
  };
  const int64_t work = width * pitch * rows.kernel * columns.kernel;
  parallel_for(problem.images * rows.in, 1 + kChannelwiseGrain / work, make_rows);
}

// A task is a row of the kernel.
template <typename T>
void channelwise_weight_gradient(const Problem& problem, const Tensor& grad, const Tensor& input, T* output) {
  const Side &rows = problem.rows, &columns = problem.columns;
  const int64_t channels = problem.groups, pitch = pitch_of(channels), size = pitch + kWide;
  const Floats grads = floats_of(grad, Order::kChannelsLast, kWide);
  const Floats inputs = floats_of(input, Order::kChannelsLast, kWide);
  const auto make_row = [&](int64_t ky, std::vector<float>& sums, std::vector<float>& pixel) {
    const int64_t top = ky * rows.dilation - rows.begin;
    // Inputs whose output by this row of the kernel is in the window.
    const Range down = Reads{top, 0, rows.stride, rows.in, rows.out}.taps_of(0);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t row = 0; row < problem.images * down.size(); ++row) {
      const int64_t n = row / down.size(), i = down.begin + row % down.size();
      for (int64_t kx = 0; kx < columns.kernel; ++kx) {
        const int64_t left = kx * columns.dilation - columns.begin;
        const Range across = Reads{left, 0, columns.stride, columns.in, columns.out}.taps_of(0);
        if (across.size() == 0) continue;
        add_products(inputs.at(n, 0, i, across.begin), inputs.column,
                     grads.at(n, 0, top + i * rows.stride, left + across.begin * columns.stride),
                     columns.stride * grads.column, across.size(), pitch, &sums[kx * size]);
      }
    }
    for (int64_t kx = 0; kx < columns.kernel; ++kx) {
      put_sums(&sums[kx * size], pitch, pixel.data());
      for (int64_t c = 0; c < channels; ++c)
        output[(c * rows.kernel + ky) * columns.kernel + kx] = from_float<T>(pixel[c]);
    }
  };
  const int64_t work = 1 + problem.images * rows.in * columns.in * columns.kernel * pitch;
  parallel_for(rows.kernel, 1 + kChannelwiseGrain / work, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(columns.kernel * size), pixel(pitch);
    for (int64_t ky = begin; ky < end; ++ky) make_row(ky, sums, pixel);
  });
}

}  // namespace fastseg
