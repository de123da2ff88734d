// Host side of the CUDA kernel: makes the input dense channels_last, allocates, sets the grid.
#include "cuda/launch.h"
#include "cuda/upsample_argmax.cuh"

namespace fastseg {
namespace {

template <typename T, typename Label>
void launch(const Tensor& input, const Spans& rows, const Spans& columns, Tensor& labels, cudaStream_t stream) {
  const int64_t images = input.size(0), classes = input.size(1);
  const LaunchShape shape = launch_shape(images, classes, rows, columns);
  upsample_argmax_kernel<<<shape.grid, shape.threads, shape.shared, stream>>>(
      device_data<T>(input), labels.mutable_data_ptr<Label>(), images, int(classes), rows, columns);
  check_launch("upsample_argmax_kernel");
}

Tensor upsample_argmax(const Tensor& input, std::vector<int64_t> size, bool align_corners, ScalarType dtype) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor labels = torch::stable::new_empty(input, {input.size(0), size[0], size[1]}, dtype);
  if (labels.numel() == 0) return labels;
  const Tensor dense = torch::stable::contiguous(input, torch::headeronly::MemoryFormat::ChannelsLast);
  const Spans rows = make_spans(make_axis(input.size(2), size[0], align_corners));
  const Spans columns = make_spans(make_axis(input.size(3), size[1], align_corners));
  const cudaStream_t stream = current_stream(input.get_device_index());
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto logit) {
    with_type<uint8_t, int32_t, int64_t>(
        dtype, [&](auto label) { launch<decltype(logit), decltype(label)>(dense, rows, columns, labels, stream); });
  });
  return labels;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CUDA, m) { m.impl("upsample_argmax", TORCH_BOX(&fastseg::upsample_argmax)); }
