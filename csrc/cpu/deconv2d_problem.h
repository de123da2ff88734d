// What the kernels of a deconvolution are told.
#pragma once
#include <cstdint>
#include <vector>

namespace fastseg {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The input's, kernel's and output's size; output 0 is at `begin` of the full deconvolution.
struct Side {
  int64_t in, kernel, stride, dilation, begin, out;
};

// channels, outputs: of one group.
struct Problem {
  int64_t images, channels, outputs, groups;
  Side rows, columns;
};

// What is added to the deconvolution.
struct Added {
  std::vector<float> bias;     // of all outputs; empty if there is none
  const void* skip = nullptr;  // of the output's dtype; null if there is none
  int64_t strides[4] = {};     // of skip
};

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
  bool operator==(const Range& other) const { return begin == other.begin && end == other.end; }
};

}  // namespace fastseg
