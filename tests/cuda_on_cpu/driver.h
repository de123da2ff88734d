// What a driver (drivers/<op>.cpp) needs: arrays from Python, their types, and errors back to Python.
#pragma once
#include "cuda_on_cpu.h"
#include "grid.h"

// Called from Python (call.py). Takes const Array&, int64_t, double and const char*; returns report(...).
#define DRIVER extern "C" __attribute__((visibility("default"))) const char*

namespace cuda_on_cpu {

// A dense tensor; the struct of the same name in call.py.
struct Array {
  void* data;
  const char* dtype;  // as torch prints it, without "torch."
  int64_t sizes[6];

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

template <typename T>
constexpr const char* kTypeName = nullptr;
template <>
inline constexpr const char* kTypeName<float> = "float32";
template <>
inline constexpr const char* kTypeName<__half> = "float16";
template <>
inline constexpr const char* kTypeName<__nv_bfloat16> = "bfloat16";
template <>
inline constexpr const char* kTypeName<uint8_t> = "uint8";
template <>
inline constexpr const char* kTypeName<int32_t> = "int32";
template <>
inline constexpr const char* kTypeName<int64_t> = "int64";

// Calls f(T*) with the T among Types that the array holds.
template <typename... Types, typename F>
void with_type(const Array& array, F&& f) {
  const bool found = ((!strcmp(array.dtype, kTypeName<Types>) && (f(array.as<Types>()), true)) || ...);
  if (!found) throw std::runtime_error("driver: no kernel for " + std::string(array.dtype));
}

// Runs f; the message of what it throws, or null.
template <typename F>
const char* report(F&& f) {
  static std::string message;
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace cuda_on_cpu

extern "C" __attribute__((visibility("default"))) void set_seed(unsigned seed) { cuda_on_cpu::seed = seed; }
