// Cross-entropy of bilinearly upsampled logits and its gradient (fastseg/ops/upsample_cross_entropy.py, whose symbols
// are used here: z, t, w, e, C, lse, a).
//
// A team of 8, 16 or 32 lanes owns a cell: the outputs between the same four input pixels, or a part of them. Each lane
// holds the four corners of a few classes in registers. For every pixel of the cell the team interpolates all classes,
// finds their maximum and the sum of their exponentials by shuffles, and each lane adds its classes' part of the
// gradient to four sums, one per corner: exponentials are taken once, and neither z nor softmax(z) is ever stored. What
// comes once per pixel (coordinates, target, weights, the loss) is done for as many pixels as the team has lanes at a
// time, a pixel per lane, and handed over in shared memory. Classes that do not fit into the team's registers are taken
// in turns, which interpolate twice: for the sums, then for the gradient.
// A second kernel adds up, for every input pixel, the sums of the cells around it, in a fixed order.
// Reads the logits (up to 4 times from L2, about once from DRAM) and every target once; writes the loss, and 16 bytes
// of sums per class and cell, which the second kernel reads.
// Precision: float32; exponentials to 2^-22. An ignored pixel adds nothing, whatever its logits.
// A target that is neither a class nor ignore_index fails an assertion.
#pragma once
#include <algorithm>

#include "bilinear.h"
#include "cuda/device.h"

namespace fastseg {

constexpr int kLossThreads = 128;
constexpr int kLossWarps = kLossThreads / kWarp;
constexpr int64_t kLongestSpan = 8;  // outputs of a cell's part along one axis: 64 pixels pay for the corners
constexpr float kLog2E = 1.44269504f;

// Elements of an (N, H, W) tensor in any layout.
struct Strides {
  int64_t image, row, column;

  __device__ __forceinline__ int64_t at(int64_t i, int64_t y, int64_t x) const {
    return i * image + y * row + x * column;
  }
};

struct Target {
  const void* data;  // integers of this many bytes: int64, int32 or uint8
  int bytes;
  Strides strides;

  __device__ __forceinline__ int64_t at(int64_t image, int64_t y, int64_t x) const {
    const int64_t i = strides.at(image, y, x);
    if (bytes == 8) return static_cast<const int64_t*>(data)[i];
    if (bytes == 4) return static_cast<const int32_t*>(data)[i];
    return static_cast<const uint8_t*>(data)[i];
  }
};

struct LossProblem {
  int64_t images;
  int classes;
  Spans rows, columns;
  Target target;
  const float* weight;  // (C,), or null for 1s
  int64_t ignore_index;
  float target_share, smooth_share;  // 1 - e, e / C
  const float* upstream;             // factors of the loss in the gradient, or null for 1s
  Strides upstream_strides;

  __device__ __forceinline__ float weight_of(int k) const { return weight ? weight[k] : 1.0f; }

  // Floats of `sums`, the gradient by the corners: [image][row span][column span][corner][pitch]. Along an axis that
  // keeps its size a cell has one corner.
  FASTSEG_HOST_DEVICE int corners() const { return reach(rows.axis) * reach(columns.axis); }
  FASTSEG_HOST_DEVICE int pitch() const { return (classes + 3) / 4 * 4; }
  FASTSEG_HOST_DEVICE int64_t cell(int64_t image, int64_t row, int64_t column) const {
    return ((image * rows.count + row) * columns.count + column) * corners() * pitch();
  }
};

// Spans of at most kLongestSpan outputs or one more.
inline Spans loss_spans(const Axis& axis) {
  const int64_t longest = axis.in * kLongestSpan;
  return make_spans(axis, (axis.out + longest - 1) / longest);
}

// Lanes that share the classes of a pixel, how many each holds, and whether there are more, which then come in turns.
template <int kLanes_, int kPerLane_, bool kInTurns_ = false>
struct Team {
  static constexpr int kLanes = kLanes_, kPerLane = kPerLane_, kClasses = kLanes * kPerLane;
  static constexpr int kPerWarp = kWarp / kLanes;
  static constexpr bool kInTurns = kInTurns_;

