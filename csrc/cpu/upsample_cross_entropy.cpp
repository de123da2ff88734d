// Computes the cross-entropy of bilinearly upsampled logits and its gradient (fastseg/ops/upsample_cross_entropy.py).
//
// Softmax does not change when all classes of a pixel move by the same amount, and interpolation is linear. So the
// largest class of every low-resolution pixel is subtracted before interpolating: no output needs a pass for its
// maximum, and each output and class costs one multiply-add, one exponential and, for the gradient, two multiply-adds.
//
// A task owns a tile of kWide output columns over some bands of output rows (a band: rows between the same two input
// rows). Its two input rows lie in L1, upsampled horizontally, class by class: each operation takes one class at all
// columns. Gradients gather in two rows of the same shape; when an input row is done, its gradient is summed to input
// columns and put into the task's own patch. At the end every input pixel adds up the patches that cover it, in order:
// the result does not depend on the number of threads.
//
// Memory: the low-resolution logits in float32 four times at scale 8, six times at 32. Reads each target once.
// Precision: float32 (base-2 exponentials), loss sums in float64. Outputs whose sum of exponentials or whose target's
// exponential would underflow, and those near inf or NaN, are computed again in the arithmetic of F.cross_entropy, one
// by one: logits in the hundreds, or a class masked by -inf, take two to three times as long.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>

#include "cpu/parallel.h"
#include "cpu/spans.h"
#include "cpu/vector_math.h"
#include "tensor.h"

namespace fastseg {
namespace {

constexpr int64_t kLongestBand = 16;   // rows; gives few-celled inputs enough tasks
constexpr int64_t kBandsPerTask = 16;  // neighbouring tasks both keep a row between them: an overhead of 1/16
constexpr float kLog2E = 1.44269504f;
constexpr float kLeast = 0x1p-60f;  // sums and target exponentials below are too near to underflow

// What a call computes: symbols as in the op's docstring, e = label_smoothing.
struct Problem {
  int64_t images, classes;
  Axis rows, columns;
  int64_t ignore_index;
  float target_share, smooth_share;  // 1 - e, e / C
  std::vector<float> weight;         // of the classes
  float weight_sum;
  int64_t pitch;  // floats per low-resolution pixel: the classes, then "smooth" (below) if there is smoothing

  int64_t tile_size() const { return (pitch + kWide - 1) / kWide * kWide * kWide; }
};

// An (N, H, W) tensor in any layout.
template <typename T>
struct Map {
  const T* data = nullptr;
  int64_t image_stride = 0, row_stride = 0, column_stride = 0;

