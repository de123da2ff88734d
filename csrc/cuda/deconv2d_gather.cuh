// deconv2d and the gradient of its input (fastseg/ops/deconv2d.py) as products whose larger factor is an image:
//
//                    rows                 summed over                columns
//   output           images, bases        taps, channels             phases, outputs   for each range of phases
//   grad_input       images, h, w         ky, kx, outputs            channels
#pragma once
#include "cuda/deconv2d_pack.cuh"
#include "cuda/deconv2d_tiles.cuh"

namespace fastseg {

// One axis of a gathered matrix. Base b reads the pixels b read_step + t tap_step + read_start, t < taps, and writes
// b write_step + offset(phase) - write_start, as far as these exist.
struct GatherSide {
  int bases, first_base, taps, read_step, tap_step, read_start, in;
  int write_step, write_start, first_phase, phases;
  DeconvSide side;
};

inline GatherSide forward_side(const DeconvSide& side, const PhaseRange& range) {
  return {range.bases, range.first_base, range.taps, 1,           -side.reach, 0,
          side.in,     side.stride,      side.start, range.first, range.count, side};
}

inline GatherSide backward_side(const DeconvSide& side) {
  return {side.in, 0, side.kernel, side.stride, side.dilation, -side.start, side.out, 1, 0, 0, 1, side};
}

template <typename T>
struct Gather {
  const T* image;   // (images, y.in, x.in, groups, channels), channels: whole vectors
  const T* factor;  // (groups, y.taps, x.taps, channels, pitch)
  const T* bias;    // (groups, outputs) or null
  GatherSide y, x;
  int64_t images;
  int groups, channels, outputs, pitch;
  bool channels_last;  // the output, and columns are (phases, outputs), not (outputs, phases)
  Parts parts;
  Result<T> result;

  __host__ __device__ __forceinline__ int64_t rows() const { return images * y.bases * x.bases; }
  __host__ __device__ __forceinline__ int columns() const { return y.phases * x.phases * outputs; }
  __host__ __device__ __forceinline__ int64_t depth() const { return int64_t(y.taps) * x.taps * channels; }
};

template <typename T, int kTileColumns>
class GatherTile {
 public:
  using Element = T;
  using Product = Gather<T>;
  static constexpr int kColumns = kTileColumns;
  static constexpr StoredBy kStored = StoredBy::kRows;

  __device__ __forceinline__ static void find_places(const Product& p, const TilePlace& place,
                                                     Places<kColumns>& places) {
    const int64_t channel_step = p.channels_last ? 1 : int64_t(p.result.height) * p.result.width;
    const int64_t x_step = p.channels_last ? p.groups * p.outputs : 1, y_step = x_step * p.result.width;
    if (threadIdx.x < kTileRows) {
      const int64_t row = place.row + threadIdx.x, image = row / (int64_t(p.y.bases) * p.x.bases);
      const int base_y = p.y.first_base + int(row / p.x.bases % p.y.bases);
      const int base_x = p.x.first_base + int(row % p.x.bases);
      const bool exists = row < p.rows();
      const int from_y = exists ? base_y * p.y.read_step + p.y.read_start : kNever;
      const int to_y = base_y * p.y.write_step - p.y.write_start, to_x = base_x * p.x.write_step - p.x.write_start;
      places.from[threadIdx.x] = {image * p.y.in * p.x.in * p.groups * p.channels, from_y,
                                  base_x * p.x.read_step + p.x.read_start};
      places.rows[threadIdx.x] = {
          image * p.result.height * p.result.width * p.groups * p.outputs + to_y * y_step + to_x * x_step,
          exists ? to_y : kNever, to_x};
    } else if (threadIdx.x - kTileRows < kColumns) {
      const int i = threadIdx.x - kTileRows, column = place.column + i, phases = p.y.phases * p.x.phases;
      const int output = p.channels_last ? column % p.outputs : column / phases;
      const int phase = p.channels_last ? column / p.outputs : column % phases;
      const bool exists = column < p.columns();
      const int channel = place.group * p.outputs + output;
      const int y = p.y.side.offset(p.y.first_phase + phase / p.x.phases);
      const int x = p.x.side.offset(p.x.first_phase + phase % p.x.phases);
      places.columns[i] = {channel * channel_step + y * y_step + x * x_step, exists ? y : kNever, x};
      places.bias[i] = exists && p.bias != nullptr ? to_float(p.bias[channel]) : 0.0f;
    }
  }

  __device__ __forceinline__ GatherTile(const Product& p, const TilePlace& place, const Places<kColumns>& places)
      : p_(p), places_(places), group_(place.group), column_(place.column), k_(place.part * p.parts.steps * kDepth<T>) {
    const int k = k_ + threadIdx.x % kVectors * kPerVector<T>;
    channel_ = k % p.channels;
    tap_y_ = tap_x_ = 0;
    if (p.depth() > 0) tap_y_ = k / p.channels / p.x.taps, tap_x_ = k / p.channels % p.x.taps;
  }

