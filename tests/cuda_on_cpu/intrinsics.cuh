// One warp; what each lane gets from each warp intrinsic and bit function, for numpy to compare.
#pragma once
#include "cuda/device.h"

namespace fastseg {

constexpr int kResults = 14;

__global__ void intrinsics_kernel(const int* in, int* out, int* counters) {  // (32,), (32, kResults), (2,)
  const int lane = threadIdx.x, value = in[lane];
  const unsigned all = 0xffffffffu;
  const int results[kResults] = {
      __shfl_sync(all, value, 5),
      __shfl_sync(all, value, lane + 3, 8),
      __shfl_xor_sync(all, value, 12),
      __shfl_xor_sync(all, value, 12, 8),
      __shfl_up_sync(all, value, 3),
      __shfl_up_sync(all, value, 3, 8),
      __shfl_down_sync(all, value, 3),
      __shfl_down_sync(all, value, 3, 8),
      int(__ballot_sync(all, value % 3 == 0)),
      __any_sync(all, value == in[7]) + 2 * __any_sync(all, value == -1),
      __all_sync(all, value >= 0) + 2 * __all_sync(all, value == in[7]),
      __popc(value),
      __ffs(value),
      __clz(value),
  };
  for (int i = 0; i < kResults; ++i) out[lane * kResults + i] = results[i];
  atomicAdd(&counters[0], value);
  atomicMax(&counters[1], value);
}

}  // namespace fastseg
