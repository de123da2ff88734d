// What a CUDA host function needs beside csrc/tensor.h: the current stream, launch errors as exceptions, and the
// device's names of dtypes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "tensor.h"

extern "C" {
// Lives in libtorch_cuda. Weak, so that the library also loads on a CPU-only torch, where it stays null.
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
}

namespace fastseg {

inline cudaStream_t current_stream(int32_t device) {
  STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr, "fastseg: this torch has no CUDA support");
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "fastseg: no current CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* kernel) {
  cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "fastseg: ", kernel, ": ", cudaGetErrorString(error));
}

// The type that kernels know the elements of a tensor of T by.
template <typename T>
struct OnDevice {
  using type = T;
};
template <>
struct OnDevice<Half> {
  using type = __half;
};
template <>
struct OnDevice<BFloat16> {
  using type = __nv_bfloat16;
};

template <typename T>
const typename OnDevice<T>::type* device_data(const Tensor& tensor) {
  return reinterpret_cast<const typename OnDevice<T>::type*>(tensor.const_data_ptr<T>());
}

template <typename T>
typename OnDevice<T>::type* mutable_device_data(const Tensor& tensor) {
  return reinterpret_cast<typename OnDevice<T>::type*>(tensor.mutable_data_ptr<T>());
}

}  // namespace fastseg
