// How a deconvolution is cut into units, whose weights are packed together, and tasks for the threads.
#pragma once
#include <algorithm>
#include <utility>

#include "cpu/deconv2d_phases.h"
#include "cpu/product.h"

namespace fastseg {

constexpr int64_t kTasks = 16;       // at least so many, for as many threads, if each has enough to do
constexpr int64_t kFewPixels = 64;   // are enough to read a packed weight for
constexpr int64_t kWorth = 1000000;  // multiply-adds that are worth waking a thread for
constexpr int64_t kLanes = 256;      // of a unit: finding its pixels costs little beside multiplying them
constexpr int64_t kPixelRun = 64;    // channels of a channels_last pixel that are worth writing at a time

// Some output channels of a group and phases of the rows, whose weights are packed together.
struct Unit {
  int64_t group, channel, channels;
  const PhaseGroup* rows;
  Range phases;            // in rows->phases
  Range positions, whole;  // input rows with an output of these phases in the window, or all of them
};

// Of a unit, some of the positions of all images.
struct Task {
  int64_t unit;
  Range rows;
};

// How a call is cut.
struct Plan {
  Phases rows, columns;
  Range positions, whole;  // of the columns
  std::vector<Unit> units;
  std::vector<Task> tasks;
  int64_t grain;  // tasks

  Plan(const Problem& problem, bool channels_last);
};

// Positions of which an output, or every output, of a range of phases is in the window.
inline Range reached(const Side& side, int64_t first, int64_t last) {
  const int64_t begin = std::max<int64_t>(0, ceil_div(side.begin - last, side.stride));
  return {begin, std::max(begin, (side.begin + side.out - 1 - first + side.stride) / side.stride)};
}

inline Range filled(const Side& side, int64_t first, int64_t last) {
  const int64_t begin = side.begin > first ? ceil_div(side.begin - first, side.stride) : 0;
  return {begin, (side.begin + side.out - 1 - last + side.stride) / side.stride};
}

// Lanes of a unit, times taps: with what fills vectors, and without.
struct Work {
  int64_t lanes = 0, padded = 0, wanted = 0;

  void add(const Phases& columns, int64_t channels, int64_t phases) {
    for (const PhaseGroup& group : columns.groups) {
      const int64_t count = channels * phases * group.phases.size();
      lanes += count, padded += ceil_div(count, kWide) * kWide * group.taps, wanted += count * group.taps;
    }
  }
};

// How many channels, from `least` on, and phases of the rows make a unit: few, but kLanes, and vectors full but for
// 1/16, if possible.
inline std::pair<int64_t, int64_t> unit_size(const Phases& columns, int64_t channels, int64_t phases, int64_t least) {
  for (int64_t c = least; c < channels; ++c) {
    Work one, all;
    one.add(columns, c, 1);
    for (int64_t done = 0; done < channels; done += c) all.add(columns, std::min(c, channels - done), 1);
    if (one.lanes >= kLanes && (all.padded - all.wanted) * 16 <= all.wanted) return {c, 1};
  }
  for (int64_t p = 1; p < phases; ++p) {
    Work one;
    one.add(columns, channels, p);
    if (one.lanes >= kLanes) return {channels, p};
  }
  return {channels, phases};
}

inline Plan::Plan(const Problem& problem, bool channels_last)
    : rows(phases_of(problem.rows)),
      columns(phases_of(problem.columns)),
      positions(reached(problem.columns, 0, problem.columns.stride - 1)),
      whole(filled(problem.columns, 0, problem.columns.stride - 1)) {
  int64_t all_rows = 0;
  for (const PhaseGroup& group : rows.groups) {
    const int64_t all = group.phases.size();
    const auto [channels, phases] = unit_size(columns, problem.outputs, all, channels_last ? kPixelRun : 1);
    for (int64_t begin = 0; begin < all; begin += phases) {
      const Range range{begin, std::min(begin + phases, all)};
      const int64_t first = group.phases[range.begin], last = group.phases[range.end - 1];
      const Range positions = reached(problem.rows, first, last);
      if (positions.size() == 0) continue;
      for (int64_t g = 0; g < problem.groups; ++g) {
        for (int64_t channel = 0; channel < problem.outputs; channel += channels) {
          units.push_back({g, channel, std::min(channels, problem.outputs - channel), &group, range, positions,
                           filled(problem.rows, first, last)});
          all_rows += positions.size() * problem.images;
        }
      }
    }
  }
  int64_t most = 1;  // multiply-adds of a task
  for (const Unit& unit : units) {
    Work work;
    work.add(columns, unit.channels, unit.phases.size());
    const int64_t count = problem.images * unit.positions.size(), width = positions.size();
    const int64_t size = std::max(all_rows / kTasks, ceil_div(kFewPixels, width));
    for (int64_t begin = 0; begin < count; begin += size)
      tasks.push_back({&unit - units.data(), {begin, std::min(begin + size, count)}});
    most = std::max(most, std::min(size, count) * width * work.padded * unit.rows->taps * problem.channels);
  }
  grain = 1 + kWorth / most;
}

}  // namespace fastseg
