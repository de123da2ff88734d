// Matrix products in float32 of rows that lie in memory as they are and a factor that is packed.
//
//     sums[m][lane] = start[lane] + sum of rows[bases[m] + run.from + r step] packed[run.row + r][lane]
//                     over all runs and r < run.length
//
// A convolution is such a product: m goes over pixels, a run over the channels (say) of one tap, and a pixel's runs are
// the taps that it has, so that nothing is multiplied by a padding's zeros. The lanes are cut into panels of a few
// vectors; the sums of some rows in one panel, a tile, stay in registers.
// Precision: float32 sums of at most kSum products, which are added up in order.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/simd.h"

namespace fastseg {

constexpr int64_t kDepth = 128;  // rows of a panel: 24 KB stay in the L1 cache while all tiles pass
constexpr int64_t kSum = 64;     // products of one sum: those of 84 were off by more than PyTorch's, which adds by taps
constexpr int64_t kLeastSum = 32;  // a sum of so many ends with its run: then fewer runs are cut

// The sums of a tile, a vector or more of a panel's row and a broadcast number are in registers.
struct TileShape {
  int64_t rows, vectors;
};
constexpr TileShape kLargestTile = {8, 3};  // 28 of the 32 registers of AVX-512; two vectors were 6 % slower

inline TileShape tile_shape() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool wide = __builtin_cpu_supports("avx512vl");
  return wide ? kLargestTile : TileShape{6, 1};  // AVX2: a WideFloat is two of 16 registers
#else
  return kLargestTile;
#endif
}

// Vectors of lanes. Of a panel, `pitch` floats of a row are followed by those of the next row.
struct Panel {
  int64_t first, vectors;

  int64_t lane() const { return first * kWide; }
  int64_t pitch() const { return vectors * kWide; }
  // Where it begins in an array of all panels with so many rows.
  int64_t begin(int64_t rows) const { return lane() * rows; }
};

inline std::vector<Panel> cut_into_panels(int64_t lanes) {
  std::vector<Panel> panels;
  const int64_t most = tile_shape().vectors, vectors = (lanes + kWide - 1) / kWide, count = (vectors + most - 1) / most;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t first = p * vectors / count;
    panels.push_back({first, (p + 1) * vectors / count - first});
  }
  return panels;
}

struct Run {
  int64_t from, row, length;
  bool last;  // of its sum
};

// Runs, cut into blocks of at most kDepth rows; at least one, which may be empty. Runs of one sum that continue each
// other are one.
struct Runs {
  int64_t step;  // from one number of a row to the next
  std::vector<Run> runs = {};
  std::vector<int64_t> ends = {0};  // of the blocks
  int64_t depth = 0, sum = 0;       // products of the last block, of its last sum if that is to go on

  void add(int64_t from, int64_t row, int64_t length) {
    while (length > 0) {
      if (depth == kDepth) ends.push_back(runs.size()), depth = sum = 0;
      const int64_t taken = std::min({length, kDepth - depth, kSum - sum});
      Run* open = sum > 0 ? &runs.back() : nullptr;
      if (open && open->from + open->length * step == from && open->row + open->length == row) {
        open->length += taken;
      } else {
        runs.push_back({from, row, taken, false});
      }
      from += taken * step, row += taken, length -= taken, depth += taken, sum += taken;
      if (sum >= kLeastSum) runs.back().last = true, sum = 0;
      ends.back() = runs.size();
    }
  }
};

// Where a tile goes: half h of its vectors, of row m, to `to` + rows[m] + halves[h]. Such halves are whole runs of the
// output where the stride is a multiple of kShort.
struct Target {
  float* to;
  const int64_t *rows, *halves;

  Target from(int64_t m) const { return {to, rows + m, halves}; }
};
constexpr int64_t kInARow[] = {0, 8, 16, 24, 32, 40};  // halves

