// The CUDA kernel of upsample_argmax, launched as csrc/cuda/upsample_argmax.cu does. `most_blocks` stands for the 65535
// that a grid may be high and deep.
#include "cuda/upsample_argmax.cuh"

#include "driver.h"

using namespace fastseg;

DRIVER upsample_argmax(const cuda_on_cpu::Array& input,   // (N, h, w, C)
                       const cuda_on_cpu::Array& labels,  // (N, H, W)
                       int64_t align_corners, int64_t most_blocks) {
  const auto [images, h, w, classes, unused_1, unused_2] = input.sizes;
  const Spans rows = make_spans(make_axis(h, labels.sizes[1], align_corners));
  const Spans columns = make_spans(make_axis(w, labels.sizes[2], align_corners));
  const LaunchShape shape = launch_shape(images, classes, rows, columns, most_blocks);
  return cuda_on_cpu::report([&, images = images, classes = classes] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(input, [&](auto* logits) {
      cuda_on_cpu::with_type<uint8_t, int32_t, int64_t>(labels, [&](auto* label) {
        using T = std::remove_pointer_t<decltype(logits)>;
        using Label = std::remove_pointer_t<decltype(label)>;
        cuda_on_cpu::launch({shape.grid, shape.threads, shape.shared}, upsample_argmax_kernel<T, Label>, logits, label,
                            images, int(classes), rows, columns);
      });
    });
  });
}
