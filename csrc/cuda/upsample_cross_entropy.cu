// Host side of the CUDA kernels: makes the logits dense channels_last, allocates, sets the grids.
#include <optional>
#include <tuple>

#include "cuda/launch.h"
#include "cuda/upsample_cross_entropy.cuh"

namespace fastseg {
namespace {

using torch::headeronly::MemoryFormat;

Strides strides(const Tensor& map) { return {map.stride(0), map.stride(1), map.stride(2)}; }

std::optional<Tensor> dense_weight(const std::optional<Tensor>& weight) {
  if (!weight) return weight;
  return torch::stable::contiguous(torch::stable::to(*weight, ScalarType::Float));
}

LossProblem make_problem(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight,
                         int64_t ignore_index, double label_smoothing, bool align_corners) {
  const int64_t classes = input.size(1);
  return {input.size(0),
          int(classes),
          loss_spans(make_axis(input.size(2), target.size(1), align_corners)),
          loss_spans(make_axis(input.size(3), target.size(2), align_corners)),
          {target.const_data_ptr(), int(target.element_size()), strides(target)},
          weight ? weight->const_data_ptr<float>() : nullptr,
          ignore_index,
          float(1.0 - label_smoothing),
          float(label_smoothing / classes),
          nullptr,
          {}};
}

// Launches the loss's kernel, with whatever of its outputs is not null.
void launch(const Tensor& input, const LossProblem& problem, float* loss, float* loss_sums, float* weight_sums,
            float* sums, cudaStream_t stream) {
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto logit) {
    with_team(problem.classes, [&](auto team) {
      const LaunchShape shape = loss_shape(problem, team.kPerWarp);
      upsample_cross_entropy_kernel<typename OnDevice<decltype(logit)>::type, decltype(team)>
          <<<shape.grid, shape.threads, 0, stream>>>(device_data<decltype(logit)>(input), problem, loss, loss_sums,
                                                     weight_sums, sums);
    });
  });
  check_launch("upsample_cross_entropy_kernel");
}

Tensor empty_sums(const Tensor& input, const LossProblem& problem) {
  return torch::stable::new_empty(input, {problem.cell(problem.images, 0, 0)}, ScalarType::Float);
}

Tensor empty_grad(const Tensor& input) {
  return torch::stable::empty({input.size(0), input.size(1), input.size(2), input.size(3)}, ScalarType::Float,
                              std::nullopt, input.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

void launch_gather(const Tensor& sums, Tensor& grad, const LossProblem& problem, cudaStream_t stream) {
  const LaunchShape shape = gather_shape(problem);
  upsample_cross_entropy_gather_kernel<<<shape.grid, shape.threads, 0, stream>>>(
      sums.const_data_ptr<float>(), grad.mutable_data_ptr<float>(), problem);
  check_launch("upsample_cross_entropy_gather_kernel");
}

std::tuple<Tensor, Tensor, Tensor> upsample_cross_entropy(const Tensor& input, const Tensor& target,
                                                          std::optional<Tensor> weight, int64_t ignore_index,
                                                          double label_smoothing, bool align_corners, bool reduce,
                                                          bool with_grad) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const cudaStream_t stream = current_stream(input.get_device_index());
  const ScalarType single = ScalarType::Float;
  weight = dense_weight(weight);
  const Tensor dense = torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
  const LossProblem problem = make_problem(input, target, weight, ignore_index, label_smoothing, align_corners);
  Tensor grad = with_grad ? empty_grad(input) : torch::stable::new_empty(input, {0}, single);
  if (input.numel() == 0) {
    const Tensor loss = reduce ? torch::stable::new_zeros(input, {}, single)
                               : torch::stable::new_empty(input, {0, target.size(1), target.size(2)}, single);
    return {loss, torch::stable::new_zeros(input, {}, single), grad};
  }
  const Tensor sums = with_grad ? empty_sums(input, problem) : grad;
  int64_t warps = 0;
  with_team(problem.classes, [&](auto team) { warps = warps_of(loss_shape(problem, team.kPerWarp)); });
  Tensor loss = torch::stable::new_empty(
      input,
      reduce ? std::vector<int64_t>{warps} : std::vector<int64_t>{target.size(0), target.size(1), target.size(2)},
      single);
  const Tensor weight_sums = torch::stable::new_empty(input, {warps}, single);
  float* values = loss.mutable_data_ptr<float>();
  launch(dense, problem, reduce ? nullptr : values, reduce ? values : nullptr, weight_sums.mutable_data_ptr<float>(),
         with_grad ? sums.mutable_data_ptr<float>() : nullptr, stream);
  if (with_grad) launch_gather(sums, grad, problem, stream);
  return {reduce ? torch::stable::sum(loss) : loss, torch::stable::sum(weight_sums), grad};
}

Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& input, const Tensor& target,
                                       std::optional<Tensor> weight, int64_t ignore_index, double label_smoothing,
                                       bool align_corners) {
  torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const cudaStream_t stream = current_stream(input.get_device_index());
  weight = dense_weight(weight);
  const Tensor dense = torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
  LossProblem problem = make_problem(input, target, weight, ignore_index, label_smoothing, align_corners);
  problem.upstream = grad.const_data_ptr<float>();
  problem.upstream_strides = strides(grad);
  Tensor result = empty_grad(input);
  if (result.numel() == 0) return result;
  const Tensor sums = empty_sums(input, problem);
  launch(dense, problem, nullptr, nullptr, nullptr, sums.mutable_data_ptr<float>(), stream);
  launch_gather(sums, result, problem, stream);
  return result;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CUDA, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&fastseg::upsample_cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&fastseg::upsample_cross_entropy_backward));
}
