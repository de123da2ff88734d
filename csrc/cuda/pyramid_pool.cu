// Host side of the CUDA kernels: describes tensors, allocates, launches.
#include "cuda/launch.h"
#include "cuda/pyramid_pool.cuh"
#include "cuda/pyramid_pool_backward.cuh"

namespace fastseg {
namespace {

using Sizes = std::vector<int64_t>;

void check_sizes(const Sizes& size, const Sizes& bins) {
  int64_t most = size[0] * size[1], cells = 0;
  for (size_t k = 0; k < bins.size(); ++k) most = std::max(most, (bins[k] + 1) * (size[k % 2] + 1));
  for (size_t k = 0; k < bins.size(); k += 2) cells += bins[k] * bins[k + 1];
  STD_TORCH_CHECK(bins.size() <= 2 * kMostBins && std::max(most, cells) < kMostProduct,
                  "fastseg: pyramid_pool: the CUDA kernels take up to ", kMostBins, " bins, and up to ", kMostProduct,
                  " pixels, cells, and pixels times cells of an axis");
}

// A call: the map is (N, C, H, W), the cells (N, C, S).
struct Problem {
  Pyramid pyramid;
  PoolOrder map, cells;

  Problem(const Tensor& given, const Sizes& size, const Sizes& bins, bool channels_last)
      : pyramid(make_pyramid(size, bins)),
        map{given.size(0), given.size(1), size[0] * size[1], channels_last},
        cells{given.size(0), given.size(1), pyramid.cells, channels_last} {}

  LaunchShape a_thread_per_cell() const {
    return row_of_blocks(ceil_div<int64_t>(cells.size(), kPoolThreads), kPoolThreads);
  }
};

// (N, C, S), or with channels_last a dense (N, S, C) seen so.
Tensor new_cells(const Tensor& like, int64_t cells, ScalarType dtype, bool channels_last) {
  const int64_t n = like.size(0), channels = like.size(1);
  const Sizes shape = channels_last ? Sizes{n, cells, channels} : Sizes{n, channels, cells};
  const Tensor dense = torch::stable::new_empty(like, shape, dtype);
  return channels_last ? torch::stable::transpose(dense, 1, 2) : dense;
}

bool is_aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

// Whether channels can be read by whole vectors.
bool are_vectors(const Tensor& input, int64_t per_vector) {
  bool whole = input.stride(1) == 1 && input.size(1) % per_vector == 0 && is_aligned(input);
  for (int axis : {0, 2, 3}) whole = whole && (input.size(axis) == 1 || input.stride(axis) % per_vector == 0);
  return whole;
}

template <typename T, int kCount, typename Found>
void launch_pool(const Problem& p, const Tensor& input, const Tensor& output, int64_t* indices) {
  using Element = typename OnDevice<T>::type;
  PoolInput<Element> from{device_data<T>(input), {}};
  for (int axis = 0; axis < 4; ++axis) from.strides[axis] = input.stride(axis);
  PoolOrder order = p.map;
  order.inners = int64_t(p.pyramid.rows.segments) * p.pyramid.columns.all_cells;
  Gpu gpu(input, "pyramid_pool");
  Found* parts = gpu.scratch<Found>(order.size());
  const auto [shape, tiles, width] = pool_rows_shape(p.map, p.pyramid, kCount, sizeof(Found), Gpu::shared_bytes);
  gpu.launch(shape, pyramid_pool_rows_kernel<Element, kCount, Found>, from, parts, order, p.pyramid, tiles, width);
  gpu.launch(p.a_thread_per_cell(), pyramid_pool_cells_kernel<Element, Found>, parts, mutable_device_data<T>(output),
             indices, order, p.cells, p.pyramid);
}

std::tuple<Tensor, Tensor> pyramid_pool(const Tensor& input, Sizes bins, bool max, bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Sizes size{input.size(2), input.size(3)};
  check_sizes(size, bins);
  const Problem p(input, size, bins, channels_last);
  const Tensor output = new_cells(input, p.pyramid.cells, input.scalar_type(), channels_last);
  const Tensor indices = max ? new_cells(input, p.pyramid.cells, ScalarType::Long, channels_last)
                             : torch::stable::new_empty(input, {0}, ScalarType::Long);
  if (output.numel() == 0) return {output, indices};
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    constexpr int kMany = kPerVector<T>;
    const bool vectors = channels_last && are_vectors(input, kMany);
    int64_t* to = indices.mutable_data_ptr<int64_t>();
    if (max)
      vectors ? launch_pool<T, kMany, Largest>(p, input, output, to) : launch_pool<T, 1, Largest>(p, input, output, to);
    else
      vectors ? launch_pool<T, kMany, Total>(p, input, output, to) : launch_pool<T, 1, Total>(p, input, output, to);
  });
  return {output, indices};
}

template <typename T>
PoolCells<typename OnDevice<T>::type> cells_of(const Tensor& tensor) {
  return {device_data<T>(tensor), {tensor.stride(0), tensor.stride(1), tensor.stride(2)}};
}

template <typename T, int kCount>
void launch_spread(const Problem& p, const Tensor& grad, const Tensor& output) {
  using Element = typename OnDevice<T>::type;
  const auto [shape, tiles, width] = pool_spread_shape(p.map, p.pyramid, Gpu::shared_bytes);
  Gpu(grad, "pyramid_pool")
      .launch(shape, pyramid_pool_spread_kernel<Element, kCount>, cells_of<T>(grad), mutable_device_data<T>(output),
              p.map, p.pyramid, tiles, width);
}

template <typename T>
void launch_scatter(const Problem& p, const Tensor& grad, const Tensor& indices, Tensor& output) {
  torch::stable::zero_(output);
  Gpu(grad, "pyramid_pool")
      .launch(p.a_thread_per_cell(), pyramid_pool_scatter_kernel<typename OnDevice<T>::type>, cells_of<T>(grad),
              cells_of<int64_t>(indices), mutable_device_data<T>(output), p.map, p.cells, p.pyramid);
}

Tensor pyramid_pool_backward(const Tensor& grad, const Tensor& indices, Sizes bins, bool max, Sizes size,
                             bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  check_sizes(size, bins);
  const Problem p(grad, size, bins, channels_last);
  Tensor output = torch::stable::empty({grad.size(0), grad.size(1), size[0], size[1]}, grad.scalar_type(), std::nullopt,
                                       grad.device(), std::nullopt, format(channels_last));
  if (output.numel() == 0) return output;
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    if (max)
      launch_scatter<T>(p, grad, indices, output);
    else if (channels_last && grad.size(1) % kPerVector<T> == 0)  // what is newly allocated is aligned
      launch_spread<T, kPerVector<T>>(p, grad, output);
    else
      launch_spread<T, 1>(p, grad, output);
  });
  return output;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CUDA, m) {
  m.impl("pyramid_pool", TORCH_BOX(&fastseg::pyramid_pool));
  m.impl("pyramid_pool_backward", TORCH_BOX(&fastseg::pyramid_pool_backward));
}
