// The axes of a deconvolution: which inputs and which rows of the kernel an output adds up.
#pragma once
#include <numeric>
#include <vector>

#include "cpu/deconv2d_problem.h"

namespace fastseg {

// Tap t of position q reads number origin + q per_position + t per_tap of `size` numbers, if there is one.
struct Reads {
  int64_t origin, per_position, per_tap, taps, size;

  Range taps_of(int64_t position) const {
    const auto outside = [&](int64_t tap) {
      const int64_t at = origin + position * per_position + tap * per_tap;
      return at < 0 || at >= size;
    };
    Range range{0, taps};
    while (range.begin < range.end && outside(range.begin)) ++range.begin;
    while (range.begin < range.end && outside(range.end - 1)) --range.end;
    return range.size() > 0 ? range : Range{0, 0};
  }
};

// Neighbouring positions with the same taps, and all or none of them among the `whole` ones.
struct Stretch {
  Range positions, taps;
  bool whole;
};

inline std::vector<Stretch> stretches_of(const Reads& reads, Range positions, Range whole) {
  std::vector<Stretch> stretches;
  for (int64_t q = positions.begin; q < positions.end; ++q) {
    const Range taps = reads.taps_of(q);
    const bool is_whole = q >= whole.begin && q < whole.end;
    if (stretches.empty() || !(stretches.back().taps == taps) || stretches.back().whole != is_whole)
      stretches.push_back({{q, q}, taps, is_whole});
    stretches.back().positions.end = q + 1;
  }
  return stretches;
}

// Phases that read the same inputs. Output q stride + phase of the full deconvolution is the sum over t < taps of
// input q - shift - t step times row first + t period of the kernel.
struct PhaseGroup {
  int64_t taps, shift;
  std::vector<int64_t> phases, first;  // one `first` for each phase

  // How many phases from this on are neighbours in the output and in the kernel.
  int64_t neighbours(int64_t p) const {
    int64_t count = 1;
    while (p + count < int64_t(phases.size()) && phases[p + count] == phases[p] + count &&
           first[p + count] == first[p] + count)
      ++count;
    return count;
  }
};

struct Phases {
  int64_t period, step;
  std::vector<PhaseGroup> groups;
};

// Row k of the kernel reaches phase (k dilation) mod stride, and so does row k + period.
inline Phases phases_of(const Side& side) {
  const int64_t common = std::gcd(side.stride, side.dilation);
  Phases phases{side.stride / common, side.dilation / common, {}};
  std::vector<int64_t> first(side.stride, side.kernel);  // beyond the kernel: no tap
  for (int64_t k = 0; k < side.kernel && k < phases.period; ++k) first[k * side.dilation % side.stride] = k;
  for (int64_t phase = 0; phase < side.stride; ++phase) {
    const int64_t k = first[phase], taps = (side.kernel - k + phases.period - 1) / phases.period;
    const int64_t shift = taps > 0 ? (k * side.dilation - phase) / side.stride : 0;
    PhaseGroup* group = nullptr;
    for (PhaseGroup& other : phases.groups)
      if (other.taps == taps && other.shift == shift) group = &other;
    if (!group) group = &phases.groups.emplace_back(PhaseGroup{taps, shift, {}, {}});
    group->phases.push_back(phase), group->first.push_back(k);
  }
  return phases;
}

}  // namespace fastseg