  __device__ __forceinline__ static float largest(float x) {
#pragma unroll
    for (int apart = kLanes / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, apart));
    return x;
  }
  __device__ __forceinline__ static float sum(float x) {
#pragma unroll
    for (int apart = kLanes / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
    return x;
  }
  __device__ __forceinline__ static int from(int lane, int x) { return __shfl_sync(kAllLanes, x, lane, kLanes); }
};

using WholeWarp = Team<kWarp, 1>;

// Calls f with the team for so many classes. Few lanes idle at 19 and 21 (Cityscapes, Pascal VOC), 59 (Pascal Context),
// 150 (ADE20K) and 171 (COCO-Stuff); 6 a lane is what the registers hold.
template <typename F>
void with_team(int64_t classes, F&& f) {
  if (classes <= 24) return f(Team<8, 3>());
  if (classes <= 64) return f(Team<16, 4>());
  if (classes <= 160) return f(Team<32, 5>());
  if (classes <= 192) return f(Team<32, 6>());
  f(Team<32, 6, true>());
}

// x: column spans; y: row spans; z: images.
inline LaunchShape loss_shape(const LossProblem& problem, int teams_per_warp, int64_t most_blocks = kMostBlocksYZ) {
  const int64_t per_block = kLossWarps * teams_per_warp;
  const dim3 grid((problem.columns.count + per_block - 1) / per_block, std::min(problem.rows.count, most_blocks),
                  std::min(problem.images, most_blocks));
  return {grid, kLossThreads, 0};
}

// How many partial sums of the loss there are.
inline int64_t warps_of(const LaunchShape& shape) {
  return int64_t(shape.grid.x) * shape.grid.y * shape.grid.z * kLossWarps;
}

// What lanes need to know of a pixel that another lane prepared.
struct alignas(16) Pixel {
  float corner_weights[4];  // of the corners: upper left, upper right, lower left, lower right
  int label;                // t, or negative if the pixel has no say
  float target_part;        // upstream (1 - e) w[t]
  float factor;             // upstream a; later divided by the sum of the exponentials
  float upstream;

  // Assigns element by element: tests/cuda_on_cpu does not see shared memory written in any other way.
  __device__ __forceinline__ void set(const Pixel& other) {
#pragma unroll
    for (int i = 0; i < 4; ++i) corner_weights[i] = other.corner_weights[i];
    label = other.label;
    target_part = other.target_part;
    factor = other.factor;
    upstream = other.upstream;
  }
};

__device__ __forceinline__ float interpolate(const float (&weights)[4], const float (&corners)[4]) {
  return fmaf(weights[3], corners[3],
              fmaf(weights[2], corners[2], fmaf(weights[1], corners[1], weights[0] * corners[0])));
}

// sum exp(z - shift) over some classes; -inf as shift of the sum of nothing, or of classes that are all -inf.
struct SumOfExponentials {
  float shift = -INFINITY, sum = 0.0f;

  // A shift that can be subtracted.
  __device__ __forceinline__ static float finite(float shift) { return shift == -INFINITY ? 0.0f : shift; }
  __device__ __forceinline__ void add(const SumOfExponentials& other) {
    const float both = fmaxf(shift, other.shift), by = finite(both);
    sum = sum * exp2_approx((shift - by) * kLog2E) + other.sum * exp2_approx((other.shift - by) * kLog2E);
    shift = both;
  }
};

// The four corners of a cell, as pointers to their class 0.
template <typename T>
struct Corners {
  const T* upper_left;
  int64_t right, down;  // from an upper left corner to its neighbours

  __device__ __forceinline__ void load(int k, float (&to)[4]) const {
    to[0] = to_float(upper_left[k]);
    to[1] = to_float(upper_left[k + right]);
    to[2] = to_float(upper_left[k + down]);
    to[3] = to_float(upper_left[k + right + down]);
  }
};

// What a lane holds: classes first, first + kLanes and so on; past the last class, that one again.
template <typename Team>
struct Held {
  int first;
  float corners[Team::kPerLane][4];

