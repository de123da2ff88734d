// Loops over torch's threads.
#pragma once
#include <atomic>
#include <new>

#include "tensor.h"

namespace fastseg {

// work(begin, end) over [0, count) in chunks of at least `grain`. Scratch memory may run out inside: that is told after
// the loop, since an exception that leaves torch's loop loses its words.
template <typename Work>
void parallel_for(int64_t count, int64_t grain, const Work& work) {
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    try {
      work(begin, end);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  STD_TORCH_CHECK(!out_of_memory, "fastseg: not enough memory for a thread's scratch space");
}

}  // namespace fastseg
