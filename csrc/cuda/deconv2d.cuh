// Learned deconvolution and its gradients (fastseg/ops/deconv2d.py): matrix products, but for a group per channel.
// Precision: float32 sums, rounded once; float32 factors are not rounded to tf32. The order of a sum is fixed.
#pragma once
#include "cuda/deconv2d_backward_weight.cuh"
#include "cuda/deconv2d_depthwise.cuh"
#include "cuda/deconv2d_gather.cuh"

namespace fastseg {

inline bool is_depthwise(const Deconv& call) { return call.channels == 1 && call.outputs == 1; }

// bias and skip may be null; skip is dense as the output is.
template <typename T, typename Device>
void run_forward(Device& device, const Deconv& call, const View<T>& input, const View<T>& weight, const T* bias,
                 const T* skip, T* output) {
  if (is_depthwise(call))
    depthwise_forward(device, call, input, weight, bias, skip, output);
  else
    product_forward(device, call, input, weight, bias, skip, output);
}

template <typename T, typename Device>
void run_backward_input(Device& device, const Deconv& call, const View<T>& grad, const View<T>& weight, T* grad_input) {
  if (is_depthwise(call))
    depthwise_backward_input(device, call, grad, weight, grad_input);
  else
    product_backward_input(device, call, grad, weight, grad_input);
}

template <typename T, typename Device>
void run_backward_weight(Device& device, const Deconv& call, const View<T>& grad, const View<T>& input,
                         T* grad_weight) {
  if (is_depthwise(call))
    depthwise_backward_weight(device, call, grad, input, grad_weight);
  else
    product_backward_weight(device, call, grad, input, grad_weight);
}

}  // namespace fastseg
