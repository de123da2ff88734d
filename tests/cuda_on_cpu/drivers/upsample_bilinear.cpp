// The CUDA kernels of upsample_bilinear, launched as csrc/cuda/upsample_bilinear.cu does. `most_blocks` stands for the
// 65535 that a grid may be high and deep, `shared_floats` for the shared memory that a block may fill.
#include "cuda/upsample_bilinear.cuh"

#include "driver.h"

using namespace fastseg;
using cuda_on_cpu::Array;

namespace {

template <int kCount, Vectors kVectors, typename T>
void forward(const T* from, T* to, int64_t planes, int64_t channels, const Axis& rows, const Axis& columns,
             int64_t most_blocks) {
  const ForwardShape shape = forward_shape(planes, channels, rows, columns, kCount, most_blocks);
  cuda_on_cpu::launch({shape.launch.grid, shape.launch.threads}, upsample_bilinear_kernel<T, kCount, kVectors>, from,
                      to, planes, channels, rows, columns, shape.rows_per_thread);
}

template <bool kVectors, typename T>
void backward(const T* from, T* to, int64_t planes, int64_t channels, const Axis& rows, const Axis& columns,
              int64_t most_blocks, int64_t shared_floats) {
  const BackwardShape shape =
      backward_shape(planes, channels, rows, columns, kAtOnce<T, kVectors>, most_blocks, shared_floats);
  cuda_on_cpu::launch({shape.launch.grid, shape.launch.threads, shape.launch.shared},
                      upsample_bilinear_backward_kernel<T, kVectors>, from, to, planes, channels, rows, columns,
                      shape.tile);
}

}  // namespace

DRIVER upsample_bilinear(const Array& input,   // (planes, h, w, channels)
                         const Array& output,  // (planes, H, W, channels)
                         int64_t align_corners, int64_t vectors, int64_t most_blocks) {
  const auto [planes, h, w, channels, unused_1, unused_2] = input.sizes;
  const Axis rows = make_axis(h, output.sizes[1], align_corners),
             columns = make_axis(w, output.sizes[2], align_corners);
  return cuda_on_cpu::report([&, planes = planes, channels = channels] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(input, [&](auto* from) {
      using T = std::remove_pointer_t<decltype(from)>;
      constexpr int kMany = kPerVector<T>;
      T* to = output.as<T>();
      switch (vectors_of(channels, columns, kMany, vectors)) {
        case Vectors::kNone:
          return forward<1, Vectors::kNone>(from, to, planes, channels, rows, columns, most_blocks);
        case Vectors::kAcrossColumns:
          return forward<kMany, Vectors::kAcrossColumns>(from, to, planes, channels, rows, columns, most_blocks);
        case Vectors::kWithinColumn:
          return forward<kMany, Vectors::kWithinColumn>(from, to, planes, channels, rows, columns, most_blocks);
      }
    });
  });
}

DRIVER upsample_bilinear_backward(const Array& grad,        // (planes, H, W, channels)
                                  const Array& grad_input,  // (planes, h, w, channels)
                                  int64_t align_corners, int64_t vectors, int64_t most_blocks, int64_t shared_floats) {
  const auto [planes, h, w, channels, unused_1, unused_2] = grad_input.sizes;
  const Axis rows = make_axis(h, grad.sizes[1], align_corners), columns = make_axis(w, grad.sizes[2], align_corners);
  return cuda_on_cpu::report([&, planes = planes, channels = channels] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(grad, [&](auto* from) {
      using T = std::remove_pointer_t<decltype(from)>;
      T* to = grad_input.as<T>();
      if (backward_takes_vectors(vectors_of(channels, columns, kPerVector<T>, vectors), channels))
        backward<true>(from, to, planes, channels, rows, columns, most_blocks, shared_floats);
      else
        backward<false>(from, to, planes, channels, rows, columns, most_blocks, shared_floats);
    });
  });
}
