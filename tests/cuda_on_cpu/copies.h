// cp.async: a copy that is under way until its group is waited for.
#pragma once
#include "races.h"

namespace cuda_on_cpu {

inline void check_16_bytes(const char* name, Place place, const void* address, const char* which) {
  if (reinterpret_cast<uintptr_t>(address) % 16)
    Block::current().fail(std::string(name) + " at " + text(place) + ": the " + which +
                          " address is not 16-byte aligned");
}

inline void check_shared(const char* name, Place place, const void* address) {
  check_16_bytes(name, place, address, "shared");
  if (!is_shared(address, 16))
    Block::current().fail(std::string(name) + " at " + text(place) + ": not an address in shared memory");
}

CUDA_ON_CPU_NOT_WATCHED inline void land(PendingCopy& copy) {
  if (!copy.landed) memcpy(copy.shared, copy.bytes.data(), 16);
  copy.landed = true;
}

CUDA_ON_CPU_NOT_WATCHED inline void cp_async_16(void* shared, const void* global, bool valid,
                                                Place place = Place::here()) {
  check_shared("cp.async", place, shared);
  check_16_bytes("cp.async", place, global, "global");
  PendingCopy copy{shared, {}, false, place};
  if (valid) memcpy(copy.bytes.data(), global, 16);
#if defined(__SANITIZE_ADDRESS__)
  unsigned char discarded[16];  // so that a bad shared address is reported here and not at the wait
  memcpy(discarded, shared, 16);
  asm volatile("" ::"m"(discarded));
#endif
  note_copy(shared, 16, place, false);
  Block& block = Block::current();
  if (block.schedule.copy_lands_at_once()) land(copy);
  block.running().copies.push_back(copy);
}

inline void cp_async_commit() {
  Thread& t = Block::current().running();
  t.groups.push_back(std::move(t.copies));
  t.copies.clear();
}

template <int kUnderWay>
void cp_async_wait() {
  auto& groups = Block::current().running().groups;
  while (groups.size() > kUnderWay) {
    for (PendingCopy& copy : groups.front()) {
      land(copy);
      note_copy(copy.shared, 16, copy.place, true);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace cuda_on_cpu
