// Computes  labels = argmax over classes of the bilinearly upsampled input  (fastseg/ops/upsample_argmax.py).
//
// The outputs between the same four input pixels form a cell. Weights are non-negative and sum to 1, so a class whose
// largest corner is below another's smallest corner wins nowhere in the cell: prune() leaves one or two classes of a
// smooth map, and most cells are filled without interpolating at all.
//
// A task owns one row of cells (at most kBand output rows): it reads two input rows, converted once to planar float,
// and writes every output between them. Reads the input twice at most and writes each label once.
// Precision: float32 throughout. Cells with an inf or NaN corner are not pruned, so they follow F.interpolate exactly.
#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/spans.h"
#include "tensor.h"

namespace fastseg {
namespace {

constexpr int64_t kBand = 16;  // keeps a band of labels in L1/L2 and gives few-celled inputs enough tasks

// One input row as float [class][pitch]. Columns past the width repeat the last one, so that column + 1 is always the
// right neighbour and whole vectors can be read.
struct Row {
  int64_t held = -1;  // which row of the batch
  std::vector<float> values;
  std::vector<float> nonfinite;  // per column: 0, or NaN if any class is inf or NaN
};

template <typename T>
FASTSEG_CLONES void convert_row(const T* from, int64_t class_stride, int64_t column_stride, int64_t classes,
                                int64_t width, int64_t pitch, float* values, float* nonfinite) {
  if (column_stride == 1) {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t j = 0; j < width; ++j) values[k * pitch + j] = to_float(from[k * class_stride + j]);
  } else {  // channels_last: read along the classes
    for (int64_t j = 0; j < width; ++j)
      for (int64_t k = 0; k < classes; ++k)
        values[k * pitch + j] = to_float(from[j * column_stride + k * class_stride]);
  }
  std::fill(nonfinite, nonfinite + pitch, 0.0f);
  for (int64_t k = 0; k < classes; ++k) {
    float* row = values + k * pitch;
    std::fill(row + width, row + pitch, row[width - 1]);
    for (int64_t j = 0; j < pitch; ++j) nonfinite[j] += row[j] * 0.0f;
  }
}

struct Corners {
  WideFloat top_left, top_right, bottom_left, bottom_right;
};

FASTSEG_INLINE Corners load_corners(const float* top, const float* bottom, int64_t to_right) {
  Corners c;
  load(c.top_left, top), load(c.top_right, top + to_right);
  load(c.bottom_left, bottom), load(c.bottom_right, bottom + to_right);
  return c;
}

FASTSEG_INLINE WideFloat smaller(WideFloat a, WideFloat b) { return a < b ? a : b; }
FASTSEG_INLINE WideFloat larger(WideFloat a, WideFloat b) { return a > b ? a : b; }

// For every cell of the row, the set of classes that may win in it: bit k % 32 of survivors[k / 32][cell]. The right
// neighbour of a column is `to_right` (0 or 1) further.
FASTSEG_CLONES void prune(const Row& top, const Row& bottom, int64_t classes, int64_t pitch, int64_t width,
                          int64_t to_right, int32_t* survivors) {
  for (int64_t j = 0; j < width; j += kWide) {
    const float *upper = top.values.data() + j, *lower = bottom.values.data() + j;
    const WideFloat lowest = WideFloat{} - std::numeric_limits<float>::infinity();
    WideFloat guaranteed = lowest;
    for (int64_t k = 0; k < classes; ++k) {
      Corners c = load_corners(upper + k * pitch, lower + k * pitch, to_right);
      WideFloat least = smaller(smaller(c.top_left, c.top_right), smaller(c.bottom_left, c.bottom_right));
      guaranteed = larger(guaranteed, least);
    }
    Corners odd = load_corners(top.nonfinite.data() + j, bottom.nonfinite.data() + j, to_right);
    guaranteed = odd.top_left + odd.top_right + odd.bottom_left + odd.bottom_right == 0.0f ? guaranteed : lowest;
    for (int64_t word = 0; word * 32 < classes; ++word) {
      WideInt kept = {};
      for (int64_t k = word * 32; k < std::min(classes, word * 32 + 32); ++k) {
        Corners c = load_corners(upper + k * pitch, lower + k * pitch, to_right);
        WideFloat most = larger(larger(c.top_left, c.top_right), larger(c.bottom_left, c.bottom_right));
        const WideInt bit = WideInt{} + int32_t(uint32_t(1) << (k % 32));
        kept |= most < guaranteed ? WideInt{} : bit;  // not `>=`: NaN is kept
      }
      store(survivors + word * pitch + j, kept);
    }
  }
}

struct Candidate {
  int32_t label;
  float top_left, top_right, bottom_left, bottom_right;
};

FASTSEG_INLINE ShortFloat interpolate(const Candidate& c, ShortFloat left, ShortFloat right, float lower) {
  float upper = 1.0f - lower;
  return left * (upper * c.top_left + lower * c.bottom_left) + right * (upper * c.top_right + lower * c.bottom_right);
}

template <typename Label>
struct LabelVectors {
  typedef Label Wide __attribute__((vector_size(kWide * sizeof(Label))));
  typedef Label Short __attribute__((vector_size(kShort * sizeof(Label))));
};

// Labels of one cell row: `rows` output rows at `band`, `band_pitch` apart. Cells are written left to right in whole
// vectors; what a vector writes past its cell, the next cell overwrites, and the band has room after the last.
template <typename Label>
FASTSEG_CLONES void label_band(const Row& top, const Row& bottom, int64_t classes, int64_t pitch,
                               const int32_t* survivors, const std::vector<Span>& cells, const float* x_fractions,
                               const float* y_fractions, int64_t rows, Candidate* candidates, Label* band,
                               int64_t band_pitch) {
  for (const Span& cell : cells) {
    int64_t count = 0;
    for (int64_t word = 0; word * 32 < classes; ++word) {
      for (uint32_t bits = survivors[word * pitch + cell.low]; bits; bits &= bits - 1) {
        int64_t k = word * 32 + __builtin_ctz(bits);
        const float *upper = &top.values[k * pitch + cell.low], *lower = &bottom.values[k * pitch + cell.low];
        const int64_t right = cell.high - cell.low;
        candidates[count++] = {int32_t(k), upper[0], upper[right], lower[0], lower[right]};
      }
    }
    if (count == 1) {
      auto only = typename LabelVectors<Label>::Wide{} + Label(candidates[0].label);
      for (int64_t y = 0; y < rows; ++y)
        for (int64_t x = cell.begin; x < cell.end; x += kWide) store(band + y * band_pitch + x, only);
      continue;
    }
    for (int64_t x = cell.begin; x < cell.end; x += kShort) {
      ShortFloat right, left;
      load(right, x_fractions + x);
      left = 1.0f - right;
      for (int64_t y = 0; y < rows; ++y) {
        ShortFloat best = interpolate(candidates[0], left, right, y_fractions[y]);
        ShortInt label = ShortInt{} + candidates[0].label;
        for (int64_t i = 1; i < count; ++i) {
          ShortFloat value = interpolate(candidates[i], left, right, y_fractions[y]);
          ShortInt other = ShortInt{} + candidates[i].label;
          // As argmax: the first of equals wins, and so does the first NaN.
          label = value <= best ? label : best == best ? other : label;
          best = value <= best ? best : best == best ? value : best;
        }
        store(band + y * band_pitch + x, __builtin_convertvector(label, typename LabelVectors<Label>::Short));
      }
    }
  }
}

template <typename T, typename Label>
void label_images(const Tensor& input, const Axis& vertical, const Axis& horizontal, Tensor& labels) {
  const int64_t images = input.size(0), classes = input.size(1), height = vertical.in, width = horizontal.in;
  const int64_t pitch = (width + kWide - 1) / kWide * kWide + kWide;
  const int64_t band_pitch = horizontal.out + kWide;
  const int64_t image_stride = input.stride(0), class_stride = input.stride(1), row_stride = input.stride(2),
                column_stride = input.stride(3);
  const int64_t to_right = horizontal.in == horizontal.out ? 0 : 1;  // as neighbour() says
  const Cut bands = cut_into_spans(vertical, kBand);
  const Cut cells = cut_into_spans(horizontal, horizontal.out);
  const int64_t bands_per_image = bands.spans.size();
  const T* from = input.const_data_ptr<T>();
  Label* to = labels.mutable_data_ptr<Label>();

  auto work = [&](int64_t begin, int64_t end) {
    Row held[2];
    Row *top = &held[0], *bottom = &held[1];
    for (Row& row : held) row.values.resize(classes * pitch), row.nonfinite.resize(pitch);
    std::vector<int32_t> survivors((classes + 31) / 32 * pitch);
    std::vector<Candidate> candidates(classes);
    std::vector<Label> band(kBand * band_pitch);
    auto hold = [&](Row& row, int64_t image, int64_t index) {
      if (row.held == image * height + index) return;
      row.held = image * height + index;
      convert_row(from + image * image_stride + index * row_stride, class_stride, column_stride, classes, width, pitch,
                  row.values.data(), row.nonfinite.data());
    };
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / bands_per_image;
      const Span& rows = bands.spans[task % bands_per_image];
      if (bottom->held == image * height + rows.low) std::swap(top, bottom);
      hold(*top, image, rows.low);
      hold(*bottom, image, rows.high);
      prune(*top, *bottom, classes, pitch, width, to_right, survivors.data());
      label_band(*top, *bottom, classes, pitch, survivors.data(), cells.spans, cells.fractions.data(),
                 &bands.fractions[rows.begin], rows.end - rows.begin, candidates.data(), band.data(), band_pitch);
      for (int64_t y = rows.begin; y < rows.end; ++y)
        std::copy_n(&band[(y - rows.begin) * band_pitch], horizontal.out,
                    to + (image * vertical.out + y) * horizontal.out);
    }
  };
  const int64_t tasks = images * bands_per_image;
  const int64_t grain = 1 + 8192 / (horizontal.out + width);  // a thread is worth waking for some thousand pixels
  parallel_for(tasks, grain, work);
}

Tensor upsample_argmax(const Tensor& input, std::vector<int64_t> size, bool align_corners, ScalarType dtype) {
  Tensor labels = torch::stable::new_empty(input, {input.size(0), size[0], size[1]}, dtype);
  const Axis vertical = make_axis(input.size(2), size[0], align_corners);
  const Axis horizontal = make_axis(input.size(3), size[1], align_corners);
  if (labels.numel() == 0) return labels;
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto logit) {
    with_type<uint8_t, int32_t, int64_t>(dtype, [&](auto label) {
      label_images<decltype(logit), decltype(label)>(input, vertical, horizontal, labels);
    });
  });
  return labels;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CPU, m) { m.impl("upsample_argmax", TORCH_BOX(&fastseg::upsample_argmax)); }
