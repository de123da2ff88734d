// An axis of outputs as the CPU kernels walk it.
#pragma once
#include <vector>

#include "bilinear.h"
#include "cpu/simd.h"

namespace fastseg {

// All outputs of an axis, cut into spans of at most `longest` that share their two input neighbours.
struct Cut {
  std::vector<Span> spans;
  std::vector<float> fractions;  // of every output, padded so that a vector may be loaded at the last
};

inline Cut cut_into_spans(const Axis& axis, int64_t longest) {
  Cut cut;
  cut.fractions.assign(axis.out + kWide, 0.0f);
  for (int64_t o = 0; o < axis.out; ++o) {
    int64_t low = low_index(axis, o);
    cut.fractions[o] = fraction(axis, o, low);
    bool starts = cut.spans.empty() || cut.spans.back().low != low || o - cut.spans.back().begin == longest;
    if (starts) cut.spans.push_back({low, neighbour(axis, low), o, o});
    cut.spans.back().end = o + 1;
  }
  return cut;
}

}  // namespace fastseg
