// The tasks of a deconvolution: products of input pixels and a packed weight, and their way to the output.
#pragma once
#include <cstring>
#include <deque>
#include <type_traits>

#include "cpu/deconv2d_packing.h"

namespace fastseg {

// The outputs of an input pixel: phase (0, 0) is row y, column x, which the window may leave out.
struct Place {
  int64_t y, x, skip;  // the latter in memory
};

template <typename T>
FASTSEG_CLONES void add_skip(const T* skip, int64_t step, const std::vector<Piece>& pieces, const Place* places,
                             int64_t rows, int64_t pitch, float* sums) {
  for (const Piece& piece : pieces)
    for (int64_t m = 0; m < rows; ++m)
      for (int64_t k = 0; k < piece.length; ++k)
        sums[m * pitch + piece.lane + k] += to_float(skip[places[m].skip + piece.skip + k * step]);
}

template <typename T>
FASTSEG_CLONES void put(const T* values, const std::vector<Piece>& pieces, const int64_t* to, int64_t rows,
                        int64_t pitch, T* output) {
  for (const Piece& piece : pieces) {
    with_length(piece.length, [&](auto length) {
      for (int64_t m = 0; m < rows; ++m)
        std::memcpy(output + to[m] + piece.output, values + m * pitch + piece.lane, length * sizeof(T));
    });
  }
}

// A thread's scratch, and the steps of a task.
template <typename T>
class Worker {
 public:
  Worker(const Call& call, T* output)
      : call_(call),
        problem_(call.problem),
        plan_(call.plan),
        skip_(static_cast<const T*>(call.added.skip)),
        output_(output) {}

  void run(const Task& task) {
    const Unit& unit = plan_.units[task.unit];
    if (held_ != &unit) {
      held_ = &unit;
      lanes_.clear();
      for (const PhaseGroup& columns : plan_.columns.groups) lanes_.emplace_back(call_, unit, columns);
    }
    const Side &rows = problem_.rows, &columns = problem_.columns;
    for (const PackedLanes& lanes : lanes_) {
      const Reads down{-unit.rows->shift, 1, -plan_.rows.step, unit.rows->taps, rows.in};
      const Reads across{-lanes.columns.shift, 1, -plan_.columns.step, lanes.columns.taps, columns.in};
      for (const Stretch& vertical : stretches_of(down, unit.positions, unit.whole)) {
        for (const Stretch& horizontal : stretches_of(across, plan_.positions, plan_.whole)) {
          find_pixels(lanes, task.rows, vertical.positions, horizontal.positions);
          multiply_pixels(lanes, vertical, horizontal);
        }
      }
    }
  }

 private:
  // Fills bases_, to_ and places_.
  void find_pixels(const PackedLanes& lanes, Range task_rows, Range vertical, Range horizontal) {
    const Side &rows = problem_.rows, &columns = problem_.columns;
    const int64_t* skip = call_.added.strides;
    const Floats& input = call_.input;
    const int64_t most = task_rows.size() * horizontal.size();
    bases_.resize(most), to_.resize(most), places_.resize(most);
    int64_t count = 0;
    for (int64_t row = task_rows.begin; row < task_rows.end; ++row) {
      const int64_t n = row / held_->positions.size(), i = held_->positions.begin + row % held_->positions.size();
      if (i < vertical.begin || i >= vertical.end) continue;
      const int64_t base = input.at(n, held_->group * problem_.channels, i - held_->rows->shift, 0) - input.data;
      const int64_t y = i * rows.stride - rows.begin;
      const int64_t line = (n * (call_.channels_last ? 1 : call_.outputs()) * rows.out + y) * columns.out;
      for (int64_t j = horizontal.begin; j < horizontal.end; ++j, ++count) {
        const int64_t x = j * columns.stride - columns.begin;
        bases_[count] = base + (j - lanes.columns.shift) * input.column;
        to_[count] = (line + x) * call_.pixel();
        places_[count] = {y, x, n * skip[0] + y * skip[2] + x * skip[3]};
      }
    }
    bases_.resize(count);
  }

  void multiply_pixels(const PackedLanes& lanes, const Stretch& vertical, const Stretch& horizontal) {
    const Floats& input = call_.input;
    Runs runs{1};
    for (int64_t y = vertical.taps.begin; y < vertical.taps.end; ++y)
      for (int64_t x = horizontal.taps.end - 1; x >= horizontal.taps.begin; --x)
        runs.add(-y * plan_.rows.step * input.row - x * plan_.columns.step * input.column, lanes.row(y, x),
                 problem_.channels);
    const bool whole = vertical.whole && horizontal.whole;
    std::vector<Target> targets;
    if constexpr (std::is_same_v<T, float>)
      if (whole && !skip_)
        for (const std::vector<int64_t>& halves : lanes.halves) targets.push_back({output_, to_.data(), halves.data()});
    multiply(input.data, bases_, runs, lanes.packed.data(), lanes.depth, lanes.panels, lanes.start.data(), targets,
             [&](int64_t p, int64_t m, int64_t rows, float* sums) {
               if (whole) {
                 put_whole(lanes.pieces[p], m, rows, lanes.panels[p].pitch(), sums);
               } else {
                 put_cut(lanes.pieces[p], m, rows, lanes.panels[p].pitch(), sums);
               }
             });
  }

  // `rows` pixels from number `first` on.
  void put_whole(const std::vector<Piece>& pieces, int64_t first, int64_t rows, int64_t pitch, float* sums) {
    if (skip_) add_skip(skip_, call_.skip_step(), pieces, &places_[first], rows, pitch, sums);
    if constexpr (std::is_same_v<T, float>) {
      put(sums, pieces, &to_[first], rows, pitch, output_);
    } else {
      T rounded[kRowBlock * kLargestTile.vectors * kWide];
      round_to(sums, rows * pitch, rounded);
      put(rounded, pieces, &to_[first], rows, pitch, output_);
    }
  }

  // Only what lies in the window.
  void put_cut(const std::vector<Piece>& pieces, int64_t first, int64_t rows, int64_t pitch, const float* sums) {
    const int64_t pixel = call_.pixel(), width = problem_.columns.out * pixel;
    for (int64_t m = 0; m < rows; ++m) {
      const Place& place = places_[first + m];
      for (const Piece& piece : pieces) {
        const int64_t y = place.y + piece.y, x = place.x * pixel + piece.line;
        if (y < 0 || y >= problem_.rows.out) continue;
        for (int64_t k = std::max<int64_t>(0, -x); k < std::min(piece.length, width - x); ++k) {
          float sum = sums[m * pitch + piece.lane + k];
          if (skip_) sum += to_float(skip_[place.skip + piece.skip + k * call_.skip_step()]);
          output_[to_[first + m] + piece.output + k] = from_float<T>(sum);
        }
      }
    }
  }

  const Call& call_;
  const Problem& problem_;
  const Plan& plan_;
  const T* const skip_;
  T* const output_;
  const Unit* held_ = nullptr;
  std::deque<PackedLanes> lanes_;    // of the held unit
  std::vector<int64_t> bases_, to_;  // of pixels, in the input and in the output
  std::vector<Place> places_;
};

}  // namespace fastseg
