// Deconvolution and its gradients (fastseg/ops/deconv2d.py) as matrix products (product.h):
//
//                     rows           lanes, of a packed factor             sum over
//   deconv2d          input pixels   output channels x phases: weight      taps, input channels
//   backward_input    input pixels   input channels: weight                kernel, output channels
//   backward_weight   input channels output channels x kernel: grad        input pixels
//
// deconv2d: phases that read the same inputs are lanes of one product; where the stride divides the kernel all are. A
// task packs the weights of some output channels and row phases, multiplies rows of input pixels with them, and puts
// each tile of sums, with bias and skip, where it belongs in the window. Every output is written once.
// Gradients: what the window leaves out is left out of backward_input's sums, and is 0 in backward_weight's.
//
// Depthwise, there are better lanes than these: deconv2d_depthwise.h and deconv2d_planes.h.
//
// Memory: the input, and tensors in half precision, in float32; for gradients the packed weight, or kTasks times the
// weight's gradient. Precision: float32 sums, rounded once. The order of the sums depends on shapes alone.
#include <optional>

#include "cpu/deconv2d_depthwise.h"
#include "cpu/deconv2d_input_gradient.h"
#include "cpu/deconv2d_planes.h"
#include "cpu/deconv2d_weight_gradient.h"
#include "cpu/deconv2d_worker.h"
#include "cpu/new_tensor.h"
#include "tensor.h"

namespace fastseg {
namespace {

// Fewer channels would leave most lanes empty. In NCHW the phases of a large stride are the better lanes, as they lie
// side by side.
bool is_channelwise(const Problem& problem, bool channels_last) {
  return problem.channels == 1 && problem.outputs == 1 && problem.groups >= kWide / 2 &&
         (channels_last || problem.columns.stride < kWide / 2);
}

// Whether the channels of a pixel are nearer to each other than pixels are.
bool by_channel(const Tensor& x) { return x.stride(1) < x.stride(3); }

Tensor deconv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                const std::optional<Tensor>& skip, std::vector<int64_t> stride, std::vector<int64_t> dilation,
                int64_t groups, std::vector<int64_t> window, bool channels_last) {
  const Problem problem{input.size(0),
                        input.size(1) / groups,
                        weight.size(1),
                        groups,
                        {input.size(2), weight.size(2), stride[0], dilation[0], window[0], window[2]},
                        {input.size(3), weight.size(3), stride[1], dilation[1], window[1], window[3]}};
  const int64_t outputs = problem.outputs * groups;
  Tensor output = new_tensor(input, problem.images, outputs, window[2], window[3], channels_last);
  with_type<float, Half, BFloat16>(input.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Added added;
    for (int64_t o = 0; bias && o < outputs; ++o)
      added.bias.push_back(to_float(bias->const_data_ptr<T>()[o * bias->stride(0)]));
    if (skip) added.skip = skip->const_data_ptr();
    for (int64_t axis = 0; skip && axis < 4; ++axis) added.strides[axis] = skip->stride(axis);
    T* to = output.mutable_data_ptr<T>();
    if (is_channelwise(problem, channels_last))
      return channelwise_deconv(problem, input, weight, added, channels_last, to);
    const Plan plan(problem, channels_last);
    const Call call{
        problem, plan, channels_last, floats_of(input, Order::kChannelsLast), floats_of(weight, Order::kAny), added};
    parallel_for(plan.tasks.size(), plan.grain, [&](int64_t begin, int64_t end) {
      Worker<T> worker(call, to);
      for (int64_t task = begin; task < end; ++task) worker.run(plan.tasks[task]);
    });
  });
  return output;
}

// The gradient of the output. It is read along the columns of the kernel, or in channels_last over the channels: that
// is worth a copy if the columns are few.
Floats gradient_floats(const Tensor& grad, const Problem& problem) {
  const bool short_runs = problem.columns.kernel < kWide || problem.columns.dilation > 1;
  return floats_of(grad, short_runs && problem.outputs > problem.columns.kernel ? Order::kChannelsLast : Order::kAny);
}

Tensor deconv2d_backward_input(const Tensor& grad, const Tensor& weight, std::vector<int64_t> stride,
                               std::vector<int64_t> dilation, int64_t groups, std::vector<int64_t> window,
                               std::vector<int64_t> size, bool channels_last) {
  const Problem problem{grad.size(0),
                        weight.size(0) / groups,
                        weight.size(1),
                        groups,
                        {size[0], weight.size(2), stride[0], dilation[0], window[0], window[2]},
                        {size[1], weight.size(3), stride[1], dilation[1], window[1], window[3]}};
  Tensor output = new_tensor(grad, problem.images, weight.size(0), size[0], size[1], channels_last);
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* to = output.mutable_data_ptr<T>();
    if (is_channelwise(problem, by_channel(grad)))
      return channelwise_input_gradient(problem, grad, weight, channels_last, to);
    const Floats grads = gradient_floats(grad, problem), weights = floats_of(weight, Order::kAny);
    if (is_planewise(problem, grads)) return planewise_input_gradient(problem, grads, weights, channels_last, to);
    InputGradient<T>(problem, grads, weights, channels_last, to).run();
  });
  return output;
}

Tensor deconv2d_backward_weight(const Tensor& grad, const Tensor& input, std::vector<int64_t> stride,
                                std::vector<int64_t> dilation, int64_t groups, std::vector<int64_t> window,
                                std::vector<int64_t> kernel) {
  const Problem problem{input.size(0),
                        input.size(1) / groups,
                        grad.size(1) / groups,
                        groups,
                        {input.size(2), kernel[0], stride[0], dilation[0], window[0], window[2]},
                        {input.size(3), kernel[1], stride[1], dilation[1], window[1], window[3]}};
  Tensor output = new_tensor(grad, input.size(1), problem.outputs, kernel[0], kernel[1], false);
  with_type<float, Half, BFloat16>(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* to = output.mutable_data_ptr<T>();
    if (is_channelwise(problem, by_channel(grad))) return channelwise_weight_gradient(problem, grad, input, to);
    const Floats grads = gradient_floats(grad, problem), inputs = floats_of(input, Order::kAny);
    WeightGradient<T>(problem, grads, inputs, to).run();
  });
  return output;
}

}  // namespace
}  // namespace fastseg

STABLE_TORCH_LIBRARY_IMPL(fastseg_native, CPU, m) {
  m.impl("deconv2d", TORCH_BOX(&fastseg::deconv2d));
  m.impl("deconv2d_backward_input", TORCH_BOX(&fastseg::deconv2d_backward_input));
  m.impl("deconv2d_backward_weight", TORCH_BOX(&fastseg::deconv2d_backward_weight));
}
