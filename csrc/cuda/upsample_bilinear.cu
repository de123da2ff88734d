// Host side of the CUDA kernels: makes their input dense in the wanted format, allocates, sets the grid.
#include "cuda/launch.h"
#include "cuda/upsample_bilinear.cuh"

namespace fastseg {
namespace {

using torch::headeronly::MemoryFormat;

MemoryFormat format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// A call, with the tensors as planes of rows of columns and channels.
struct Problem {
  int64_t planes, channels;
  Axis rows, columns;
  Tensor from, to;  // dense, in the same format
  cudaStream_t stream;

  Problem(const Tensor& given, const std::vector<int64_t>& in, const std::vector<int64_t>& out,
          const std::vector<int64_t>& result, bool align_corners, bool channels_last)
      : planes(given.size(0) * (channels_last ? 1 : given.size(1))),
        channels(channels_last ? given.size(1) : 1),
        rows(make_axis(in[0], out[0], align_corners)),
        columns(make_axis(in[1], out[1], align_corners)),
        from(torch::stable::contiguous(given, format(channels_last))),
        to(torch::stable::empty({given.size(0), given.size(1), result[0], result[1]}, given.scalar_type(), std::nullopt,
                                given.device(), std::nullopt, format(channels_last))),
        stream(current_stream(given.get_device_index())) {}

  template <typename T>
  Vectors vectors() const {
    const auto addresses =
        reinterpret_cast<uintptr_t>(from.const_data_ptr()) | reinterpret_cast<uintptr_t>(to.const_data_ptr());
    return vectors_of(channels, columns, kPerVector<T>, addresses % 16 == 0);
  }
};

template <typename T, int kCount, Vectors kVectors>
void launch_forward(const Problem& p) {
  const auto [shape, rows_per_thread] = forward_shape(p.planes, p.channels, p.rows, p.columns, kCount);
  upsample_bilinear_kernel<typename OnDevice<T>::type, kCount, kVectors><<<shape.grid, shape.threads, 0, p.stream>>>(
      device_data<T>(p.from), mutable_device_data<T>(p.to), p.planes, p.channels, p.rows, p.columns, rows_per_thread);
  check_launch("upsample_bilinear_kernel");
}

template <typename T, bool kVectors>
void launch_backward(const Problem& p) {
  using Element = typename OnDevice<T>::type;
  const auto [shape, tile] = backward_shape(p.planes, p.channels, p.rows, p.columns, kAtOnce<Element, kVectors>);
  upsample_bilinear_backward_kernel<Element, kVectors><<<shape.grid, shape.threads, shape.shared, p.stream>>>(
      device_data<T>(p.from), mutable_device_data<T>(p.to), p.planes, p.channels, p.rows, p.columns, tile);
  check_launch("upsample_bilinear_backward_kernel");
}

Tensor upsample_bilinear(const Tensor& input, std::vector<int64_t> size, bool align_corners, bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Problem p(input, {input.size(2), input.size(3)}, size, size, align_corners, channels_last);
  if (p.to.numel() == 0) return p.to;
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    switch (p.vectors<T>()) {
      case Vectors::kNone:
        return launch_forward<T, 1, Vectors::kNone>(p);
      case Vectors::kAcrossColumns:
        return launch_forward<T, kPerVector<T>, Vectors::kAcrossColumns>(p);
      case Vectors::kWithinColumn:
        return launch_forward<T, kPerVector<T>, Vectors::kWithinColumn>(p);
    }
  });
  return p.to;
}

Tensor upsample_bilinear_backward(const Tensor& grad, std::vector<int64_t> size, bool align_corners,
                                  bool channels_last) {
  torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Problem p(grad, size, {grad.size(2), grad.size(3)}, size, align_corners, channels_last);
  if (p.to.numel() == 0) return p.to;
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    if (backward_takes_vectors(p.vectors<T>(), p.channels))
      launch_backward<T, true>(p);
    else
      launch_backward<T, false>(p);
  });
  return p.to;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CUDA, m) {
  m.impl("upsample_bilinear", TORCH_BOX(&fastseg::upsample_bilinear));
  m.impl("upsample_bilinear_backward", TORCH_BOX(&fastseg::upsample_bilinear_backward));
}
