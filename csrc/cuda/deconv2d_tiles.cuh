// A product of two matrices, tile by tile. The larger factor is gathered from an image while it is copied to shared
// memory, so that it never exists in memory; the smaller one is packed beforehand, in whole vectors.
//
// A block owns a 128 x 128 or 128 x 32 tile; both factors come in 16-byte copies, kStages - 1 steps ahead.
// Reads, per tile and step, 64 bytes for each of its rows and as much for its columns; writes each result once, or, of
// a sum that is cut into parts, float32 parts which are added up in order.
//
// A Product has rows(), columns(), depth(), groups, parts and result. A block's share of it, a BlockTile, has
//   Element, Product, kColumns, kStored       the tile, as tile_product.h has it
//   find_places(product, place, places)       of its rows and columns, one to a thread
//   BlockTile(product, place, places)
//   copy(a, b)                                starts this thread's copies of the next step
#pragma once
#include "cuda/deconv2d_store.cuh"
#include "cuda/tile_steps.h"

namespace fastseg {

constexpr int kWide = 128, kNarrow = 32;  // columns of a tile; narrow for the gradients of 21 classes or so
constexpr int64_t kLeastSteps = 4;        // of a part of a sum: its tile of sums is written and read once more
constexpr int64_t kMostSteps = 512;       // 8192 terms of float32: long sums gather rounding errors

// Blocks of a multiprocessor: as many as registers are enough for. A wide tile takes 64 of each thread for its sums.
template <typename BlockTile>
constexpr int kBlocksAtOnce = BlockTile::kColumns == kWide ? 2 : 3;

// The parts that a sum of so many steps is cut into.
struct Parts {
  int count, steps;
};

inline Parts parts_of_sum(int64_t tiles, int64_t steps, int64_t busy_blocks) {
  int64_t count = std::max(ceil_div(busy_blocks, tiles), ceil_div(steps, kMostSteps));
  count = std::max<int64_t>(std::min(count, steps / kLeastSteps), 1);
  const int64_t each = ceil_div(steps, count);
  return {each ? int(ceil_div(steps, each)) : 1, int(each)};
}

// Of a block: its tile's first row and column, its part of the sums.
struct TilePlace {
  int64_t row;
  int column, part, group;
};

// Tiles side by side come one after the other.
__device__ __forceinline__ TilePlace place_of_block(int64_t rows, int columns, int per_tile, int parts) {
  const int across = ceil_div(columns, per_tile);
  const int64_t down = ceil_div(rows, int64_t(kTileRows));
  const int64_t above = blockIdx.x / across, rest = above / down;
  return {above % down * kTileRows, int(blockIdx.x % across) * per_tile, int(rest % parts), int(rest / parts)};
}

template <typename BlockTile>
struct Stages {
  using T = typename BlockTile::Element;
  static constexpr int kFactorA = kTileElementsA<T, BlockTile::kStored>;
  static constexpr int kEach = kFactorA + kTileElementsB<T, BlockTile::kColumns>;
  static constexpr size_t kBytes = kStages * kEach * sizeof(T) + sizeof(Places<BlockTile::kColumns>);
};

template <typename BlockTile>
__device__ __forceinline__ void multiply_tile(const typename BlockTile::Product& p) {
  using T = typename BlockTile::Element;
  constexpr int kColumns = BlockTile::kColumns;
  T* stages = dynamic_shared<T>();
  auto& places = *reinterpret_cast<Places<kColumns>*>(stages + kStages * Stages<BlockTile>::kEach);
  const TilePlace place = place_of_block(p.rows(), p.columns(), kColumns, p.parts.count);
  BlockTile::find_places(p, place, places);
  __syncthreads();
  BlockTile tile(p, place, places);
  TileSums<T, kColumns, BlockTile::kStored> sums;
  const int64_t steps_left = ceil_div(p.depth(), int64_t(kDepth<T>)) - int64_t(place.part) * p.parts.steps;
  auto copy = [&](int stage) {
    T* a = stages + stage * Stages<BlockTile>::kEach;
    tile.copy(a, a + Stages<BlockTile>::kFactorA);
  };
  auto add = [&](int stage) {
    const T* a = stages + stage * Stages<BlockTile>::kEach;
    sums.add(a, a + Stages<BlockTile>::kFactorA);
  };
  for_each_step(int(min(int64_t(p.parts.steps), steps_left)), copy, add);
  store(p.result, sums, places, reinterpret_cast<float*>(stages), place.part);
}

// By what multiplies: FMA units (float32) or tensor cores.
template <typename BlockTile>
__global__ void __launch_bounds__(kTileThreads, kBlocksAtOnce<BlockTile>)
    deconv2d_fma_kernel(typename BlockTile::Product p) {
  multiply_tile<BlockTile>(p);
}

template <typename BlockTile>
__global__ void __launch_bounds__(kTileThreads, kBlocksAtOnce<BlockTile>)
    deconv2d_mma_kernel(typename BlockTile::Product p) {
  multiply_tile<BlockTile>(p);
}

template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    deconv2d_sum_kernel(const float* __restrict__ parts, T* __restrict__ output, int count, int64_t elements) {
  const int64_t i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i < elements) from_float(sum_of_parts(parts, count, elements, i), output[i]);
}

template <typename BlockTile>
auto kernel_of() {
  if constexpr (std::is_same_v<typename BlockTile::Element, float>)
    return deconv2d_fma_kernel<BlockTile>;
  else
    return deconv2d_mma_kernel<BlockTile>;
}

// Sums may be cut if p.result is all of the output, without bias and skip.
template <typename BlockTile, typename Device>
void multiply_tiles(Device& device, typename BlockTile::Product p, bool may_cut) {
  using T = typename BlockTile::Element;
  const int64_t tiles = p.groups * ceil_div<int64_t>(p.rows(), kTileRows) * ceil_div(p.columns(), BlockTile::kColumns);
  const int64_t steps = ceil_div<int64_t>(p.depth(), kDepth<T>);
  p.parts =
      may_cut ? parts_of_sum(tiles, steps, device.multiprocessors * kBlocksAtOnce<BlockTile>) : Parts{1, int(steps)};
  if (p.parts.count > 1) p.result.parts = device.template scratch<float>(p.parts.count * p.result.elements);
  device.launch(row_of_blocks(tiles * p.parts.count, kTileThreads, Stages<BlockTile>::kBytes), kernel_of<BlockTile>(),
                p);
  if (p.parts.count > 1)
    device.launch(row_of_blocks(ceil_div<int64_t>(p.result.elements, kSumThreads), kSumThreads), deconv2d_sum_kernel<T>,
                  p.result.parts, p.result.output, p.parts.count, p.result.elements);
}

template <template <typename, int> typename BlockTile, template <typename> typename Product, typename T,
          typename Device>
void multiply(Device& device, const Product<T>& p, bool may_cut) {
  if (p.columns() <= kNarrow)
    multiply_tiles<BlockTile<T, kNarrow>>(device, p, may_cut);
  else
    multiply_tiles<BlockTile<T, kWide>>(device, p, may_cut);
}

}  // namespace fastseg
