// Finds races in shared memory, whatever the schedule, and reads of shared memory that nothing wrote.
//
// The compiler's -fsanitize=thread calls a function at every memory access; here are ours in place of its library's.
// Per byte of shared memory they keep the last write and the reads since. Two accesses of two threads must have a
// __syncthreads or, within a warp, a __syncwarp between them; a running cp.async owns the bytes that it fills. Without
// that flag this file does nothing.
#pragma once
#include "shared_memory.h"

#if defined(__SANITIZE_THREAD__)
#define CUDA_ON_CPU_NOT_WATCHED __attribute__((no_sanitize("thread"), noinline))

namespace cuda_on_cpu {

struct Access {
  int thread;
  uint32_t barriers, step;  // the block's and the lane's logical time
  bool atomic;
  Place place;       // of what the stand-in does in a kernel's name; else null, and
  const void* code;  // the address of the instruction
};

struct Byte {
  bool written = false;
  int filled_by = -1;  // thread whose cp.async is under way
  Access write{};
  std::vector<Access> reads;  // since the last write
};

inline std::vector<Byte> dynamic_bytes, static_bytes;
inline bool watching = false;  // off while this file's own code runs, which is watched as any other

// At the start of a block.
inline void forget_accesses(const Range& dynamic_shared) {
  watching = false;
  dynamic_bytes.assign(dynamic_shared.size, {});
  static_bytes.assign(static_shared().size, {});
  watching = true;
}

inline Byte* find(const void* address) {
  auto p = static_cast<const unsigned char*>(address);
  const Range dynamic_shared = Block::current().shared;
  if (dynamic_shared.holds(p)) return &dynamic_bytes[p - dynamic_shared.begin];
  if (static_shared().holds(p)) return &static_bytes[p - static_shared().begin];
  return nullptr;
}

inline std::string where(const Access& access) {
  if (access.place.file) return text(access.place);
  Dl_info library;
  dladdr(access.code, &library);
  char offset[32];  // call.py makes a file and line of it
  snprintf(offset, sizeof offset, "<code %zx>", size_t(access.code) - size_t(library.dli_fbase) - 1);
  return offset;
}

// Whether the program, not the schedule, puts `earlier` before `now`, an access of the running thread.
inline bool comes_before(const Access& earlier, const Access& now) {
  if (earlier.thread == now.thread || earlier.barriers < now.barriers || (earlier.atomic && now.atomic)) return true;
  const Thread& t = Block::current().running();
  return earlier.thread / kLanes == t.warp() && earlier.step <= t.seen[earlier.thread % kLanes];
}

inline void fail_access(const char* verb, const Access& now, const std::string& why) {
  Block::current().fail("race: thread " + std::to_string(now.thread) + " " + verb + " shared memory at " + where(now) +
                        ", " + why);
}

inline void fail_unordered(const char* verb, const Access& now, const char* other_verb, const Access& other) {
  fail_access(verb, now,
              "which thread " + std::to_string(other.thread) + " " + other_verb + " at " + where(other) +
                  ", with no barrier between them");
}

inline void check_and_keep(Byte& byte, bool writes, const Access& now) {
  const char* verb = writes ? "writes" : "reads";
  if (byte.filled_by >= 0)
    fail_access(verb, now, "which a cp.async of thread " + std::to_string(byte.filled_by) + " is still filling");
  if (byte.written && !comes_before(byte.write, now)) fail_unordered(verb, now, "wrote", byte.write);
  if (writes) {
    for (const Access& read : byte.reads)
      if (!comes_before(read, now)) fail_unordered(verb, now, "read", read);
    byte.written = true, byte.write = now;
    byte.reads.clear();
    return;
  }
  if (!byte.written) fail_access(verb, now, "which is uninitialised: nothing in this block wrote it");
  auto by_same = [&](const Access& read) { return read.thread == now.thread; };
  auto same = std::find_if(byte.reads.begin(), byte.reads.end(), by_same);
  if (same == byte.reads.end())
    byte.reads.push_back(now);
  else
    *same = now;
}

inline void check_and_keep(const void* address, size_t bytes, bool writes, bool atomic, Place place, const void* code) {
  Block& block = Block::current();
  const Thread& t = block.running();
  const Access now{t.index, block.barriers, t.seen[t.lane()], atomic, place, code};
  for (size_t i = 0; i < bytes; ++i)
    if (Byte* byte = find(static_cast<const char*>(address) + i)) check_and_keep(*byte, writes, now);
}

CUDA_ON_CPU_NOT_WATCHED inline void note(const void* address, size_t bytes, bool writes, bool atomic, Place place,
                                         const void* code) {
  if (!watching) return;
  watching = false;
  if (Block::inside_a_thread() && find(address)) check_and_keep(address, bytes, writes, atomic, place, code);
  watching = true;
}

// What the stand-in reads and writes in a kernel's name.
inline void note_read(const void* address, size_t bytes, Place place) {
  note(address, bytes, false, false, place, nullptr);
}

inline void note_atomic(const void* address, size_t bytes, Place place) {
  note(address, bytes, false, true, place, nullptr);
  note(address, bytes, true, true, place, nullptr);
}

// A cp.async writes from its start to its wait, and nobody else may touch what it fills.
inline void note_copy(const void* address, size_t bytes, Place place, bool ends) {
  for (size_t i = 0; ends && i < bytes; ++i) find(static_cast<const char*>(address) + i)->filled_by = -1;
  note(address, bytes, true, false, place, nullptr);
  for (size_t i = 0; !ends && i < bytes; ++i)
    find(static_cast<const char*>(address) + i)->filled_by = Block::current().running().index;
}

}  // namespace cuda_on_cpu

#include "compiler_callbacks.h"

#else
#define CUDA_ON_CPU_NOT_WATCHED

namespace cuda_on_cpu {
inline void forget_accesses(const Range&) {}
inline void note_read(const void*, size_t, Place) {}
inline void note_atomic(const void*, size_t, Place) {}
inline void note_copy(const void*, size_t, Place, bool) {}
}  // namespace cuda_on_cpu
#endif
