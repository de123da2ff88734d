// What a CUDA host function needs beside csrc/tensor.h: the current stream, and launch errors as exceptions.
#pragma once
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

}  // namespace fastseg
