// The tensor-core kernels of gemm.cuh.
#include "gemm.cuh"

#include "driver.h"

using namespace fastseg;
using cuda_on_cpu::Array;

template <typename T, int... kFaults>
void launch_gemm(const Array& a, const Array& b, const Array& c, int64_t fault,
                 std::integer_sequence<int, kFaults...>) {
  const int m = int(a.sizes[0]), n = int(b.sizes[0]), k = int(a.sizes[1]);
  const cuda_on_cpu::Launch shape{dim3((n + kTile - 1) / kTile, (m + kTile - 1) / kTile), kGemmThreads, kGemmShared};
  void (*const kernels[])(const T*, const T*, float*, int, int, int) = {gemm_kernel<T, GemmFault(kFaults)>...};
  cuda_on_cpu::launch(shape, kernels[fault], a.as<T>(), b.as<T>(), c.as<float>(), m, n, k);
}

DRIVER gemm(const Array& a, const Array& b, const Array& c, int64_t fault) {
  return cuda_on_cpu::report([&] {
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(a, [&](auto* elements) {
      using T = std::remove_pointer_t<decltype(elements)>;
      constexpr int kFaults = std::is_same_v<T, __nv_bfloat16> ? int(GemmFault::kCopyTooFar) + 1 : 1;
      launch_gemm<T>(a, b, c, fault, std::make_integer_sequence<int, kFaults>());
    });
  });
}

DRIVER fragments(const Array& matrices, const Array& result, int64_t transposed) {
  return cuda_on_cpu::report([&] {
    auto run = [&](auto* kernel) {
      cuda_on_cpu::launch({1, 32}, kernel, matrices.as<uint16_t>(), result.as<uint32_t>());
    };
    const int64_t count = matrices.sizes[0];
    if (count == 1) run(transposed ? fragments_kernel<1, true> : fragments_kernel<1, false>);
    if (count == 2) run(transposed ? fragments_kernel<2, true> : fragments_kernel<2, false>);
    if (count == 4) run(transposed ? fragments_kernel<4, true> : fragments_kernel<4, false>);
  });
}
