// The slab's gradient of pyramid_conv2d (fastseg/ops/pyramid_conv2d.py). M is a product of weights by rows and by
// columns, and so its transpose is one along columns, then one along rows:
//     parts[n, y, (j, b), o]      = sum_x columns[j, b, x] grad[n, o, y, x]
//     grad_slab[n, s, a, b, o]    = sum_y rows[i, a, y] parts[n, y, (j, b), o]         for cell s = (i, j)
// Bound by the caches: reads grad once, and parts, which are about as large, once for each of the lines that have
// weights there. Precision: float32 sums in a fixed order, rounded once; weights are not rounded.
#pragma once
#include "cuda/pyramid_conv2d_weights.cuh"

namespace fastseg {

constexpr int kSlabThreads = 256;

template <typename T>
struct SlabGradient {
  const T* grad;  // (N, O, H', W'), any strides
  int64_t strides[4];
  T* slab;  // (N, S, kh, kw, O)
  float* parts;
  Priors priors;
  PriorWeights interpolation;
  int64_t images;
  int outputs;

  __host__ __device__ __forceinline__ bool outputs_first() const { return strides[1] <= strides[3]; }
};

struct SlabTile {
  int outputs, width;  // outputs of a block; pixels of a row that it holds at once
};

// A block owns a row of an image and some outputs. Its threads copy what they can hold of the row, neighbours in
// memory, and then own lines and outputs, and add up. What does not fit into shared memory comes in turn.
template <typename T>
__global__ void __launch_bounds__(kSlabThreads) pyramid_conv2d_columns_kernel(SlabGradient<T> p, SlabTile tile) {
  float* held = dynamic_shared<float>();  // [pixels][tile.outputs]
  const PriorAxis& columns = p.priors.columns;
  const int height = p.priors.rows.outputs, across = ceil_div(p.outputs, tile.outputs);
  const int first_output = int(blockIdx.x % across) * tile.outputs;
  const int outputs = min(tile.outputs, p.outputs - first_output);
  const int64_t row = blockIdx.x / across;  // of all images
  const T* from = p.grad + row / height * p.strides[0] + first_output * p.strides[1] + row % height * p.strides[2];
  for (int first = 0; first < columns.outputs; first += tile.width) {
    const int width = min(tile.width, columns.outputs - first);
    for (int i = threadIdx.x; i < width * outputs; i += kSlabThreads) {
      const int output = p.outputs_first() ? i % outputs : i / width, x = p.outputs_first() ? i / outputs : i % width;
      held[x * tile.outputs + output] = to_float(from[output * p.strides[1] + (first + x) * p.strides[3]]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < columns.lines() * outputs; i += kSlabThreads) {
      const int line = i / outputs, output = i % outputs;
      float* part = p.parts + (row * columns.lines() + line) * p.outputs + first_output + output;
      const float* weights = p.interpolation.columns + int64_t(line) * columns.outputs;
      const LineRange range = p.interpolation.column_ranges[line];
      float sum = first > 0 ? *part : 0.0f;
      for (int x = max(range.begin, first); x < min(range.end, first + width); ++x)
        sum += weights[x] * held[(x - first) * tile.outputs + output];
      *part = sum;
    }
    __syncthreads();  // the next pixels overwrite these
  }
}

// A thread owns an element of the slab. Neighbouring threads take neighbouring outputs.
template <typename T>
__global__ void __launch_bounds__(kSlabThreads) pyramid_conv2d_rows_kernel(SlabGradient<T> p) {
  const int64_t i = int64_t(blockIdx.x) * kSlabThreads + threadIdx.x, column = i / p.outputs;
  const int64_t image = column / p.priors.depth();
  if (image >= p.images) return;
  const LinePair pair = p.interpolation.pairs[column % p.priors.depth()];
  const LineRange range = p.interpolation.row_ranges[pair.row];
  const int height = p.priors.rows.outputs;
  const float* weights = p.interpolation.rows + int64_t(pair.row) * height;
  const int64_t step = int64_t(p.priors.columns.lines()) * p.outputs;
  const float* from = p.parts + image * height * step + int64_t(pair.column) * p.outputs + i % p.outputs;
  float sum = 0.0f;
#pragma unroll 4
  for (int y = range.begin; y < range.end; ++y) sum += weights[y] * from[y * step];
  from_float(sum, p.slab[i]);
}

// A warp's outputs and as many pixels as fit.
inline SlabTile slab_tile(int outputs, int width, int64_t shared_bytes) {
  const int held = std::min(outputs, kWarp);
  return {held, int(std::clamp<int64_t>(shared_bytes / int64_t(held * sizeof(float)), 1, width))};
}

template <typename T, typename Device>
void run_backward_slab(Device& device, SlabGradient<T> p) {
  const PriorAxis &rows = p.priors.rows, &columns = p.priors.columns;
  const SlabTile tile = slab_tile(p.outputs, columns.outputs, device.shared_bytes);
  const int64_t all_rows = p.images * rows.outputs, elements = p.images * p.priors.depth() * p.outputs;
  p.interpolation = make_weights(device, p.priors);
  p.parts = device.template scratch<float>(all_rows * columns.lines() * p.outputs);
  device.launch(row_of_blocks(all_rows * ceil_div(p.outputs, tile.outputs), kSlabThreads,
                              size_t(tile.width) * tile.outputs * sizeof(float)),
                pyramid_conv2d_columns_kernel<T>, p, tile);
  device.launch(row_of_blocks(ceil_div<int64_t>(elements, kSlabThreads), kSlabThreads), pyramid_conv2d_rows_kernel<T>,
                p);
}

}  // namespace fastseg
