// Host side of the CUDA kernels: brings tensors to the order that copies of 16 bytes need, allocates, launches.
#include <optional>

#include "cuda/launch.h"
#include "cuda/pyramid_conv2d.cuh"
#include "cuda/pyramid_conv2d_backward_slab.cuh"

namespace fastseg {
namespace {

using Sizes = std::vector<int64_t>;

Priors priors_of(const Sizes& bins, const Sizes& size, const Sizes& kernel, const Sizes& padding, bool align_corners) {
  int64_t most = size[0] * size[1], cells = 0;
  for (int axis : {0, 1}) {
    int64_t all_cells = 0;
    for (size_t k = axis; k < bins.size(); k += 2) all_cells += bins[k];
    most = std::max(most, all_cells * kernel[axis]);
  }
  for (size_t k = 0; k < bins.size(); k += 2) cells += bins[k] * bins[k + 1];
  most = std::max({most, cells * kernel[0] * kernel[1], (size[0] + 2 * padding[0]) * (size[1] + 2 * padding[1])});
  STD_TORCH_CHECK(bins.size() <= 2 * kMostPriors && most < kMostElements,
                  "fastseg: pyramid_conv2d: the CUDA kernels take up to ", kMostPriors, " priors, and up to ",
                  kMostElements, " pixels, cells times taps, and cells times taps of an axis");
  return make_priors(bins, prior_axis(bins, 0, size[0], kernel[0], padding[0]),
                     prior_axis(bins, 1, size[1], kernel[1], padding[1]), align_corners);
}

// With `axis`, counted from the last, filled up with zeros to whole vectors.
Tensor filled_up(const Tensor& tensor, int64_t axis) {
  const int64_t each = 16 / int64_t(tensor.element_size()),
                missing = -tensor.size(tensor.dim() - 1 - axis) & (each - 1);
  if (missing == 0) return tensor;
  Sizes amounts(2 * axis + 2, 0);
  amounts.back() = missing;
  return torch::stable::pad(tensor, amounts);
}

Tensor aligned(const Tensor& tensor) {
  const bool is = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  return is ? tensor : torch::stable::clone(tensor);
}

// (N, C, H, W) with its channels last and filled up to whole vectors.
Tensor packed_image(const Tensor& input) {
  const Tensor whole = filled_up(input, 2);
  return aligned(torch::stable::contiguous(whole, format(true)));
}

Tensor packed_slab(const Tensor& slab) {
  const Tensor whole = filled_up(slab, 0);
  return aligned(torch::stable::contiguous(whole));
}

Tensor pyramid_conv2d(const Tensor& input, const Tensor& weight, const Tensor& slab, std::optional<Tensor> bias,
                      Sizes bins, Sizes padding, bool align_corners, bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Priors priors =
      priors_of(bins, {input.size(2), input.size(3)}, {weight.size(2), weight.size(3)}, padding, align_corners);
  Tensor output =
      torch::stable::empty({input.size(0), weight.size(0), priors.rows.outputs, priors.columns.outputs},
                           input.scalar_type(), std::nullopt, input.device(), std::nullopt, format(channels_last));
  if (output.numel() == 0) return output;
  const Tensor image = packed_image(input), cells = packed_slab(slab);
  int64_t sizes[4], strides[4];
  for (int axis = 0; axis < 4; ++axis) sizes[axis] = weight.size(axis), strides[axis] = weight.stride(axis);
  STD_TORCH_CHECK(image.size(1) * weight.size(2) * weight.size(3) < kMostElements && weight.size(0) < kMostElements,
                  "fastseg: pyramid_conv2d: the CUDA kernels take fewer than ", kMostElements,
                  " outputs, and channels times taps");
  if (bias) bias = torch::stable::contiguous(*bias);
  Gpu gpu(input, "pyramid_conv2d");
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using Element = typename OnDevice<T>::type;
    PyramidConv<Element> p{};
    p.image = device_data<T>(image), p.slab = device_data<T>(cells);
    p.bias = bias ? device_data<T>(*bias) : nullptr;
    p.output = mutable_device_data<T>(output);
    p.priors = priors;
    p.images = input.size(0);
    p.channels_last = channels_last;
    run_pyramid_conv2d(gpu, p, device_data<T>(weight), weight_packing<Element>(sizes, strides));
  });
  return output;
}

Tensor pyramid_conv2d_backward_slab(const Tensor& grad, Sizes bins, Sizes kernel, Sizes padding, Sizes size,
                                    bool align_corners) {
  torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Priors priors = priors_of(bins, size, kernel, padding, align_corners);
  Tensor slab = torch::stable::new_empty(grad, {grad.size(0), priors.cells, kernel[0], kernel[1], grad.size(1)});
  if (slab.numel() == 0) return slab;
  Gpu gpu(grad, "pyramid_conv2d");
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    SlabGradient<typename OnDevice<T>::type> p{};
    p.grad = device_data<T>(grad), p.slab = mutable_device_data<T>(slab);
    for (int axis = 0; axis < 4; ++axis) p.strides[axis] = grad.stride(axis);
    p.priors = priors;
    p.images = grad.size(0), p.outputs = int(grad.size(1));
    run_backward_slab(gpu, p);
  });
  return slab;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CUDA, m) {
  m.impl("pyramid_conv2d", TORCH_BOX(&fastseg::pyramid_conv2d));
  m.impl("pyramid_conv2d_backward_slab", TORCH_BOX(&fastseg::pyramid_conv2d_backward_slab));
}
