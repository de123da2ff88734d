// The gradient of deconv2d's weight (fastseg/ops/deconv2d.py) as a product whose larger factor is the output's
// gradient:
//
//                    rows                 summed over                columns
//   grad_weight      ky, kx, outputs      images, h, w               channels
#pragma once
#include "cuda/deconv2d_pack.cuh"
#include "cuda/deconv2d_tiles.cuh"

namespace fastseg {

template <typename T>
struct WeightGradient {
  const T* grad;   // (images, y.out, x.out, groups, padded_outputs)
  const T* input;  // (images, y.in, x.in, groups, padded_channels)
  DeconvSide y, x;
  int64_t images;
  int groups, outputs, padded_outputs, channels, padded_channels;
  Parts parts;
  Result<T> result;  // (groups, channels, outputs, y.kernel, x.kernel)

  __host__ __device__ __forceinline__ int taps() const { return y.kernel * x.kernel; }
  __host__ __device__ __forceinline__ int rows() const { return taps() * padded_outputs; }
  __host__ __device__ __forceinline__ int columns() const { return padded_channels; }
  __host__ __device__ __forceinline__ int64_t depth() const { return images * y.in * x.in; }
};

template <typename T, int kTileColumns>
class WeightGradientTile {
 public:
  using Element = T;
  using Product = WeightGradient<T>;
  static constexpr int kColumns = kTileColumns;
  static constexpr StoredBy kStored = StoredBy::kK;

  __device__ __forceinline__ static void find_places(const Product& p, const TilePlace& place,
                                                     Places<kColumns>& places) {
    const int64_t of_channel = int64_t(p.outputs) * p.taps();
    if (threadIdx.x < kTileRows) {
      const int row = int(place.row) + threadIdx.x, output = row % p.padded_outputs, tap = row / p.padded_outputs;
      const bool exists = row < p.rows() && output < p.outputs;
      places.rows[threadIdx.x] = {int64_t(output) * p.taps() + tap, exists ? 0 : kNever, 0};
    } else if (threadIdx.x - kTileRows < kColumns) {
      const int i = threadIdx.x - kTileRows, channel = place.column + i;
      const int64_t offset = (int64_t(place.group) * p.channels + channel) * of_channel;
      places.columns[i] = {offset, channel < p.channels ? 0 : kNever, 0};
      places.bias[i] = 0.0f;
    }
  }

  __device__ __forceinline__ WeightGradientTile(const Product& p, const TilePlace& place, const Places<kColumns>&)
      : p_(p),
        k_(int64_t(place.part) * p.parts.steps * kDepth<T>),
        first_(int64_t(place.group) * p.padded_channels + place.column),
        columns_(p.padded_channels - place.column),
        step_(position_at(kDepth<T>, p.y.in, p.x.in)) {
    const int row = int(place.row) + threadIdx.x % kVectors * kPerVector<T>, tap = row / p.padded_outputs;
    tap_exists_ = row < p.rows();
    tap_y_ = tap / p.x.kernel * p.y.dilation - p.y.start, tap_x_ = tap % p.x.kernel * p.x.dilation - p.x.start;
    channel_ = place.group * p.padded_outputs + row % p.padded_outputs;
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      pixels_[i] = position_at(k_ + threadIdx.x / kVectors + i * kPixelsAtOnce, p.y.in, p.x.in);
  }

  __device__ __forceinline__ void copy(T* a, T* b) {
    const int vector = threadIdx.x % kVectors * kPerVector<T>;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      Position& at = pixels_[i];
      const int y = at.y * p_.y.stride + tap_y_, x = at.x * p_.x.stride + tap_x_;
      const bool exists =
          tap_exists_ && at.image < p_.images && unsigned(y) < unsigned(p_.y.out) && unsigned(x) < unsigned(p_.x.out);
      const int64_t pixel = (int64_t(at.image) * p_.y.out + y) * p_.x.out + x;
      cp_async_16(a + (threadIdx.x / kVectors + i * kPixelsAtOnce) * kPitch<T, kTileRows> + vector,
                  exists ? p_.grad + pixel * p_.groups * p_.padded_outputs + channel_ : p_.grad, exists);
      advance(at, step_, p_.y.in, p_.x.in);
    }
    copy_rows<T, kColumns>(b, p_.input, first_, k_, p_.depth(), int64_t(p_.groups) * p_.padded_channels, columns_);
    k_ += kDepth<T>;
  }

 private:
  // A thread copies the same vector, some outputs of one tap, of some pixels in each step.
  static constexpr int kVectors = kTileRows / kPerVector<T>, kPixelsAtOnce = kTileThreads / kVectors;
  static constexpr int kPixels = kDepth<T> / kPixelsAtOnce;
  const Product& p_;
  int64_t k_;  // of the next step
  int64_t first_;
  int columns_, channel_, tap_y_, tap_x_;
  bool tap_exists_;
  Position pixels_[kPixels], step_;
};

template <typename T, typename Device>
void product_backward_weight(Device& device, const Deconv& call, const View<T>& grad, const View<T>& input,
                             T* grad_weight) {
  WeightGradient<T> p{};
  p.grad = packed_image(device, grad, call.groups), p.input = packed_image(device, input, call.groups);
  p.y = call.y, p.x = call.x;
  p.images = call.images, p.groups = call.groups, p.outputs = call.outputs, p.channels = call.channels;
  p.padded_outputs = whole_vectors<T>(call.outputs), p.padded_channels = whole_vectors<T>(call.channels);
  p.result.output = grad_weight, p.result.elements = call.all_channels() * call.outputs * p.taps();
  p.result.height = p.result.width = p.result.run = 1;
  multiply<WeightGradientTile>(device, p, true);
}

}  // namespace fastseg