  const T* row(int64_t image, int64_t y) const { return data + image * image_stride + y * row_stride; }
};

template <typename T>
Map<T> map_of(const Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// One input row as [column][pitch]: (x - largest class) log2(e), then "smooth", the sum over classes of weight times
// that, which is what label smoothing asks of an output and as linear as the logits.
template <typename T>
FASTSEG_CLONES void normalise_row(const T* from, int64_t class_stride, int64_t column_stride, const Problem& problem,
                                  float* to) {
  const int64_t classes = problem.classes, pitch = problem.pitch, width = problem.columns.in;
  if (column_stride == 1) {
    for (int64_t k = 0; k < classes; ++k)
      for (int64_t j = 0; j < width; ++j) to[j * pitch + k] = to_float(from[k * class_stride + j]);
  } else {
    for (int64_t j = 0; j < width; ++j)
      for (int64_t k = 0; k < classes; ++k) to[j * pitch + k] = to_float(from[j * column_stride + k * class_stride]);
  }
  for (int64_t j = 0; j < width; ++j, to += pitch) {
    float largest = to[0];
    int64_t k = 0;
    if (classes >= kWide) {
      WideFloat most, x;
      for (load(most, to); k + kWide <= classes; k += kWide) load(x, to + k), most = x > most ? x : most;
      for (int64_t lane = 0; lane < kWide; ++lane) largest = std::max(largest, most[lane]);
    }
    for (; k < classes; ++k) largest = std::max(largest, to[k]);
    for (k = 0; k < classes; ++k) to[k] = (to[k] - largest) * kLog2E;
    if (problem.smooth_share == 0) continue;
    double smooth = 0;
    for (k = 0; k < classes; ++k) smooth += double(problem.weight[k]) * to[k];
    to[classes] = float(smooth);
  }
}

// kWide neighbouring outputs of a row; columns past the last output repeat it.
struct Tile {
  int64_t begin, count;             // output columns
  int64_t low[kWide], high[kWide];  // their input columns
  float right[kWide];               // the weight of `high`
  int64_t first, width;             // input columns that the tile touches
};

std::vector<Tile> cut_into_tiles(const Axis& axis) {
  std::vector<Tile> tiles;
  for (int64_t begin = 0; begin < axis.out; begin += kWide) {
    Tile tile{begin, std::min(kWide, axis.out - begin)};
    for (int64_t lane = 0; lane < kWide; ++lane) {
      const int64_t x = begin + std::min(lane, tile.count - 1);
      tile.low[lane] = low_index(axis, x);
      tile.high[lane] = neighbour(axis, tile.low[lane]);
      tile.right[lane] = fraction(axis, x, tile.low[lane]);
    }
    tile.first = tile.low[0];
    tile.width = tile.high[kWide - 1] + 1 - tile.first;
    tiles.push_back(tile);
  }
  return tiles;
}

// An input row at the tile's columns, and the gradient that its outputs gather there: [pitch, to whole vectors][kWide].
struct Held {
  int64_t row = -1;
  std::vector<float> values, gradient;
};

// Low-resolution pixels are read and written in whole vectors, and what follows their last class with them: junk that
// nobody reads, and zeros that are added. So buffers of pixels end with room for a vector.

FASTSEG_CLONES void upsample_columns(const float* normalised, const Tile& tile, int64_t pitch, float* to) {
  for (int64_t k = 0; k < pitch; k += kWide) {
    WideFloat columns[kWide];
    for (int64_t lane = 0; lane < kWide; ++lane) {
      WideFloat left, right;
      load(left, normalised + tile.low[lane] * pitch + k);
      load(right, normalised + tile.high[lane] * pitch + k);
      columns[lane] = left + tile.right[lane] * (right - left);
    }
    transpose(columns);
    for (int64_t i = 0; i < kWide; ++i) store(to + (k + i) * kWide, columns[i]);
  }
}

// The transpose of upsample_columns: adds to `patch`, [input column of the tile][pitch].
FASTSEG_CLONES void gather_columns(const float* gradient, const Tile& tile, int64_t pitch, float* patch) {
  for (int64_t k = 0; k < pitch; k += kWide) {
    WideFloat columns[kWide];
    for (int64_t i = 0; i < kWide; ++i) load(columns[i], gradient + (k + i) * kWide);
    transpose(columns);
    WideFloat left = {}, right = {};
    for (int64_t lane = 0; lane < tile.count; ++lane) {
      left += (1.0f - tile.right[lane]) * columns[lane];
      right += tile.right[lane] * columns[lane];
      if (lane + 1 < tile.count && tile.low[lane + 1] == tile.low[lane]) continue;
      float* to_left = patch + (tile.low[lane] - tile.first) * pitch + k;
      float* to_right = patch + (tile.high[lane] - tile.first) * pitch + k;
      WideFloat sum;
      load(sum, to_left), store(to_left, sum + left);
      load(sum, to_right), store(to_right, sum + right);
      left = right = WideFloat{};
    }
  }
}

FASTSEG_CLONES void subtract(const float* a, const float* b, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = a[i] - b[i];
}

// exps[k] = exp of class k at the tile's columns, relative to the interpolated maximum; sum over the classes.
FASTSEG_CLONES void exponentials(const float* top, const float* rise, float lower, int64_t classes, float* exps,
                                 float* sum) {
  WideFloat total = {};
  for (int64_t k = 0; k < classes; ++k) {
    WideFloat at_top, change;
    load(at_top, top + k * kWide), load(change, rise + k * kWide);
    const WideFloat e = exp2(at_top + lower * change);
    store(exps + k * kWide, e);
    total += e;
  }
  store(sum, total);
}

// Per-output values of a tile's row.
struct Outputs {
  int32_t label[kWide];  // the class; 0 where it does not count
  float counts[kWide];   // 0 or 1
  float weight[kWide];   // of the class, times counts
  float grad[kWide];     // incoming
  float sum[kWide], target_exp[kWide];
  float target_loss[kWide], smooth_loss[kWide];  // lse - z[t], sum of w[k] (lse - z[k])
  float loss[kWide];
  double loss_sum[kWide], weight_sum[kWide];  // over the task's rows
  // The gradient is factor (exps[k] - target_exps [k = label] - smooth_exps w[k]).
  float factor[kWide], target_exps[kWide], smooth_exps[kWide];
};

// Fills label, counts and weight from one row of targets; says whether any output counts. A target that is no class
// counts as ignored and is put into `wrong`.
template <typename Target>
FASTSEG_CLONES bool read_targets(const Target* targets, int64_t stride, int64_t count, const Problem& problem,
                                 Outputs& outputs, std::atomic<int64_t>& wrong) {
  int64_t labels[kWide];
  std::fill_n(labels, kWide, problem.ignore_index);
  for (int64_t lane = 0; lane < count; ++lane) labels[lane] = targets[lane * stride];
  int64_t any = 0, any_wrong = 0;
  for (int64_t lane = 0; lane < kWide; ++lane) {
    const bool is_class = uint64_t(labels[lane]) < uint64_t(problem.classes),
               kept = labels[lane] != problem.ignore_index;
    any_wrong |= kept & !is_class;
    any |= kept & is_class;
    outputs.label[lane] = kept & is_class ? labels[lane] : 0;
    outputs.counts[lane] = kept & is_class ? 1.0f : 0.0f;
  }
  for (int64_t lane = 0; lane < kWide; ++lane)
    outputs.weight[lane] = outputs.counts[lane] != 0 ? problem.weight[outputs.label[lane]] : 0.0f;
  for (int64_t lane = 0; any_wrong && lane < kWide; ++lane)
    if (labels[lane] != problem.ignore_index && outputs.counts[lane] == 0) wrong = labels[lane];
  return any;
}

// target_loss and smooth_loss from the exponentials, and whether underflow, inf or NaN has spoilt some.
// smooth_top, smooth_rise: that channel, read only if there is smoothing.
FASTSEG_CLONES bool log_losses(Outputs& outputs, const Problem& problem, const float* exps, const float* smooth_top,
                               const float* smooth_rise, float lower) {
  for (int64_t lane = 0; lane < kWide; ++lane) outputs.target_exp[lane] = exps[outputs.label[lane] * kWide + lane];
  WideFloat sum, target_exp, smooth_loss = {};
  load(sum, outputs.sum), load(target_exp, outputs.target_exp);
  store(outputs.target_loss, log(sum / target_exp));
  if (problem.smooth_share != 0) {
    WideFloat top, rise;
    load(top, smooth_top), load(rise, smooth_rise);
    smooth_loss = problem.weight_sum * log(sum) - (top + lower * rise) / kLog2E;
  }
  store(outputs.smooth_loss, smooth_loss);
  // The target's exponential is part of the sum, so if it is large enough both are; NaN compares false.
  const WideFloat doubtful = target_exp + 0.0f * sum;
  return any(doubtful > kLeast ? WideFloat{} : WideFloat{} + 1.0f);
}

FASTSEG_CLONES void finish(Outputs& outputs, const Problem& problem) {
  WideFloat weight, counts, grad, sum, target_loss, smooth_loss;
  load(weight, outputs.weight), load(counts, outputs.counts), load(grad, outputs.grad), load(sum, outputs.sum);
  load(target_loss, outputs.target_loss), load(smooth_loss, outputs.smooth_loss);
  const WideFloat of_target = problem.target_share * weight, of_smooth = problem.smooth_share * counts;
  const WideFloat a = of_target + of_smooth * problem.weight_sum;
  const WideFloat loss = of_target * target_loss + of_smooth * smooth_loss;
  store(outputs.loss, counts != 0.0f ? loss : WideFloat{});
  store(outputs.factor, a * grad / sum);
  const WideFloat exps_per_share = a != 0.0f ? sum / a : WideFloat{};
  store(outputs.target_exps, of_target * exps_per_share);
  store(outputs.smooth_exps, of_smooth * exps_per_share);
  for (int64_t lane = 0; lane < kWide; ++lane) {
    outputs.loss_sum[lane] += outputs.loss[lane];
    outputs.weight_sum[lane] += outputs.weight[lane];
  }
}

template <bool kSmooth>
FASTSEG_CLONES void accumulate(const Outputs& outputs, const Problem& problem, float* exps, float lower, float* top,
                               float* bottom) {
  for (int64_t lane = 0; lane < kWide; ++lane) exps[outputs.label[lane] * kWide + lane] -= outputs.target_exps[lane];
  WideFloat factor, smooth;
  load(factor, outputs.factor), load(smooth, outputs.smooth_exps);
  const WideFloat to_top = factor * (1.0f - lower), to_bottom = factor * lower;
  for (int64_t k = 0; k < problem.classes; ++k) {
    WideFloat e, sum;
    load(e, exps + k * kWide);
    if (kSmooth) e -= smooth * problem.weight[k];
    load(sum, top + k * kWide), store(top + k * kWide, sum + e * to_top);
    load(sum, bottom + k * kWide), store(bottom + k * kWide, sum + e * to_bottom);
  }
}

// The raw logits, for outputs that need PyTorch's own arithmetic.
template <typename T>
struct Logits {
  const T* data;
  int64_t image_stride, class_stride, row_stride, column_stride;

  float at(int64_t image, int64_t k, int64_t i, int64_t j) const {
    return to_float(data[image * image_stride + k * class_stride + i * row_stride + j * column_stride]);
  }
};

// The four corners of an output and how it weighs them.
struct Place {
  int64_t image, top, bottom, left, right;
  float lower, rightness;
};

// Softmax and losses of one output from the raw logits. exps: its lane, kWide apart; becomes the softmax.
template <typename T>
void recompute(const Logits<T>& logits, const Place& p, const Problem& problem, int64_t lane, Outputs& outputs,
               float* exps) {
  const float upper = 1.0f - p.lower, left = 1.0f - p.rightness;
  float most = -std::numeric_limits<float>::infinity(), sum = 0, smooth = 0;
  for (int64_t k = 0; k < problem.classes; ++k) {
    const float z =
        upper * (left * logits.at(p.image, k, p.top, p.left) + p.rightness * logits.at(p.image, k, p.top, p.right)) +
        p.lower *
            (left * logits.at(p.image, k, p.bottom, p.left) + p.rightness * logits.at(p.image, k, p.bottom, p.right));
    exps[k * kWide] = z;
    most = z > most || z != z ? z : most;
  }
  for (int64_t k = 0; k < problem.classes; ++k) sum += std::exp(exps[k * kWide] - most);
  const float log_sum = std::log(sum);
  outputs.target_loss[lane] = log_sum - (exps[outputs.label[lane] * kWide] - most);
  for (int64_t k = 0; k < problem.classes; ++k) {
    const float log_softmax = exps[k * kWide] - most - log_sum;
    smooth -= problem.weight[k] * log_softmax;
    exps[k * kWide] = std::exp(log_softmax);
  }
  outputs.smooth_loss[lane] = problem.smooth_share != 0 ? smooth : 0.0f;
  outputs.sum[lane] = 1.0f;
}

// Some bands of an image, [begin, end), and where tasks put the gradient of the input rows that these touch.
struct Chunk {
  int64_t begin, end;
  int64_t first_row, rows;
  int64_t offset;  // of the patches
};

// How a call is cut into tasks. The patch of a tile in a chunk is [input row][input column of the tile][pitch].
struct Plan {
  Cut bands;
  std::vector<Tile> tiles;
  std::vector<int64_t> columns_before;  // input columns of all tiles before a tile
  std::vector<Chunk> chunks;
  int64_t patch_floats = 0;  // of an image

  explicit Plan(const Problem& problem)
      : bands(cut_into_spans(problem.rows, kLongestBand)), tiles(cut_into_tiles(problem.columns)) {
    int64_t columns = 0;
    for (const Tile& tile : tiles) columns_before.push_back(columns), columns += tile.width;
    const int64_t count = bands.spans.size();
    for (int64_t begin = 0; begin < count; begin += kBandsPerTask) {
      const int64_t end = std::min(begin + kBandsPerTask, count), first = bands.spans[begin].low;
      chunks.push_back({begin, end, first, bands.spans[end - 1].high + 1 - first, patch_floats});
      patch_floats += chunks.back().rows * columns * problem.pitch + int64_t(tiles.size()) * kWide;
    }
  }

  int64_t patch(const Chunk& chunk, int64_t tile, int64_t pitch) const {
    return chunk.offset + chunk.rows * columns_before[tile] * pitch + tile * kWide;
  }
  int64_t tasks_per_image() const { return chunks.size() * tiles.size(); }
};

struct Sums {
  double loss = 0, weight = 0;
};

// What all tasks of a call read and write. Gradients are wanted if `patches` is not empty; `losses` may be null.
template <typename T, typename Target>
struct Call {
  const Problem& problem;
  const Plan& plan;
  Logits<T> logits;
  Map<Target> targets;
  Map<float> grads;  // of the losses; 1 if null
  std::vector<float> normalised, patches;
  float* losses;
  std::atomic<int64_t> wrong_target;  // one that is no class; ignore_index if there is none
};

// A thread's scratch, and the steps of a task.
template <typename T, typename Target>
class Worker {
 public:
  explicit Worker(Call<T, Target>& call) : call_(call), problem_(call.problem) {
    const int64_t size = problem_.tile_size();
    for (Held& held : held_) held.values.resize(size), held.gradient.resize(size);
    rise_.resize(size), exps_.resize(size);
  }

  Sums run(int64_t task) {
    const Plan& plan = call_.plan;
    const int64_t tiles = plan.tiles.size(), chunk = task / tiles % plan.chunks.size();
    image_ = task / plan.tasks_per_image();
    tile_ = &plan.tiles[task % tiles];
    chunk_ = &plan.chunks[chunk];
    if (!call_.patches.empty())
      patch_ = &call_.patches[image_ * plan.patch_floats + plan.patch(*chunk_, task % tiles, problem_.pitch)];
    std::fill_n(out_.loss_sum, kWide, 0.0), std::fill_n(out_.weight_sum, kWide, 0.0);
    for (int64_t band = chunk_->begin; band < chunk_->end; ++band) {
      const Span& rows = plan.bands.spans[band];
      if (bottom_->row == rows.low) std::swap(top_, bottom_);
      hold(*top_, rows.low);
      hold(*bottom_, rows.high);
      subtract(bottom_->values.data(), top_->values.data(), problem_.tile_size(), rise_.data());
      for (int64_t y = rows.begin; y < rows.end; ++y) add_row(y, rows);
    }
    for (Held* held : {top_, bottom_}) hold(*held, -1);
    return {std::accumulate(out_.loss_sum, out_.loss_sum + kWide, 0.0),
            std::accumulate(out_.weight_sum, out_.weight_sum + kWide, 0.0)};
  }

 private:
  // Makes room for an input row (-1: none), after the gradient of the one that was held.
  void hold(Held& held, int64_t row) {
    if (held.row == row) return;
    if (held.row >= 0 && patch_) {
      gather_columns(held.gradient.data(), *tile_, problem_.pitch,
                     patch_ + (held.row - chunk_->first_row) * tile_->width * problem_.pitch);
    }
    held.row = row;
    if (row < 0) return;
    const int64_t index = image_ * problem_.rows.in + row;
    upsample_columns(&call_.normalised[index * problem_.columns.in * problem_.pitch], *tile_, problem_.pitch,
                     held.values.data());
    if (patch_) std::fill(held.gradient.begin(), held.gradient.end(), 0.0f);
  }

  void add_row(int64_t y, const Span& rows) {
    const float lower = call_.plan.bands.fractions[y];
    const int64_t smooth = problem_.classes * kWide, stride = call_.targets.column_stride;
    const Target* targets = call_.targets.row(image_, y) + tile_->begin * stride;
    if (read_targets(targets, stride, tile_->count, problem_, out_, call_.wrong_target)) {
      exponentials(top_->values.data(), rise_.data(), lower, problem_.classes, exps_.data(), out_.sum);
      if (log_losses(out_, problem_, exps_.data(), top_->values.data() + smooth, rise_.data() + smooth, lower))
        repair(y, rows);
      read_grads(y);
      finish(out_, problem_);
      if (patch_) {
        const auto add = problem_.smooth_share != 0 ? accumulate<true> : accumulate<false>;
        add(out_, problem_, exps_.data(), lower, top_->gradient.data(), bottom_->gradient.data());
      }
    } else {
      std::fill_n(out_.loss, kWide, 0.0f);
    }
    if (!call_.losses) return;
    float* losses = call_.losses + (image_ * problem_.rows.out + y) * problem_.columns.out + tile_->begin;
    std::copy_n(out_.loss, tile_->count, losses);
  }

  // Ignored outputs get none: theirs may be NaN.
  void read_grads(int64_t y) {
    std::copy_n(out_.counts, kWide, out_.grad);
    if (!call_.grads.data) return;
    const float* grads = call_.grads.row(image_, y) + tile_->begin * call_.grads.column_stride;
    for (int64_t lane = 0; lane < tile_->count; ++lane)
      if (out_.counts[lane] != 0) out_.grad[lane] = grads[lane * call_.grads.column_stride];
  }

  void repair(int64_t y, const Span& rows) {
    for (int64_t lane = 0; lane < kWide; ++lane) {
      if (out_.sum[lane] > kLeast && out_.target_exp[lane] > kLeast) continue;
      if (out_.counts[lane] != 0) {
        const Place place{image_,
                          rows.low,
                          rows.high,
                          tile_->low[lane],
                          tile_->high[lane],
                          call_.plan.bands.fractions[y],
                          tile_->right[lane]};
        recompute(call_.logits, place, problem_, lane, out_, &exps_[lane]);
      } else {  // whatever its logits are, it has no say
        for (int64_t k = 0; k < problem_.classes; ++k) exps_[k * kWide + lane] = 0.0f;
        out_.sum[lane] = 1.0f;
      }
    }
  }

  Call<T, Target>& call_;
  const Problem& problem_;
  int64_t image_ = 0;
  const Tile* tile_ = nullptr;
  const Chunk* chunk_ = nullptr;
  float* patch_ = nullptr;
  Held held_[2];
  Held *top_ = &held_[0], *bottom_ = &held_[1];
  std::vector<float> rise_, exps_;
  Outputs out_;
};

// The gradient of one input row, [column][classes], from all patches that cover it, in order.
FASTSEG_CLONES void add_patches(const Problem& problem, const Plan& plan, const float* patches, int64_t row, float* sum,
                                float* to) {
  const int64_t pitch = problem.pitch, width = problem.columns.in;
  std::fill_n(sum, width * pitch, 0.0f);
  for (const Chunk& chunk : plan.chunks) {
    if (row < chunk.first_row || row >= chunk.first_row + chunk.rows) continue;
    for (size_t t = 0; t < plan.tiles.size(); ++t) {
      const Tile& tile = plan.tiles[t];
      const float* patch = patches + plan.patch(chunk, t, pitch) + (row - chunk.first_row) * tile.width * pitch;
      float* into = sum + tile.first * pitch;
      for (int64_t i = 0; i < tile.width * pitch; ++i) into[i] += patch[i];
    }
  }
  for (int64_t j = 0; j < width; ++j) {
    std::copy_n(sum + j * pitch, problem.classes, to + j * problem.classes);
  }
}

// Losses go to `losses` (N, H, W), the gradient of their sum weighted by `grads` to `gradient` (N, h, w, C), if wanted.
template <typename T, typename Target>
Sums run(const Problem& problem, const Tensor& input, const Tensor& target, Map<float> grads, float* losses,
         float* gradient) {
  const Plan plan(problem);
  const Logits<T> logits{input.const_data_ptr<T>(), input.stride(0), input.stride(1), input.stride(2), input.stride(3)};
  const int64_t rows = problem.images * problem.rows.in, row_floats = problem.columns.in * problem.pitch;
  Call<T, Target> call{problem, plan, logits, map_of<Target>(target), grads, {}, {}, losses, problem.ignore_index};
  call.normalised.resize(rows * row_floats + kWide);
  call.patches.resize(gradient ? problem.images * plan.patch_floats : 0);
  parallel_for(rows, 1 + 16384 / row_floats, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from =
          logits.data + row / problem.rows.in * logits.image_stride + row % problem.rows.in * logits.row_stride;
      normalise_row(from, logits.class_stride, logits.column_stride, problem, &call.normalised[row * row_floats]);
    }
  });
  std::vector<Sums> sums(problem.images * plan.tasks_per_image());
  parallel_for(sums.size(), 1, [&](int64_t begin, int64_t end) {
    Worker<T, Target> worker(call);
    for (int64_t task = begin; task < end; ++task) sums[task] = worker.run(task);
  });
  STD_TORCH_CHECK(call.wrong_target == problem.ignore_index, "upsample_cross_entropy: target must be a class, 0 to ",
                  problem.classes - 1, ", or ignore_index, ", problem.ignore_index, ", got ", call.wrong_target.load());
  if (gradient) {
    parallel_for(rows, 1 + 16384 / row_floats, [&](int64_t begin, int64_t end) {
      std::vector<float> sum(row_floats);
      for (int64_t row = begin; row < end; ++row) {
        const float* patches = call.patches.data() + row / problem.rows.in * plan.patch_floats;
        add_patches(problem, plan, patches, row % problem.rows.in, sum.data(),
                    gradient + row * problem.columns.in * problem.classes);
      }
    });
  }
  Sums total;
  for (const Sums& task : sums) total.loss += task.loss, total.weight += task.weight;
  return total;
}

Sums dispatch(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight, int64_t ignore_index,
              double label_smoothing, bool align_corners, Map<float> grads, float* losses, float* gradient) {
  const int64_t classes = input.size(1);
  Problem problem{input.size(0),
                  classes,
                  make_axis(input.size(2), target.size(1), align_corners),
                  make_axis(input.size(3), target.size(2), align_corners),
                  ignore_index,
                  float(1 - label_smoothing),
                  float(label_smoothing / double(classes)),
                  std::vector<float>(classes, 1.0f),
                  0.0f,
                  classes + (label_smoothing != 0)};
  if (weight) std::copy_n(weight->const_data_ptr<float>(), classes, problem.weight.begin());
  if (problem.smooth_share != 0)  // a class that never occurs may have a weight of inf
    for (float w : problem.weight) problem.weight_sum += w;
  Sums sums;
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto logit) {
    with_type<int64_t, int32_t, uint8_t>(target.scalar_type(), [&](auto label) {
      sums = run<decltype(logit), decltype(label)>(problem, input, target, grads, losses, gradient);
    });
  });
  return sums;
}

