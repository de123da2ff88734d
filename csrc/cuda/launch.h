// What a CUDA host function needs beside csrc/tensor.h: the current stream, launch errors as exceptions, the device's
// names of dtypes; and for functions that launch several kernels, a Device (device.h).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/device.h"
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

// Scratch memory is freed in the order of the stream: PyTorch's allocator sees to it.
class Gpu {
 public:
  static constexpr int multiprocessors = 132;         // an H200's. On every GPU, as it decides the order of sums.
  static constexpr int64_t shared_bytes = 48 * 1024;  // of a block, without asking

  // `op`: for errors.
  Gpu(const Tensor& tensor, const char* op)
      : tensor_(tensor), op_(op), stream_(current_stream(tensor.get_device_index())) {}

  template <typename T>
  T* scratch(int64_t count) {
    scratch_.push_back(torch::stable::new_empty(tensor_, {count * int64_t(sizeof(T))}, ScalarType::Byte));
    return reinterpret_cast<T*>(scratch_.back().mutable_data_ptr<uint8_t>());
  }

  template <typename... Parameters, typename... Arguments>
  void launch(const LaunchShape& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
    if (int64_t(shape.shared) > shared_bytes)
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared));
    kernel<<<shape.grid, shape.threads, shape.shared, stream_>>>(arguments...);
    check_launch(op_);
  }

 private:
  Tensor tensor_;
  const char* op_;
  cudaStream_t stream_;
  std::vector<Tensor> scratch_;
};

inline torch::headeronly::MemoryFormat format(bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

}  // namespace fastseg
