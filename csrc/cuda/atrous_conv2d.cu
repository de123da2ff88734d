// Host side of the CUDA kernels: allocates results and scratch memory, launches. fastseg/ops/atrous_conv2d_compiled.py
// brings tensors to the order and the whole vectors that kernels need.
#include <optional>

#include "cuda/atrous_conv2d.cuh"
#include "cuda/launch.h"

namespace fastseg {
namespace {

using Sizes = std::vector<int64_t>;

// A dense tensor as it is, or where 16-byte copies can read it.
Tensor aligned(const Tensor& tensor) {
  const bool is = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  return is ? tensor : torch::stable::clone(tensor);
}

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(aligned(torch::stable::contiguous(*tensor))) : std::nullopt;
}

template <typename T>
const typename OnDevice<T>::type* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? device_data<T>(*tensor) : nullptr;
}

void check_vectors(const Tensor& input, int64_t outputs) {
  const int64_t vector = 16 / int64_t(input.element_size());
  STD_TORCH_CHECK(input.size(1) % vector == 0 && outputs % vector == 0,
                  "fastseg: atrous_conv2d: the CUDA kernels need channels and outputs in multiples of ", vector,
                  ", got ", input.size(1), " and ", outputs);
}

Tensor atrous_conv2d(const Tensor& input, const Tensor& weight, std::optional<Tensor> scale, std::optional<Tensor> bias,
                     std::optional<Tensor> residual, const Tensor& tiles, Sizes stride, Sizes size, bool relu) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  check_vectors(input, size[0]);
  Tensor output = torch::stable::empty({input.size(0), size[0], size[1], size[2]}, input.scalar_type(), std::nullopt,
                                       input.device(), std::nullopt, format(true));
  const Tensor image = aligned(input), factor = aligned(weight);
  scale = dense(scale), bias = dense(bias);
  if (residual) residual = aligned(*residual);
  Gpu gpu(input, "atrous_conv2d");
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    AtrousConv<typename OnDevice<T>::type> p{};
    p.input = device_data<T>(image), p.weight = device_data<T>(factor);
    p.scale = data_or_null<T>(scale), p.bias = data_or_null<T>(bias), p.residual = data_or_null<T>(residual);
    p.output = mutable_device_data<T>(output);
    p.tiles = reinterpret_cast<const AtrousTile*>(tiles.const_data_ptr<int32_t>());
    p.images = int(input.size(0)), p.channels = int(input.size(1)), p.outputs = int(size[0]);
    p.input_height = int(input.size(2)), p.input_width = int(input.size(3));
    p.height = int(size[1]), p.width = int(size[2]);
    p.stride_y = int(stride[0]), p.stride_x = int(stride[1]);
    p.relu = relu;
    run_atrous_conv2d(gpu, p, tiles.size(0));
  });
  return output;
}

Tensor atrous_conv2d_backward_weight(const Tensor& grad, const Tensor& input, const Tensor& parts, Sizes stride,
                                     int64_t taps, int64_t count) {
  torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  check_vectors(input, grad.size(1));
  Tensor gradient = torch::stable::new_empty(grad, {taps, input.size(1), grad.size(1)});
  const Tensor factor = aligned(grad), image = aligned(input);
  Gpu gpu(grad, "atrous_conv2d_backward_weight");
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    AtrousWeightGradient<typename OnDevice<T>::type> p{};
    p.grad = device_data<T>(factor), p.input = device_data<T>(image);
    p.items = reinterpret_cast<const AtrousPart*>(parts.const_data_ptr<int32_t>());
    p.output = mutable_device_data<T>(gradient);
    p.taps = int(taps), p.count = int(count);
    p.channels = int(input.size(1)), p.outputs = int(grad.size(1));
    p.input_height = int(input.size(2)), p.input_width = int(input.size(3));
    p.height = int(grad.size(2)), p.width = int(grad.size(3));
    p.stride_y = int(stride[0]), p.stride_x = int(stride[1]);
    run_atrous_conv2d_backward_weight(gpu, p);
  });
  return gradient;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CUDA, m) {
  m.impl("atrous_conv2d", TORCH_BOX(&fastseg::atrous_conv2d));
  m.impl("atrous_conv2d_backward_input", TORCH_BOX(&fastseg::atrous_conv2d));
  m.impl("atrous_pyramid", TORCH_BOX(&fastseg::atrous_conv2d));
  m.impl("atrous_conv2d_backward_weight", TORCH_BOX(&fastseg::atrous_conv2d_backward_weight));
}
