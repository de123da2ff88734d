// The weight of a unit as a packed factor of a matrix product, and where its lanes go.
#pragma once
#include <vector>

#include "cpu/deconv2d_plan.h"
#include "cpu/floats.h"

namespace fastseg {

// What all tasks of a call read.
struct Call {
  const Problem& problem;
  const Plan& plan;
  bool channels_last;
  Floats input, weight;  // the input in channels_last
  Added added;

  int64_t outputs() const { return problem.groups * problem.outputs; }
  int64_t pixel() const { return channels_last ? outputs() : 1; }  // numbers from a column of the output to the next
  int64_t skip_step() const { return added.strides[channels_last ? 1 : 3]; }  // from lane to lane
};

// Lanes of a panel that follow each other in memory, and where they are, seen from the outputs of an input pixel.
// `line`: from its column on.
struct Piece {
  int64_t lane, length, y, line, output, skip;
};

// Lanes of a panel that follow each other in the weight too: where those of input channel 0 and tap (0, 0) are.
struct Strip {
  int64_t from, to, pitch, length;
};

// One row of the packed weight. `stride`: from lane to lane.
FASTSEG_CLONES inline void pack_row(const float* weight, const std::vector<Strip>& strips, int64_t stride, int64_t row,
                                    float* packed) {
  for (const Strip& strip : strips)
    copy(weight + strip.from, 0, stride, packed + strip.to + row * strip.pitch, 0, 1, strip.length);
}

// The lanes of a unit and a group of column phases. They follow each other as outputs do: (row phase, channel, column
// phase), or in channels_last (row phase, column phase, channel).
class PackedLanes {
 public:
  PackedLanes(const Call& call, const Unit& unit, const PhaseGroup& group)
      : columns(group),
        panels(cut_into_panels(unit.phases.size() * unit.channels * group.phases.size())),
        depth(unit.rows->taps * group.taps * call.problem.channels),
        start(panels.back().lane() + panels.back().pitch()),
        packed(start.size() * depth),
        pieces(panels.size()),
        call_(call),
        unit_(unit) {
    const int64_t count = columns.phases.size();
    for (int64_t y = unit.phases.begin; y < unit.phases.end; ++y) {
      for (int64_t x = 0; x < count && call.channels_last; ++x) add_lanes(y, x, 0, unit.channels);
      for (int64_t o = 0; o < unit.channels && !call.channels_last; ++o) {
        for (int64_t x = 0, length; x < count; x += length) {
          length = columns.neighbours(x);
          add_lanes(y, x, o, length);
        }
      }
    }
    find_halves();
    pack();
  }

  // The row of the packed weight of input channel 0. Taps to the left follow those to the right, as their inputs do.
  int64_t row(int64_t y, int64_t x) const { return (y * columns.taps + columns.taps - 1 - x) * call_.problem.channels; }

  const PhaseGroup& columns;
  const std::vector<Panel> panels;
  const int64_t depth;                       // rows of the packed weight
  std::vector<float> start, packed;          // bias, weight
  std::vector<std::vector<Piece>> pieces;    // of every panel
  std::vector<std::vector<int64_t>> halves;  // of every panel, for a Target; empty if some are no runs of the output

 private:
  // Of row phase y, from column phase x and channel o on.
  void add_lanes(int64_t y, int64_t x, int64_t o, int64_t length) {
    const Problem& problem = call_.problem;
    const Floats& weight = call_.weight;
    const int64_t* skip = call_.added.strides;
    const int64_t row = unit_.rows->phases[y], column = columns.phases[x], pixel = call_.pixel();
    const int64_t channel = unit_.group * problem.outputs + unit_.channel + o;
    const int64_t from = weight.at(0, unit_.channel + o, unit_.rows->first[y], columns.first[x]) - weight.data;
    for (int64_t done = 0, taken; done < length; done += taken, lanes_ += taken) {
      while (lanes_ >= panels[panel_].lane() + panels[panel_].pitch()) ++panel_;
      const Panel& panel = panels[panel_];
      const int64_t lane = lanes_ - panel.lane();
      taken = std::min(length - done, panel.pitch() - lane);
      add_strip({from + done * weight_step(), panel.begin(depth) + lane, panel.pitch(), taken});
      for (int64_t k = 0; k < taken && !call_.added.bias.empty(); ++k)
        start[lanes_ + k] = call_.added.bias[channel + (call_.channels_last ? done + k : 0)];
      const int64_t line = column * pixel + (call_.channels_last ? channel : 0) + done;
      const int64_t plane = call_.channels_last ? 0 : channel * problem.rows.out;
      add_piece({lane, taken, row, line, (plane + row) * problem.columns.out * pixel + line,
                 channel * skip[1] + row * skip[2] + column * skip[3] + done * call_.skip_step()});
    }
  }

  int64_t weight_step() const { return call_.channels_last ? call_.weight.channel : call_.weight.column; }

  void add_strip(const Strip& strip) {
    Strip* last = strips_.empty() ? nullptr : &strips_.back();
    if (last && last->from + last->length * weight_step() == strip.from && last->to + last->length == strip.to) {
      last->length += strip.length;
    } else {
      strips_.push_back(strip);
    }
  }

  void add_piece(const Piece& piece) {
    std::vector<Piece>& all = pieces[panel_];
    Piece* last = all.empty() ? nullptr : &all.back();
    if (last && last->y == piece.y && last->line + last->length == piece.line &&
        last->output + last->length == piece.output && last->skip + last->length * call_.skip_step() == piece.skip) {
      last->length += piece.length;
    } else {
      all.push_back(piece);
    }
  }

  void find_halves() {
    for (size_t p = 0; p < panels.size(); ++p) {
      halves.emplace_back();
      for (const Piece& piece : pieces[p])
        for (int64_t k = 0; k < piece.length; k += kShort) halves[p].push_back(piece.output + k);
      // Fewer than panel.pitch() lanes, or pieces that end within a half?
      bool all = int64_t(halves[p].size()) * kShort == panels[p].pitch();
      for (const Piece& piece : pieces[p]) all &= piece.length % kShort == 0;
      if (!all) return halves.clear();
    }
  }

  void pack() {
    const Floats& weight = call_.weight;
    const Plan& plan = call_.plan;
    for (int64_t c = 0; c < call_.problem.channels; ++c)
      for (int64_t y = 0; y < unit_.rows->taps; ++y)
        for (int64_t x = 0; x < columns.taps; ++x)
          pack_row(
              weight.at(unit_.group * call_.problem.channels + c, 0, y * plan.rows.period, x * plan.columns.period),
              strips_, weight_step(), row(y, x) + c, packed.data());
  }

  const Call& call_;
  const Unit& unit_;
  std::vector<Strip> strips_;
  size_t panel_ = 0;   // while lanes are added
  int64_t lanes_ = 0;  // so many are
};

}  // namespace fastseg
