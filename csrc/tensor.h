// What every host function needs of LibTorch's stable ABI, under short names.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace fastseg {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f with a value of the C++ type that `dtype` names, one of Types.
template <typename... Types, typename F>
void with_type(ScalarType dtype, F&& f) {
  using torch::headeronly::CppTypeToScalarType;
  bool found = ((dtype == CppTypeToScalarType<Types>::value && (f(Types()), true)) || ...);
  STD_TORCH_CHECK(found, "fastseg: no kernel for this dtype");
}

}  // namespace fastseg