  template <typename T>
  __device__ __forceinline__ void load(const Corners<T>& cell, const LossProblem& problem, int first_class) {
    first = first_class;
#pragma unroll
    for (int j = 0; j < Team::kPerLane; ++j) cell.load(min(first + j * Team::kLanes, problem.classes - 1), corners[j]);
  }

  __device__ __forceinline__ bool has(const LossProblem& problem, int j) const {
    return first + j * Team::kLanes < problem.classes;
  }

  // e / C w[k], or 0 past the last class.
  __device__ __forceinline__ float smooth_share(const LossProblem& problem, int j) const {
    return has(problem, j) ? problem.smooth_share * problem.weight_of(first + j * Team::kLanes) : 0.0f;
  }

  __device__ __forceinline__ void interpolate(const Pixel& pixel, float (&z)[Team::kPerLane]) const {
#pragma unroll
    for (int j = 0; j < Team::kPerLane; ++j) z[j] = fastseg::interpolate(pixel.corner_weights, corners[j]);
  }

  // Adds d loss / d z[k], from exp(z[k] - shift) and a / sum exp(z - shift), to the sums of the corners.
  __device__ __forceinline__ void add_gradient(const LossProblem& problem, const Pixel& pixel,
                                               const float (&exponentials)[Team::kPerLane], float factor,
                                               float (&sums)[Team::kPerLane][4]) const {
    const int own = pixel.label - first;
    float gradient[Team::kPerLane];
#pragma unroll
    for (int j = 0; j < Team::kPerLane; ++j) {
      gradient[j] = factor * exponentials[j];
      if (own == j * Team::kLanes) gradient[j] -= pixel.target_part;
    }
    if (problem.smooth_share != 0.0f)
#pragma unroll
      for (int j = 0; j < Team::kPerLane; ++j) gradient[j] -= pixel.upstream * smooth_share(problem, j);
#pragma unroll
    for (int j = 0; j < Team::kPerLane; ++j)
#pragma unroll
      for (int corner = 0; corner < 4; ++corner)
        sums[j][corner] = fmaf(pixel.corner_weights[corner], gradient[j], sums[j][corner]);
  }

  // Writes the sums of the corners, or adds them to what this lane wrote before.
  __device__ __forceinline__ void store(const LossProblem& problem, const float (&sums)[Team::kPerLane][4], float* to,
                                        bool add) const {
    const int down = reach(problem.rows.axis), right = reach(problem.columns.axis), pitch = problem.pitch();
    to += first;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (corner / 2 >= down || corner % 2 >= right) continue;
#pragma unroll
      for (int j = 0; j < Team::kPerLane; ++j)
        if (has(problem, j)) to[j * Team::kLanes] = sums[j][corner] + (add ? to[j * Team::kLanes] : 0.0f);
      to += pitch;
    }
  }
};

// A cell, or a part of one: `count` outputs in rows of `width`, from (y, x) on, between input rows and columns.
struct Outputs {
  int y, x, width, count;
  int upper, lower, left, right;

  __device__ __forceinline__ int row_of(int i) const { return y + i / width; }
  __device__ __forceinline__ int column_of(int i) const { return x + i % width; }
};