  __device__ __forceinline__ void copy(T* a, T* b) {
    const int row = threadIdx.x / kVectors, vector = threadIdx.x % kVectors * kPerVector<T>;
#pragma unroll
    for (int i = 0; i < kTileRows; i += kRowsAtOnce) {
      const Place from = places_.from[row + i];  // from shared memory: registers are scarce
      const int y = from.y + tap_y_ * p_.y.tap_step, x = from.x + tap_x_ * p_.x.tap_step;
      const bool exists = tap_y_ < p_.y.taps && unsigned(y) < unsigned(p_.y.in) && unsigned(x) < unsigned(p_.x.in);
      const int64_t pixel = (int64_t(y) * p_.x.in + x) * p_.groups + group_;
      cp_async_16(a + (row + i) * kPitch<T, kDepth<T>> + vector,
                  exists ? p_.image + from.offset + pixel * p_.channels + channel_ : p_.image, exists);
    }
    copy_rows<T, kColumns>(b, p_.factor, group_ * p_.depth() * p_.pitch + column_, k_, p_.depth(), p_.pitch,
                           p_.pitch - column_);
    k_ += kDepth<T>;
    for (channel_ += kDepth<T>; channel_ >= p_.channels; channel_ -= p_.channels)
      if (++tap_x_ == p_.x.taps) tap_x_ = 0, ++tap_y_;
  }

 private:
  // A thread copies the same vector of some rows in each step: `channel_` of a tap.
  static constexpr int kVectors = kDepth<T> / kPerVector<T>, kRowsAtOnce = kTileThreads / kVectors;
  const Product& p_;
  const Places<kColumns>& places_;
  int group_, column_;
  int k_;  // of the next step
  int channel_, tap_y_, tap_x_;
};

// bias and skip may be null; skip is dense as the output is.
template <typename T, typename Device>
void product_forward(Device& device, const Deconv& call, const View<T>& input, const View<T>& weight, const T* bias,
                     const T* skip, T* output) {
  const int64_t* strides = weight.strides;
  Gather<T> p{};
  p.image = packed_image(device, input, call.groups);
  p.bias = bias;
  p.images = call.images, p.groups = call.groups, p.outputs = call.outputs;
  p.channels = whole_vectors<T>(call.channels);
  p.channels_last = call.channels_last;
  p.result.output = output, p.result.skip = skip;
  p.result.height = call.y.out, p.result.width = call.x.out;
  p.result.run = kWide;
  p.result.vectors = call.channels_last && call.outputs % kPerVector<T> == 0 && is_aligned(output) && is_aligned(skip);
  for (const PhaseRange& y : phase_ranges(call.y))
    for (const PhaseRange& x : phase_ranges(call.x)) {
      if (y.bases == 0 || x.bases == 0) continue;
      p.y = forward_side(call.y, y), p.x = forward_side(call.x, x);
      p.pitch = whole_vectors<T>(p.columns());
      if (!call.channels_last) p.result.run = x.count & -x.count;
      Packing packing{{call.groups, y.taps, x.taps, p.channels},
                      {call.channels * strides[0], call.y.period * strides[2], call.x.period * strides[3], strides[0]},
                      call.channels,
                      {y.count, x.count, call.outputs},
                      {strides[2], strides[3], strides[1]},
                      p.pitch};
      if (!call.channels_last) {  // outputs first
        std::rotate(packing.columns, packing.columns + 2, packing.columns + 3);
        std::rotate(packing.column_strides, packing.column_strides + 2, packing.column_strides + 3);
      }
      p.factor = pack(device, weight.data + y.first * strides[2] + x.first * strides[3], packing);
      multiply<GatherTile>(device, p, false);
    }
}

template <typename T, typename Device>
void product_backward_input(Device& device, const Deconv& call, const View<T>& grad, const View<T>& weight,
                            T* grad_input) {
  const int64_t* strides = weight.strides;
  Gather<T> p{};
  p.image = packed_image(device, grad, call.groups);
  p.images = call.images, p.groups = call.groups, p.outputs = call.channels;
  p.channels = whole_vectors<T>(call.outputs), p.pitch = whole_vectors<T>(call.channels);
  p.channels_last = call.channels_last;
  p.y = backward_side(call.y), p.x = backward_side(call.x);
  p.factor = pack(device, weight.data,
                  {{call.groups, call.y.kernel, call.x.kernel, p.channels},
                   {call.channels * strides[0], strides[2], strides[3], strides[1]},
                   call.outputs,
                   {1, 1, call.channels},
                   {0, 0, strides[0]},
                   p.pitch});
  p.result.output = grad_input, p.result.elements = call.images * call.all_channels() * call.y.in * call.x.in;
  p.result.height = call.y.in, p.result.width = call.x.in;
  p.result.run = call.channels_last ? kWide : 1;
  p.result.vectors = call.channels_last && call.channels % kPerVector<T> == 0 && is_aligned(grad_input);
  multiply<GatherTile>(device, p, true);
}

}  // namespace fastseg