Tensor new_gradient(const Tensor& input) {
  using torch::headeronly::MemoryFormat;
  const int64_t sizes[] = {input.size(0), input.size(1), input.size(2), input.size(3)};
  return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, input.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

std::tuple<Tensor, Tensor, Tensor> upsample_cross_entropy(const Tensor& input, const Tensor& target,
                                                          const std::optional<Tensor>& weight, int64_t ignore_index,
                                                          double label_smoothing, bool align_corners, bool reduce,
                                                          bool with_grad) {
  const auto scalar = [&](double value) {
    Tensor tensor = torch::stable::new_empty(input, {}, ScalarType::Float);
    tensor.mutable_data_ptr<float>()[0] = float(value);
    return tensor;
  };
  Tensor losses, gradient;
  if (!reduce)
    losses = torch::stable::new_empty(input, {target.size(0), target.size(1), target.size(2)}, ScalarType::Float);
  gradient = with_grad ? new_gradient(input) : torch::stable::new_empty(input, {0}, ScalarType::Float);
  const Sums sums = dispatch(input, target, weight, ignore_index, label_smoothing, align_corners, {},
                             reduce ? nullptr : losses.mutable_data_ptr<float>(),
                             with_grad ? gradient.mutable_data_ptr<float>() : nullptr);
  if (reduce) losses = scalar(sums.loss);
  return {losses, scalar(sums.weight), gradient};
}

Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                       const std::optional<Tensor>& weight, int64_t ignore_index,
                                       double label_smoothing, bool align_corners) {
  Tensor gradient = new_gradient(input);
  dispatch(input, target, weight, ignore_index, label_smoothing, align_corners, map_of<float>(grad), nullptr,
           gradient.mutable_data_ptr<float>());
  return gradient;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&fastseg::upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&fastseg::upsample_cross_entropy_backward));
}