// Four lanes each look for one end of the cell, and tell the team.
template <typename Team>
__device__ __forceinline__ Outputs find_outputs(const Spans& rows, const Spans& columns, int row, int column,
                                                int lane) {
  const bool vertical = lane < 2;
  const int upper = int(low_of(rows, row)), left = int(low_of(columns, column));
  Outputs outputs{row, column, 1, 1, upper, int(neighbour(rows.axis, upper)), left, int(neighbour(columns.axis, left))};
  int height = 1;
  const Axis axis{vertical ? rows.axis.in : columns.axis.in, vertical ? rows.axis.out : columns.axis.out,
                  rows.axis.align_corners, vertical ? rows.axis.scale : columns.axis.scale};
  const int cell = vertical ? cell_of(rows, row) : cell_of(columns, column);  // not used where there are none
  const int end = first_output_at(axis, cell + lane % 2);
  const int ends[4] = {Team::from(0, end), Team::from(1, end), Team::from(2, end), Team::from(3, end)};
  if (rows.are_cells) {
    const Range part = part_of(rows, row, {ends[0], ends[1]});
    outputs.y = int(part.begin), height = int(part.end - part.begin);
  }
  if (columns.are_cells) {
    const Range part = part_of(columns, column, {ends[2], ends[3]});
    outputs.x = int(part.begin), outputs.width = int(part.end - part.begin);
  }
  outputs.count = height * outputs.width;
  return outputs;
}

// What the team has to know of output i.
__device__ __forceinline__ Pixel make_pixel(const LossProblem& problem, int64_t image, const Outputs& outputs, int i,
                                            float smooth_total) {
  Pixel pixel{{}, -1, 0.0f, 0.0f, 0.0f};
  if (i >= outputs.count) return pixel;
  const int y = outputs.row_of(i), x = outputs.column_of(i);
  const float lower = fraction_at(source_of(problem.rows.axis, float(y)), float(outputs.upper));
  const float right = fraction_at(source_of(problem.columns.axis, float(x)), float(outputs.left));
  pixel.corner_weights[0] = (1.0f - lower) * (1.0f - right);
  pixel.corner_weights[1] = (1.0f - lower) * right;
  pixel.corner_weights[2] = lower * (1.0f - right);
  pixel.corner_weights[3] = lower * right;
  const int64_t target = problem.target.at(image, y, x);
  if (target == problem.ignore_index) return pixel;
  assert(target >= 0 && target < problem.classes);
  pixel.label = int(target);
  pixel.upstream = problem.upstream ? problem.upstream[problem.upstream_strides.at(image, y, x)] : 1.0f;
  pixel.target_part = pixel.upstream * problem.target_share * problem.weight_of(pixel.label);
  pixel.factor = pixel.target_part + pixel.upstream * smooth_total;
  return pixel;
}