// start: what the sums of row m are added to, at start + m start_step. Unrolled early, as the tile has to be in
// registers; the totals need not.
template <int kRows, int kVectors>
FASTSEG_CLONES void multiply_tile(const float* rows, const int64_t* bases, int64_t step, const Run* run, const Run* end,
                                  const float* packed, const float* start, int64_t start_step, const Target& target) {
  WideFloat tile[kRows][kVectors], totals[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      tile[m][v] = WideFloat{};
      load(totals[m][v], start + m * start_step + v * kWide);
    }
  for (; run != end; ++run) {
    const float* from[kRows];
    for (int m = 0; m < kRows; ++m) from[m] = rows + (bases[m] + run->from);
    const float* panel = packed + run->row * kVectors * kWide;
    for (int64_t r = 0, at = 0; r < run->length; ++r, at += step, panel += kVectors * kWide) {
      WideFloat lanes[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) load(lanes[v], panel + v * kWide);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) tile[m][v] += from[m][at] * lanes[v];
    }
    if (run->last && run + 1 != end) {
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) totals[m][v] += tile[m][v], tile[m][v] = WideFloat{};
    }
  }
  int64_t to[2 * kVectors];  // or they would be read again after every store
  for (int h = 0; h < 2 * kVectors; ++h) to[h] = target.halves[h];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    float* const row = target.to + target.rows[m];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      totals[m][v] += tile[m][v];
      ShortFloat halves[2];
      std::memcpy(halves, &totals[m][v], sizeof halves);
      store(row + to[2 * v], halves[0]);
      store(row + to[2 * v + 1], halves[1]);
    }
  }
}

using MultiplyTile = decltype(&multiply_tile<1, 1>);

template <int... kTile>
MultiplyTile tile_kernel(int64_t rows, int64_t vectors, std::integer_sequence<int, kTile...>) {
  constexpr int kVectors = kLargestTile.vectors;
  static const MultiplyTile kernels[] = {multiply_tile<kTile / kVectors + 1, kTile % kVectors + 1>...};
  return kernels[(rows - 1) * kVectors + vectors - 1];
}

inline MultiplyTile tile_kernel(int64_t rows, int64_t vectors) {
  return tile_kernel(rows, vectors, std::make_integer_sequence<int, kLargestTile.rows * kLargestTile.vectors>());
}

// visit(m, rows): about equal parts of the rows.
template <typename Visit>
void for_each_tile(int64_t count, const Visit& visit) {
  const int64_t tiles = (count + tile_shape().rows - 1) / tile_shape().rows;
  for (int64_t t = 0; t < tiles; ++t) visit(t * count / tiles, (t + 1) * count / tiles - t * count / tiles);
}

constexpr int64_t kRowBlock = 64;  // rows that a panel is read for; their sums, 12 KB, stay in the L1 cache

// The product, for blocks of rows and every panel. `packed` is an array of all panels with packed_rows rows, `start`
// one with one row. The sums go to the panel's target, with a number of `rows` for every row; without targets
// done(panel index, m, rows, sums) gets them, those of a row `pitch` apart.
template <typename Done>
void multiply(const float* rows, const std::vector<int64_t>& bases, const Runs& runs, const float* packed,
              int64_t packed_rows, const std::vector<Panel>& panels, const float* start,
              const std::vector<Target>& targets, const Done& done) {
  float sums[kRowBlock * kLargestTile.vectors * kWide];
  int64_t places[kRowBlock];
  for (int64_t begin = 0, count = bases.size(); begin < count; begin += kRowBlock) {
    const int64_t size = std::min(kRowBlock, count - begin);
    for (size_t p = 0; p < panels.size(); ++p) {
      const Panel panel = panels[p];
      const int64_t pitch = panel.pitch();
      for (int64_t m = 0; m < size; ++m) places[m] = m * pitch;
      for (size_t block = 0, run = 0; block < runs.ends.size(); run = runs.ends[block++]) {
        const bool there = !targets.empty() && block + 1 == runs.ends.size();
        const Target to = there ? targets[p].from(begin) : Target{sums, places, kInARow};
        for_each_tile(size, [&](int64_t m, int64_t taken) {
          tile_kernel(taken, panel.vectors)(rows, &bases[begin + m], runs.step, runs.runs.data() + run,
                                            runs.runs.data() + runs.ends[block], packed + panel.begin(packed_rows),
                                            block == 0 ? start + panel.lane() : sums + m * pitch,
                                            block == 0 ? 0 : pitch, to.from(m));
        });
      }
      if (targets.empty()) done(p, begin, size, sums);
    }
  }
}

}  // namespace fastseg
