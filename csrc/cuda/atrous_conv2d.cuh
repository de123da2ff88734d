// atrous_conv2d, the gradient of its input, and atrous_pyramid (fastseg/ops/atrous_conv2d.py) as one product, by a
// table of tiles (fastseg/ops/atrous_conv2d_tiles.py):
//
//             rows                       summed over       columns
//   output    128 pixels of a region     taps, channels    128 or 32 outputs of a branch
//
// A block owns a tile. The larger factor never exists in memory: pixels of the input are gathered while they are copied
// to shared memory, kAtrousStages - 1 steps ahead. Blocks start in the order of the table, those with most taps first,
// so that the last to end are short; those of the same pixels are neighbours and find each other's reads in L2.
// Reads, per tile and step, 64 bytes for each of its rows and as much for its columns, 128 x 128 products of 32 (half
// precision) each: on an H200 the tensor cores and L2 should both be near their limit. Writes each result once.
// Precision: float32 sums, rounded once after the epilogue; float32 factors are not rounded to tf32.
#pragma once
#include "cuda/atrous_conv2d_backward_weight.cuh"
#include "cuda/atrous_conv2d_stages.cuh"

namespace fastseg {

// A row of the table: TILE_FIELDS of fastseg/ops/atrous_conv2d_tiles.py.
struct alignas(16) AtrousTile {
  int first, top, left, height, width, taps_y, taps_x, input_y, input_x, dilation_y, dilation_x, weight, kernel_x,
      pitch, output, channel;
};
static_assert(sizeof(AtrousTile) == 16 * sizeof(int));

// Channels, and outputs of each branch, are whole vectors; data are aligned to 16 bytes.
template <typename T>
struct AtrousConv {
  const T* input;         // (images, input_height, input_width, channels)
  const T* weight;        // of each branch (ky, kx, channels, pitch)
  const T *scale, *bias;  // (outputs) or null
  const T* residual;      // as output, or null
  T* output;              // (images, height, width, outputs)
  const AtrousTile* tiles;
  int images, input_height, input_width, channels, height, width, outputs, stride_y, stride_x;
  bool relu;

  __host__ __device__ __forceinline__ int steps_of_tap() const { return ceil_div(channels, kDepth<T>); }
};

// A tile and where its pixels are. In shared memory: registers are scarce.
struct AtrousPlaces {
  AtrousTile tile;
  int image[kTileRows], y[kTileRows], x[kTileRows];  // of the input, under the first tap; image -1: there is no pixel
  int output[kTileRows];                             // number of the pixel, or -1
};

template <typename T>
__device__ __forceinline__ void find_places(const AtrousConv<T>& p, AtrousPlaces& places) {
  if (threadIdx.x < kTileRows) {
    const AtrousTile tile = p.tiles[blockIdx.x];
    const Position at = position_at(tile.first + int(threadIdx.x), tile.height, tile.width);
    const bool exists = at.image < p.images;
    places.image[threadIdx.x] = exists ? at.image : -1;
    places.y[threadIdx.x] = tile.input_y + at.y * p.stride_y;
    places.x[threadIdx.x] = tile.input_x + at.x * p.stride_x;
    places.output[threadIdx.x] = exists ? (at.image * p.height + tile.top + at.y) * p.width + tile.left + at.x : -1;
    if (threadIdx.x == 0) places.tile = tile;
  }
  __syncthreads();
}

// Copies both factors step by step, through all channels of a tap and then the next: each thread the same vector of
// some pixels.
template <typename T, int kColumns>
class TapCopies {
 public:
  __device__ __forceinline__ TapCopies(const AtrousConv<T>& p, const AtrousPlaces& places)
      : p_(p), places_(places), channel_(0), tap_y_(0), tap_x_(0) {
    enter_tap();
  }

  __device__ __forceinline__ void copy(T* a, T* b) {
    const int vector = threadIdx.x % kVectors * kPerVector<T>;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool exists = pixels_[i] != nullptr && channel_ + vector < p_.channels;
      cp_async_16(a + (threadIdx.x / kVectors + i * kRowsAtOnce) * kPitch<T, kDepth<T>> + vector,
                  exists ? pixels_[i] + channel_ : p_.input, exists);
    }
    const int pitch = places_.tile.pitch, output = places_.tile.output;
    copy_rows<T, kColumns>(b, weight_, output, channel_, p_.channels, pitch, pitch - output);
    channel_ += kDepth<T>;
    if (channel_ < p_.channels) return;
    channel_ = 0;
    if (++tap_x_ == places_.tile.taps_x) tap_x_ = 0, ++tap_y_;
    enter_tap();
  }

 private:
  static constexpr int kVectors = kDepth<T> / kPerVector<T>, kRowsAtOnce = kTileThreads / kVectors;
  static constexpr int kRows = kTileRows / kRowsAtOnce;

