// What every host function needs of LibTorch's stable ABI, under short names.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

namespace fastseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

}  // namespace fastseg
