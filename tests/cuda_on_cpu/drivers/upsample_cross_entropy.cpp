// The CUDA kernels of upsample_cross_entropy, launched as csrc/cuda/upsample_cross_entropy.cu does. `most_blocks`
// stands for the 65535 that a grid may be high and deep. Empty arrays stand for null.
#include "cuda/upsample_cross_entropy.cuh"

#include "driver.h"

using namespace fastseg;
using cuda_on_cpu::Array;

namespace {

float* floats(const Array& array) { return array.sizes[0] ? array.as<float>() : nullptr; }

Strides strides(const Array& map) { return {map.sizes[1] * map.sizes[2], map.sizes[2], 1}; }

int bytes(const Array& target) { return strcmp(target.dtype, "int64") ? strcmp(target.dtype, "int32") ? 1 : 4 : 8; }

LossProblem problem_of(const Array& input, const Array& target, const Array& weight, const Array& upstream,
                       int64_t ignore_index, double label_smoothing, int64_t align_corners) {
  const auto [images, h, w, classes, unused_1, unused_2] = input.sizes;
  return {images,
          int(classes),
          loss_spans(make_axis(h, target.sizes[1], align_corners)),
          loss_spans(make_axis(w, target.sizes[2], align_corners)),
          {target.data, bytes(target), strides(target)},
          floats(weight),
          ignore_index,
          float(1.0 - label_smoothing),
          float(label_smoothing / classes),
          floats(upstream),
          strides(upstream)};
}

}  // namespace

// sizes[0]: partial sums of the loss; sizes[1]: floats of the gradient by the corners of cells.
DRIVER sizes(const Array& input, const Array& target, int64_t align_corners, int64_t most_blocks, const Array& sizes) {
  const Array none{};
  const LossProblem problem = problem_of(input, target, none, none, 0, 0.0, align_corners);
  with_team(problem.classes,
            [&](auto team) { sizes.as<int64_t>()[0] = warps_of(loss_shape(problem, team.kPerWarp, most_blocks)); });
  sizes.as<int64_t>()[1] = problem.cell(problem.images, 0, 0);
  return nullptr;
}

DRIVER upsample_cross_entropy(const Array& input,   // (N, h, w, C)
                              const Array& target,  // (N, H, W)
                              const Array& weight, const Array& upstream, const Array& loss, const Array& loss_sums,
                              const Array& weight_sums, const Array& sums, const Array& grad, int64_t ignore_index,
                              double label_smoothing, int64_t align_corners, int64_t most_blocks) {
  const LossProblem problem = problem_of(input, target, weight, upstream, ignore_index, label_smoothing, align_corners);
  return cuda_on_cpu::report([&] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(input, [&](auto* logits) {
      with_team(problem.classes, [&](auto team) {
        const LaunchShape shape = loss_shape(problem, team.kPerWarp, most_blocks);
        cuda_on_cpu::launch({shape.grid, shape.threads},
                            upsample_cross_entropy_kernel<std::remove_pointer_t<decltype(logits)>, decltype(team)>,
                            logits, problem, floats(loss), floats(loss_sums), floats(weight_sums), floats(sums));
      });
    });
    if (!floats(grad)) return;
    const LaunchShape shape = gather_shape(problem, most_blocks);
    cuda_on_cpu::launch({shape.grid, shape.threads}, upsample_cross_entropy_gather_kernel, floats(sums), floats(grad),
                        problem);
  });
}