// `loss` (N, H, W), `loss_sums` and `weight_sums` (one float per warp) and `sums` (see LossProblem) may be null.
template <typename T, typename Team>
__global__ void __launch_bounds__(kLossThreads)
    upsample_cross_entropy_kernel(const T* __restrict__ input,  // (N, h, w, C), dense
                                  LossProblem problem, float* __restrict__ loss, float* __restrict__ loss_sums,
                                  float* __restrict__ weight_sums, float* __restrict__ sums) {
  __shared__ Pixel all_pixels[kLossThreads];
  __shared__ float all_shifts[kLossThreads];
  const int lane = threadIdx.x % Team::kLanes;
  Pixel* pixels = all_pixels + threadIdx.x / Team::kLanes * Team::kLanes;  // of the team
  float* shifts = all_shifts + threadIdx.x / Team::kLanes * Team::kLanes;

  const Axis &vertical = problem.rows.axis, &horizontal = problem.columns.axis;
  const int classes = problem.classes;
  float smooth_total = 0.0f;  // e / C sum_k w[k]
  if (problem.smooth_share != 0.0f) {
    for (int k = lane; k < classes; k += Team::kLanes) smooth_total += problem.weight_of(k);
    smooth_total = problem.smooth_share * Team::sum(smooth_total);
  }

  const int column = blockIdx.x * (kLossThreads / Team::kLanes) + threadIdx.x / Team::kLanes;
  const bool has_cell = column < problem.columns.count;
  float loss_sum = 0.0f, weight_sum = 0.0f;
  for (int64_t image = blockIdx.z; image < problem.images; image += gridDim.z) {
    for (int row = blockIdx.y; row < problem.rows.count; row += gridDim.y) {
      Outputs outputs =
          find_outputs<Team>(problem.rows, problem.columns, row, min(column, int(problem.columns.count) - 1), lane);
      if (!has_cell) outputs.count = 0;
      int most = outputs.count;  // of the warp's teams, which stay together
#pragma unroll
      for (int apart = Team::kLanes; apart < kWarp; apart *= 2)
        most = max(most, __shfl_xor_sync(kAllLanes, most, apart));
      const Corners<T> cell{input + ((image * vertical.in + outputs.upper) * horizontal.in + outputs.left) * classes,
                            int64_t(outputs.right - outputs.left) * classes,
                            (outputs.lower - outputs.upper) * horizontal.in * classes};
      float* cell_sums = sums && has_cell ? sums + problem.cell(image, row, column) : nullptr;

      Held<Team> held;
      float gradient[Team::kPerLane][4] = {};
      if (!Team::kInTurns) held.load(cell, problem, lane);
      if (Team::kInTurns && cell_sums)
        for (int first = lane; first < classes; first += Team::kClasses) {
          held.first = first;
          held.store(problem, gradient, cell_sums, false);
        }

      for (int first_pixel = 0; first_pixel < most; first_pixel += Team::kLanes) {
        // Each lane prepares a pixel.
        pixels[lane].set(make_pixel(problem, image, outputs, first_pixel + lane, smooth_total));
        __syncwarp();
        const bool any = __any_sync(kAllLanes, pixels[lane].label >= 0);
        const int steps = any ? min(most - first_pixel, Team::kLanes) : 0;

        // The team takes one pixel after another.
        SumOfExponentials exponentials;  // of the lane's own pixel
        float smooth_logits = 0.0f;      // e / C sum_k w[k] z[k]
        for (int first = 0; first < (Team::kInTurns ? classes : 1); first += Team::kClasses) {
          if (Team::kInTurns) held.load(cell, problem, first + lane);
          SumOfExponentials turn;
          for (int step = 0; step < steps; ++step) {
            const Pixel pixel = pixels[step];
            float z[Team::kPerLane], largest = -INFINITY, sum = 0.0f;
            held.interpolate(pixel, z);
            if (problem.smooth_share != 0.0f) {
              float smooth = 0.0f;
#pragma unroll
              for (int j = 0; j < Team::kPerLane; ++j)
                if (held.has(problem, j)) smooth += held.smooth_share(problem, j) * z[j];
              smooth = Team::sum(smooth);
              if (step == lane) smooth_logits += smooth;
            }
#pragma unroll
            for (int j = 0; j < Team::kPerLane; ++j) largest = fmaxf(largest, z[j]);
            largest = Team::largest(largest);
            const float shift = SumOfExponentials::finite(largest);
#pragma unroll
            for (int j = 0; j < Team::kPerLane; ++j) {
              z[j] = exp2_approx((z[j] - shift) * kLog2E);
              if (held.has(problem, j)) sum += z[j];
            }
            sum = Team::sum(sum);
            if (step == lane) turn = {largest, sum};
            if (!Team::kInTurns && sums && pixel.label >= 0)
              held.add_gradient(problem, pixel, z, __fdividef(pixel.factor, sum), gradient);
          }
          exponentials.add(turn);
        }

        // Each lane finishes its pixel.
        const Pixel own = pixels[lane];
        const float shift = SumOfExponentials::finite(exponentials.shift);
        if (loss || loss_sums || weight_sums) {
          float value = 0.0f;
          if (own.label >= 0) {
            float corners[4];
            cell.load(own.label, corners);
            const float z = interpolate(own.corner_weights, corners), log_sum = logf(exponentials.sum);
            const float weight = problem.weight_of(own.label);
            value = problem.target_share * weight * (shift - z + log_sum);  // lse = shift + log_sum
            if (problem.smooth_share != 0.0f) value += smooth_total * (shift + log_sum) - smooth_logits;
            weight_sum += weight;
          }
          loss_sum += value;
          const int i = first_pixel + lane;
          if (loss && i < outputs.count)
            loss[(image * vertical.out + outputs.row_of(i)) * horizontal.out + outputs.column_of(i)] = value;
        }

        if (Team::kInTurns && sums) {
          pixels[lane].factor = __fdividef(own.factor, exponentials.sum);
          shifts[lane] = shift;
          __syncwarp();
          for (int first = lane; first < classes; first += Team::kClasses) {
            held.load(cell, problem, first);
            float of_turn[Team::kPerLane][4] = {};
            for (int step = 0; step < steps; ++step) {
              const Pixel pixel = pixels[step];
              if (pixel.label < 0) continue;
              float z[Team::kPerLane];
              held.interpolate(pixel, z);
#pragma unroll
              for (int j = 0; j < Team::kPerLane; ++j) z[j] = exp2_approx((z[j] - shifts[step]) * kLog2E);
              held.add_gradient(problem, pixel, z, pixel.factor, of_turn);
            }
            if (cell_sums) held.store(problem, of_turn, cell_sums, true);
          }
        }
        __syncwarp();  // the next pixels overwrite these
      }
      if (!Team::kInTurns && cell_sums) held.store(problem, gradient, cell_sums, false);
    }
  }

  const int64_t block = (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t warp = block * kLossWarps + threadIdx.x / kWarp;
  loss_sum = WholeWarp::sum(loss_sum);
  weight_sum = WholeWarp::sum(weight_sum);
  if (threadIdx.x % kWarp == 0 && loss_sums) loss_sums[warp] = loss_sum;
  if (threadIdx.x % kWarp == 0 && weight_sums) weight_sums[warp] = weight_sum;
}

constexpr int kGatherThreads = 128;

// x: columns and four classes each; y: rows; z: images.
inline LaunchShape gather_shape(const LossProblem& problem, int64_t most_blocks = kMostBlocksYZ) {
  const int64_t across = problem.columns.axis.in * (problem.pitch() / 4);
  const dim3 grid((across + kGatherThreads - 1) / kGatherThreads, std::min(problem.rows.axis.in, most_blocks),
                  std::min(problem.images, most_blocks));
  return {grid, kGatherThreads, 0};
}

// A thread owns four classes of an input pixel and adds up their sums of the cells around it, in 16-byte loads, row
// by row.
__global__ void __launch_bounds__(kGatherThreads)
    upsample_cross_entropy_gather_kernel(const float* __restrict__ sums,  // see LossProblem
                                         float* __restrict__ grad,        // (N, h, w, C)
                                         LossProblem problem) {
  const int fours = problem.pitch() / 4, down = reach(problem.rows.axis), right = reach(problem.columns.axis);
  const int64_t across = int64_t(blockIdx.x) * kGatherThreads + threadIdx.x;
  const int64_t column = across / fours;
  const int k = int(across % fours) * 4;
  if (column >= problem.columns.axis.in) return;
  const Range columns = spans_of(problem.columns, column);
  for (int64_t image = blockIdx.z; image < problem.images; image += gridDim.z) {
    for (int64_t row = blockIdx.y; row < problem.rows.axis.in; row += gridDim.y) {
      const Range rows = spans_of(problem.rows, row);
      float total[4] = {};
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        const int64_t upper = low_of(problem.rows, i);
        for (int64_t j = columns.begin; j < columns.end; ++j) {
          const int64_t left = low_of(problem.columns, j);
          const float* of_cell = sums + problem.cell(image, i, j) + k;
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            if (corner / 2 >= down || corner % 2 >= right) continue;
            if ((corner / 2 ? neighbour(problem.rows.axis, upper) : upper) != row) continue;
            if ((corner % 2 ? neighbour(problem.columns.axis, left) : left) != column) continue;
            const auto four =
                Elements<float, 4>::load(of_cell + int64_t(corner / 2 * right + corner % 2) * problem.pitch());
#pragma unroll
            for (int n = 0; n < 4; ++n) total[n] += four.values[n];
          }
        }
      }
      float* to =
          grad + ((image * problem.rows.axis.in + row) * problem.columns.axis.in + column) * problem.classes + k;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (k + n < problem.classes) to[n] = total[n];
    }
  }
}

}  // namespace fastseg
