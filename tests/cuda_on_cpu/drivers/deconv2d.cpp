// The CUDA kernels of deconv2d, launched as csrc/cuda/deconv2d.cu does. Tensors come as their storage, and as their
// offset in it, their four sizes and four strides. `call`: images, groups, channels and outputs (of all groups),
// channels_last, multiprocessors to keep busy; then (in, out, kernel, stride, dilation, start) of both axes.
#include "cuda/deconv2d.cuh"

#include "cpu.h"

using namespace fastseg;
using cuda_on_cpu::Array;
using cuda_on_cpu::Cpu;

namespace {

template <typename T>
View<T> view(const Array& storage, const Array& form) {
  const int64_t* n = form.as<int64_t>();
  return {storage.as<T>() + n[0], {n[1], n[2], n[3], n[4]}, {n[5], n[6], n[7], n[8]}};
}

Deconv deconv_of(const Array& call) {
  const int64_t* n = call.as<int64_t>();
  const auto side = [](const int64_t* n) { return deconv_side(n[0], n[1], n[2], n[3], n[4], n[5]); };
  return {side(n + 6), side(n + 12), n[0], int(n[1]), int(n[2] / n[1]), int(n[3] / n[1]), bool(n[4])};
}

// Calls f(Cpu, T) with the T of an array.
template <typename F>
const char* with_cpu(const Array& array, const Array& call, F&& f) {
  return cuda_on_cpu::report([&] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(array, [&](auto* elements) {
      Cpu cpu(int(call.as<int64_t>()[5]));
      f(cpu, std::remove_pointer_t<decltype(elements)>());
    });
  });
}

template <typename T>
const T* or_null(const Array& array) {
  return array.sizes[0] ? array.as<T>() : nullptr;
}

}  // namespace

// bias and skip are empty if there is none.
DRIVER deconv2d(const Array& input, const Array& input_form, const Array& weight, const Array& weight_form,
                const Array& bias, const Array& skip, const Array& output, const Array& call) {
  return with_cpu(output, call, [&](Cpu& cpu, auto element) {
    using T = decltype(element);
    run_forward(cpu, deconv_of(call), view<T>(input, input_form), view<T>(weight, weight_form), or_null<T>(bias),
                or_null<T>(skip), output.as<T>());
  });
}

DRIVER deconv2d_backward_input(const Array& grad, const Array& grad_form, const Array& weight, const Array& weight_form,
                               const Array& grad_input, const Array& call) {
  return with_cpu(grad_input, call, [&](Cpu& cpu, auto element) {
    using T = decltype(element);
    run_backward_input(cpu, deconv_of(call), view<T>(grad, grad_form), view<T>(weight, weight_form),
                       grad_input.as<T>());
  });
}

DRIVER deconv2d_backward_weight(const Array& grad, const Array& grad_form, const Array& input, const Array& input_form,
                                const Array& grad_weight, const Array& call) {
  return with_cpu(grad_weight, call, [&](Cpu& cpu, auto element) {
    using T = decltype(element);
    run_backward_weight(cpu, deconv_of(call), view<T>(grad, grad_form), view<T>(input, input_form),
                        grad_weight.as<T>());
  });
}
