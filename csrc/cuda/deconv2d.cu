// Host side of the CUDA kernels: allocates results and scratch memory, launches what deconv2d.cuh says.
#include <optional>

#include "cuda/deconv2d.cuh"
#include "cuda/launch.h"

namespace fastseg {
namespace {

using Sizes = std::vector<int64_t>;

template <typename T>
auto view(const Tensor& tensor) {
  View<typename OnDevice<T>::type> result{device_data<T>(tensor), {}, {}};
  for (int axis = 0; axis < 4; ++axis)
    result.sizes[axis] = tensor.size(axis), result.strides[axis] = tensor.stride(axis);
  return result;
}

// `size` is the input's, `kernel` the weight's.
Deconv call_of(int64_t images, int64_t channels, int64_t outputs, const Sizes& size, const Sizes& kernel,
               const Sizes& stride, const Sizes& dilation, int64_t groups, const Sizes& window, bool channels_last) {
  DeconvSide sides[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t natural = (size[axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1;
    STD_TORCH_CHECK(std::max(natural, window[axis] + window[axis + 2]) + stride[axis] * dilation[axis] <= kLongestSide,
                    "fastseg: deconv2d: the CUDA kernels need sides up to ", kLongestSide);
    sides[axis] = deconv_side(size[axis], window[axis + 2], kernel[axis], stride[axis], dilation[axis], window[axis]);
  }
  const int64_t most_columns = stride[0] * stride[1] * outputs / groups;
  const int64_t most_rows = kernel[0] * kernel[1] * (std::max(channels, outputs) / groups + kPerVector<Half>);
  STD_TORCH_CHECK(std::max({images, most_columns, most_rows}) <= kLongestSide,
                  "fastseg: deconv2d: the CUDA kernels need batches, and channels per group times the area of the "
                  "kernel or of the stride, up to ",
                  kLongestSide);
  return {sides[0], sides[1], images, int(groups), int(channels / groups), int(outputs / groups), channels_last};
}

Tensor empty(const Tensor& like, const Sizes& sizes, bool channels_last) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              format(channels_last));
}

Tensor deconv2d(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> skip,
                Sizes stride, Sizes dilation, int64_t groups, Sizes window, bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const int64_t outputs = weight.size(1) * groups;
  Tensor output = empty(input, {input.size(0), outputs, window[2], window[3]}, channels_last);
  if (output.numel() == 0) return output;
  const Deconv call = call_of(input.size(0), input.size(1), outputs, {input.size(2), input.size(3)},
                              {weight.size(2), weight.size(3)}, stride, dilation, groups, window, channels_last);
  if (bias) bias = torch::stable::contiguous(*bias);
  if (skip) skip = torch::stable::contiguous(*skip, format(channels_last));
  Gpu gpu(input, "deconv2d");
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    run_forward(gpu, call, view<T>(input), view<T>(weight), bias ? device_data<T>(*bias) : nullptr,
                skip ? device_data<T>(*skip) : nullptr, mutable_device_data<T>(output));
  });
  return output;
}

Tensor deconv2d_backward_input(const Tensor& grad, const Tensor& weight, Sizes stride, Sizes dilation, int64_t groups,
                               Sizes window, Sizes size, bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  Tensor grad_input = empty(grad, {grad.size(0), weight.size(0), size[0], size[1]}, channels_last);
  if (grad_input.numel() == 0) return grad_input;
  const Deconv call = call_of(grad.size(0), weight.size(0), grad.size(1), size, {weight.size(2), weight.size(3)},
                              stride, dilation, groups, window, channels_last);
  Gpu gpu(grad, "deconv2d");
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    run_backward_input(gpu, call, view<T>(grad), view<T>(weight), mutable_device_data<T>(grad_input));
  });
  return grad_input;
}

Tensor deconv2d_backward_weight(const Tensor& grad, const Tensor& input, Sizes stride, Sizes dilation, int64_t groups,
                                Sizes window, Sizes kernel) {
  torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  Tensor grad_weight = empty(grad, {input.size(1), grad.size(1) / groups, kernel[0], kernel[1]}, false);
  const Deconv call = call_of(grad.size(0), input.size(1), grad.size(1), {input.size(2), input.size(3)}, kernel, stride,
                              dilation, groups, window, grad.stride(1) == 1);
  Gpu gpu(grad, "deconv2d");
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    run_backward_weight(gpu, call, view<T>(grad), view<T>(input), mutable_device_data<T>(grad_weight));
  });
  return grad_weight;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CUDA, m) {
  m.impl("deconv2d", TORCH_BOX(&fastseg::deconv2d));
  m.impl("deconv2d_backward_input", TORCH_BOX(&fastseg::deconv2d_backward_input));
  m.impl("deconv2d_backward_weight", TORCH_BOX(&fastseg::deconv2d_backward_weight));
}
