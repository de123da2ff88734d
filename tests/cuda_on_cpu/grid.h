// Launches a kernel: checks the limits of sm_80 and later, then runs its blocks one after the other.
#pragma once
#include "races.h"

namespace cuda_on_cpu {

constexpr size_t kUsualShared = 48 * 1024;  // without cudaFuncSetAttribute
constexpr size_t kMostShared = 227 * 1024;  // sm_90, with it
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocksYZ = 65535;

// __launch_bounds__(n) is compiled to n one-byte instructions ahead of the kernel and this list of where they begin.
extern "C" const unsigned char* const __start___patchable_function_entries[]
    __attribute__((weak, visibility("hidden")));
extern "C" const unsigned char* const __stop___patchable_function_entries[] __attribute__((weak, visibility("hidden")));

// The kernel's __launch_bounds__, or kMostThreads if it has none.
template <typename Kernel>
unsigned launch_bounds(Kernel* kernel) {
  constexpr unsigned char kNop = 0x90;
  auto code = reinterpret_cast<const unsigned char*>(kernel);
  for (auto entry = __start___patchable_function_entries; entry != __stop___patchable_function_entries; ++entry)
    if (*entry < code && std::all_of(*entry, code, [](unsigned char byte) { return byte == kNop; }))
      return unsigned(code - *entry);
  return kMostThreads;
}

struct Launch {
  dim3 grid, block;
  size_t shared = 0;                     // dynamic, in bytes
  size_t allowed_shared = kUsualShared;  // what the host code asks for by cudaFuncSetAttribute
};

template <typename T>
void limit(const char* what, T asked, T most) {
  if (asked > most)
    throw std::runtime_error("launch: " + std::string(what) + " " + std::to_string(asked) + " is over the limit of " +
                             std::to_string(most));
}

inline unsigned seed = 0;

template <typename... Parameters, typename... Arguments>
void launch(const Launch& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
  const dim3 &grid = shape.grid, &block = shape.block;
  if (!(grid.x && grid.y && grid.z && block.x && block.y && block.z))
    throw std::runtime_error("launch: an empty grid or block");
  limit("block.z", block.z, 64u);
  limit("a block's threads", uint64_t(block.x) * block.y * block.z, uint64_t(kMostThreads));
  limit("a block's threads by __launch_bounds__", block.x * block.y * block.z, launch_bounds(kernel));
  limit("grid.x", grid.x, 0x7fffffffu);
  limit("grid.y", grid.y, kMostBlocksYZ);
  limit("grid.z", grid.z, kMostBlocksYZ);
  limit("shared memory by cudaFuncSetAttribute", shape.allowed_shared, kMostShared);
  limit("shared memory", shape.shared, shape.allowed_shared);

  Schedule schedule(seed);
  Block threads(grid, block, schedule);
  for (int index : schedule.order(grid.x * grid.y * grid.z)) {
    const unsigned i = unsigned(index);
    std::unique_ptr<unsigned char, decltype(&free)> shared(static_cast<unsigned char*>(malloc(shape.shared)), &free);
    memset(shared.get(), kPoison, shape.shared);
    std::fill_n(static_shared().begin, static_shared().size, kPoison);
    threads.shared = {shared.get(), shape.shared};
    forget_accesses(threads.shared);
    threads.run({i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)}, [&] { kernel(arguments...); });
  }
}

}  // namespace cuda_on_cpu
