// The kernels of faults.cuh by name, right or faulty; and intrinsics.cuh.
#include "faults.cuh"

#include "driver.h"
#include "intrinsics.cuh"

using namespace fastseg;
using cuda_on_cpu::Launch;

namespace {

using Kernel = void (*)(const float*, float*);

struct Pair {
  const char* name;
  Kernel right, faulty;
  Launch right_launch = {1, kThreads, kThreads * sizeof(float)};
  Launch faulty_launch = right_launch;
};

constexpr size_t kOptIn = 100 * 1024;

// A kernel is named once here and once in faults.cuh.
#define PAIR(name, ...) {#name, name<false>, name<true>, ##__VA_ARGS__}
const Pair kPairs[] = {
    PAIR(missing_syncthreads),
    PAIR(missing_syncthreads_before_reuse),
    PAIR(missing_syncwarp),
    PAIR(shuffle_as_barrier),
    PAIR(missing_copy_wait),
    PAIR(missing_copy_commit),
    PAIR(missing_barrier_after_copy_wait),
    PAIR(read_outside_global),
    PAIR(write_outside_global),
    PAIR(read_outside_dynamic_shared),
    PAIR(write_outside_dynamic_shared),
    PAIR(read_outside_static_shared),
    PAIR(write_outside_static_shared),
    PAIR(misaligned_vector_load),
    PAIR(divergent_syncthreads),
    PAIR(divergent_shuffle),
    PAIR(lane_outside_its_mask),
    PAIR(shuffle_from_an_absent_lane),
    PAIR(uninitialised_dynamic_shared),
    PAIR(uninitialised_static_shared),
    PAIR(uninitialised_register),
    PAIR(sum_without_atomics),
    PAIR(failed_assertion),
    {"too_large_a_block", unbounded<false>, unbounded<true>, {1, 1024}, {1, 1025}},
    {"larger_than_launch_bounds", bounded<false>, bounded<true>, {1, kThreads}, {1, kThreads + 1}},
    {"too_deep_a_grid", unbounded<false>, unbounded<true>, {dim3(1, 2, 3), kThreads}, {dim3(1, 1, 65536), kThreads}},
    {"empty_grid", unbounded<false>, unbounded<true>, {1, kThreads}, {0, kThreads}},
    {"shared_memory_not_allowed",
     unbounded<false>,
     unbounded<true>,
     {1, kThreads, kOptIn, kOptIn},
     {1, kThreads, kOptIn}},
    {"too_much_shared_memory",
     unbounded<false>,
     unbounded<true>,
     {1, kThreads, 227 * 1024, 227 * 1024},
     {1, kThreads, 228 * 1024, 228 * 1024}},
};

}  // namespace

DRIVER run(const char* name, int64_t faulty, const cuda_on_cpu::Array& in, const cuda_on_cpu::Array& out) {
  return cuda_on_cpu::report([&] {
    for (const Pair& pair : kPairs) {
      if (strcmp(pair.name, name)) continue;
      return cuda_on_cpu::launch(faulty ? pair.faulty_launch : pair.right_launch, faulty ? pair.faulty : pair.right,
                                 in.as<float>(), out.as<float>());
    }
    throw std::runtime_error("driver: no kernel " + std::string(name));
  });
}

DRIVER intrinsics(const cuda_on_cpu::Array& in, const cuda_on_cpu::Array& out, const cuda_on_cpu::Array& counters) {
  return cuda_on_cpu::report(
      [&] { cuda_on_cpu::launch({1, 32}, intrinsics_kernel, in.as<int>(), out.as<int>(), counters.as<int>()); });
}
