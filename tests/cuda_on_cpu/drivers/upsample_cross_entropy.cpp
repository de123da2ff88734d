// The CUDA kernels of upsample_cross_entropy, launched as csrc/cuda/upsample_cross_entropy.cu does. `most_blocks`
// stands for the 65535 that a grid may be high and deep. Empty arrays stand for null.
#include "cuda/upsample_cross_entropy.cuh"

#include <numeric>

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

// The sum or map of the loss and total_weight, unless `loss` is empty; and the gradient, unless `grad` is.
DRIVER upsample_cross_entropy(const Array& input,   // (N, h, w, C)
                              const Array& target,  // (N, H, W)
                              const Array& weight, const Array& upstream, const Array& loss, const Array& total_weight,
                              const Array& grad, int64_t ignore_index, double label_smoothing, int64_t align_corners,
                              int64_t reduce, int64_t most_blocks) {
  const LossProblem problem = problem_of(input, target, weight, upstream, ignore_index, label_smoothing, align_corners);
  std::vector<float> loss_sums, weight_sums, sums(floats(grad) ? problem.cell(problem.images, 0, 0) : 0, NAN);
  return cuda_on_cpu::report([&] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(input, [&](auto* logits) {
      with_team(problem.classes, [&](auto team) {
        const LaunchShape shape = loss_shape(problem, team.kPerWarp, most_blocks);
        if (floats(loss)) weight_sums.assign(warps_of(shape), NAN);
        if (floats(loss) && reduce) loss_sums.assign(warps_of(shape), NAN);
        cuda_on_cpu::launch({shape.grid, shape.threads},
                            upsample_cross_entropy_kernel<std::remove_pointer_t<decltype(logits)>, decltype(team)>,
                            logits, problem, reduce ? nullptr : floats(loss), loss_sums.data(), weight_sums.data(),
                            sums.data());
      });
    });
    auto total = [](const std::vector<float>& of) { return float(std::accumulate(of.begin(), of.end(), 0.0)); };
    if (floats(loss)) *floats(total_weight) = total(weight_sums);
    if (floats(loss) && reduce) *floats(loss) = total(loss_sums);
    if (!floats(grad)) return;
    const LaunchShape shape = gather_shape(problem, most_blocks);
    cuda_on_cpu::launch({shape.grid, shape.threads}, upsample_cross_entropy_gather_kernel, sums.data(), floats(grad),
                        problem);
  });
}
