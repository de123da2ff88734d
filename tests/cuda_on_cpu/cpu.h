// A Device (csrc/cuda/device.h) for drivers of ops whose host side launches several kernels.
#pragma once
#include <memory>

#include "driver.h"

namespace cuda_on_cpu {

class Cpu {
 public:
  int multiprocessors;
  int64_t shared_bytes;

  explicit Cpu(int multiprocessors = 132, int64_t shared_bytes = kUsualShared)
      : multiprocessors(multiprocessors), shared_bytes(shared_bytes) {}

  template <typename T>
  T* scratch(int64_t count) {
    const size_t bytes = count * sizeof(T);
    scratch_.emplace_back(static_cast<unsigned char*>(malloc(bytes)), &free);
    memset(scratch_.back().get(), kPoison, bytes);
    return reinterpret_cast<T*>(scratch_.back().get());
  }

  template <typename... Parameters, typename... Arguments>
  void launch(const fastseg::LaunchShape& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
    cuda_on_cpu::launch({shape.grid, shape.threads, shape.shared, std::max(shape.shared, kUsualShared)}, kernel,
                        arguments...);
  }

 private:
  std::vector<std::unique_ptr<unsigned char, decltype(&free)>> scratch_;
};

}  // namespace cuda_on_cpu