  __device__ __forceinline__ void enter_tap() {
    const AtrousTile& tile = places_.tile;
    weight_ = p_.weight + tile.weight + int64_t(tap_y_ * tile.kernel_x + tap_x_) * p_.channels * tile.pitch;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = threadIdx.x / kVectors + i * kRowsAtOnce, image = places_.image[row];
      const int y = places_.y[row] + tap_y_ * tile.dilation_y, x = places_.x[row] + tap_x_ * tile.dilation_x;
      const bool exists =
          image >= 0 && unsigned(y) < unsigned(p_.input_height) && unsigned(x) < unsigned(p_.input_width);
      const int64_t pixel = (int64_t(image) * p_.input_height + y) * p_.input_width + x;
      pixels_[i] = exists ? p_.input + pixel * p_.channels + threadIdx.x % kVectors * kPerVector<T> : nullptr;
    }
  }

  const AtrousConv<T>& p_;
  const AtrousPlaces& places_;
  int channel_, tap_y_, tap_x_;  // of the next step
  const T* pixels_[kRows];       // under that tap; null where it is padding
  const T* weight_;              // of that tap
};

// Epilogue and stores: each thread the same vector of outputs of some pixels.
template <int kColumns, typename T>
__device__ __forceinline__ void store_outputs(const AtrousConv<T>& p, const AtrousPlaces& places, const float* sums) {
  constexpr int kCount = kPerVector<T>, kVectors = kColumns / kCount;
  const int column = threadIdx.x % kVectors * kCount, channel = places.tile.channel + column;
  if (places.tile.output + column >= places.tile.pitch) return;
  float scale[kCount], bias[kCount];
  const auto load = [&](float (&to)[kCount], const T* from, float otherwise) {
    const auto elements = from != nullptr ? Elements<T, kCount>::load(from + channel) : Elements<T, kCount>{};
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = from != nullptr ? to_float(elements.values[i]) : otherwise;
  };
  load(scale, p.scale, 1.0f), load(bias, p.bias, 0.0f);
  for (int row = threadIdx.x / kVectors; row < kTileRows; row += kTileThreads / kVectors) {
    if (places.output[row] < 0) return;
    const int64_t offset = int64_t(places.output[row]) * p.outputs + channel;
    float results[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) results[i] = sums[row * kPitch<float, kColumns> + column + i] * scale[i] + bias[i];
    if (p.residual != nullptr) {
      const auto residual = Elements<T, kCount>::load(p.residual + offset);
#pragma unroll
      for (int i = 0; i < kCount; ++i) results[i] += to_float(residual.values[i]);
    }
    Elements<T, kCount> rounded;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      from_float(p.relu && results[i] < 0.0f ? 0.0f : results[i], rounded.values[i]);  // NaN stays
    rounded.store(p.output + offset);
  }
}

template <typename T, int kColumns>
__device__ __forceinline__ void convolve_tile(const AtrousConv<T>& p) {
  auto& places =
      *reinterpret_cast<AtrousPlaces*>(dynamic_shared<char>() + AtrousStages<T, kColumns, StoredBy::kRows>::kBytes);
  find_places(p, places);
  TapCopies<T, kColumns> copies(p, places);
  TileSums<T, kColumns, StoredBy::kRows> sums;
  add_steps(sums, places.tile.taps_y * places.tile.taps_x * p.steps_of_tap(), [&](T* a, T* b) { copies.copy(a, b); });
  store_outputs<kColumns>(p, places, staged(sums));
}

// By what multiplies: FMA units (float32) or tensor cores.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kAtrousBlocksAtOnce<kColumns>)
    atrous_conv2d_fma_kernel(AtrousConv<T> p) {
  convolve_tile<T, kColumns>(p);
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kAtrousBlocksAtOnce<kColumns>)
    atrous_conv2d_mma_kernel(AtrousConv<T> p) {
  convolve_tile<T, kColumns>(p);
}

template <int kColumns, typename T, typename Device>
void launch_tiles(Device& device, const AtrousConv<T>& p, int64_t tiles) {
  constexpr size_t kBytes = AtrousStages<T, kColumns, StoredBy::kRows>::kBytes + sizeof(AtrousPlaces);
  const auto shape = row_of_blocks(tiles, kTileThreads, kBytes);
  if constexpr (std::is_same_v<T, float>)
    device.launch(shape, atrous_conv2d_fma_kernel<T, kColumns>, p);
  else
    device.launch(shape, atrous_conv2d_mma_kernel<T, kColumns>, p);
}

// Tiles have as many columns as fastseg/ops/atrous_conv2d_compiled.py's block() says.
template <typename T, typename Device>
void run_atrous_conv2d(Device& device, const AtrousConv<T>& p, int64_t tiles) {
  if (tiles == 0) return;  // no images
  if (p.outputs <= 32)     // of 21 classes or so
    launch_tiles<32>(device, p, tiles);
  else
    launch_tiles<128>(device, p, tiles);
}

}  // namespace fastseg
