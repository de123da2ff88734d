// Barriers, shuffles, votes and atomics under their CUDA names. Shuffles and votes wait for the lanes of their mask but
// order no memory accesses: for that there are __syncthreads and __syncwarp.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "block.h"
#include "races.h"

namespace cuda_on_cpu {

// The running lane meets its warp with a value and sees what every lane brought.
template <typename T>
class Exchange {
 public:
  Exchange(const char* name, Place place, unsigned mask, const T& brought) : place_(place) {
    static_assert(sizeof(T) <= sizeof(Meeting::Luggage) && std::is_trivially_copyable_v<T>);
    Block& block = Block::current();
    meeting_ = &block.meet(name, place, block.running().warp(), mask, false, &brought, sizeof(T));
  }
  bool has(int lane) const { return meeting_->arrived_lanes >> lane & 1; }
  T of(int lane) const {
    if (!has(lane))
      Block::current().fail(std::string(meeting_->name) + " at " + text(place_) + ": lane " +
                            std::to_string(Block::current().running().lane()) + " reads lane " + std::to_string(lane) +
                            ", which does not take part");
    T value;
    memcpy(&value, meeting_->luggage[lane].bytes, sizeof(T));
    return value;
  }

 private:
  Place place_;
  Meeting* meeting_;
};

// `source` is where the lane would read; outside its segment of `width` lanes it keeps its own value.
template <typename T, typename Source>
T shuffle(const char* name, Place place, unsigned mask, T value, int width, Source source) {
  Exchange<T> all(name, place, mask, value);
  const int lane = Block::current().running().lane(), first = lane / width * width;
  const int from = source(lane, first);
  return all.of(from < 0 ? lane : from);
}

inline unsigned ballot(const char* name, Place place, unsigned mask, bool predicate) {
  Exchange<bool> all(name, place, mask, predicate);
  unsigned votes = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if ((mask >> lane & 1) && all.has(lane)) votes |= unsigned(all.of(lane)) << lane;
  return votes;
}

template <typename T, typename F>
CUDA_ON_CPU_NOT_WATCHED T update(T* address, Place place, F&& f) {
  note_atomic(address, sizeof(T), place);
  T old = *address;
  *address = f(old);
  return old;
}

template <typename T>
constexpr bool kHasAtomicMax = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long long> ||
                               std::is_same_v<T, unsigned long long>;
template <typename T>
constexpr bool kHasAtomicAdd =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long> ||
    std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, __half> ||
    std::is_same_v<T, __nv_bfloat16>;

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_PLACE cuda_on_cpu::Place place = cuda_on_cpu::Place::here()

inline void __syncthreads(CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::Block::current().meet("__syncthreads", place, cuda_on_cpu::Meeting::kWholeBlock, 0, true);
}

inline void __syncwarp(unsigned mask = cuda_on_cpu::kWholeWarp, CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::Block& block = cuda_on_cpu::Block::current();
  block.meet("__syncwarp", place, block.running().warp(), mask, true);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = cuda_on_cpu::kLanes, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle("__shfl_sync", place, mask, value, width,
                              [&](int, int first) { return first + (source & (width - 1)); });
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = cuda_on_cpu::kLanes, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle("__shfl_xor_sync", place, mask, value, width, [&](int lane, int first) {
    return (lane ^ bits) < first + width ? lane ^ bits : -1;  // an earlier segment is within reach
  });
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = cuda_on_cpu::kLanes, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle("__shfl_up_sync", place, mask, value, width,
                              [&](int lane, int first) { return lane - int(by) >= first ? lane - int(by) : -1; });
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = cuda_on_cpu::kLanes, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle("__shfl_down_sync", place, mask, value, width, [&](int lane, int first) {
    return lane + int(by) < first + width ? lane + int(by) : -1;
  });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::ballot("__ballot_sync", place, mask, predicate);
}

inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::ballot("__any_sync", place, mask, predicate) != 0;
}

inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::ballot("__all_sync", place, mask, !predicate) == 0;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }

template <typename T>
std::enable_if_t<cuda_on_cpu::kHasAtomicAdd<T>, T> atomicAdd(T* address, T value, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::update(address, place, [&](T old) {
    if constexpr (std::is_integral_v<T>)  // wraps around
      return T(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(value));
    else
      return T(old + value);
  });
}

template <typename T>
std::enable_if_t<cuda_on_cpu::kHasAtomicMax<T>, T> atomicMax(T* address, T value, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::update(address, place, [&](T old) { return std::max(old, value); });
}
