// The CUDA kernels of pyramid_conv2d, launched as csrc/cuda/pyramid_conv2d.cu does. `call`: align_corners,
// channels_last, the shared memory that a block may fill, then (pixels, taps, padding) of both axes.
#include "cuda/pyramid_conv2d.cuh"

#include "cpu.h"
#include "cuda/pyramid_conv2d_backward_slab.cuh"

using namespace fastseg;
using cuda_on_cpu::Array;
using cuda_on_cpu::Cpu;

namespace {

Priors priors_of(const Array& bins, const Array& call) {
  const std::vector<int64_t> cells(bins.as<int64_t>(), bins.as<int64_t>() + bins.sizes[0]);
  const int64_t *n = call.as<int64_t>(), *y = n + 3, *x = n + 6;
  return make_priors(cells, prior_axis(cells, 0, y[0], y[1], y[2]), prior_axis(cells, 1, x[0], x[1], x[2]), n[0]);
}

}  // namespace

// image (N, H, W, C), slab (N, S, kh, kw, O): C and O are filled up to whole vectors. weight (O, C, kh, kw) comes as
// its storage and its `form`: offset in it, sizes and strides. bias is empty if there is none. output: (N, H', W', O)
// with channels_last, else (N, O, H', W').
DRIVER pyramid_conv2d(const Array& image, const Array& weight, const Array& form, const Array& slab, const Array& bias,
                      const Array& output, const Array& bins, const Array& call) {
  return cuda_on_cpu::report([&] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(image, [&](auto* from) {
      using T = std::remove_pointer_t<decltype(from)>;
      Cpu cpu(132, call.as<int64_t>()[2]);
      PyramidConv<T> p{};
      p.image = from, p.slab = slab.as<T>();
      p.bias = bias.sizes[0] ? bias.as<T>() : nullptr;
      p.output = output.as<T>();
      p.priors = priors_of(bins, call);
      p.images = image.sizes[0];
      p.channels_last = call.as<int64_t>()[1];
      const int64_t* n = form.as<int64_t>();
      run_pyramid_conv2d(cpu, p, weight.as<T>() + n[0], weight_packing<T>(n + 1, n + 5));
    });
  });
}

// grad (N, O, H', W') comes as its storage and its `form`: offset in it, sizes and strides. slab: (N, S, kh, kw, O).
DRIVER pyramid_conv2d_backward_slab(const Array& grad, const Array& form, const Array& slab, const Array& bins,
                                    const Array& call) {
  return cuda_on_cpu::report([&] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(grad, [&](auto* from) {
      using T = std::remove_pointer_t<decltype(from)>;
      const int64_t* n = form.as<int64_t>();
      Cpu cpu(132, call.as<int64_t>()[2]);
      SlabGradient<T> p{};
      p.grad = from + n[0], p.slab = slab.as<T>();
      std::copy(n + 5, n + 9, p.strides);
      p.priors = priors_of(bins, call);
      p.images = n[1], p.outputs = int(n[2]);
      run_backward_slab(cpu, p);
    });
  });
}
