// A block of threads: who waits where, and who runs next.
//
// Threads meet in collectives (barriers, shuffles, votes, mma). A meeting ends when everyone it names has come. The
// scheduler runs a thread until it has to wait, a warp until all of it waits, and only then touches the next warp:
// whatever a missing barrier leaves unordered drifts apart as far as the program lets it.
#pragma once
#include <vector_types.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace cuda_on_cpu {

constexpr int kLanes = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// A line of device code. As a default argument it is the line of the call.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

inline std::string text(const Place& place) {
  const char* slash = strrchr(place.file, '/');
  return std::string(slash ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

struct Range {
  unsigned char* begin;
  size_t size;
  bool holds(const void* address, size_t bytes = 1) const {
    auto p = static_cast<const unsigned char*>(address);
    return p >= begin && p + bytes <= begin + size;
  }
};

// Serves every choice of "who is next": seed 0 first to last, seed 1 last to first, the others at random.
class Schedule {
 public:
  explicit Schedule(unsigned seed) : seed_(seed), random_(seed) {}
  std::vector<int> order(int count) {
    std::vector<int> result(count);
    std::iota(result.begin(), result.end(), 0);
    if (seed_ == 1) std::reverse(result.begin(), result.end());
    if (seed_ > 1) std::shuffle(result.begin(), result.end(), random_);
    return result;
  }
  // Whether a cp.async lands at once or at its wait. Late shows a missing wait, early a buffer reused too soon.
  bool copy_lands_at_once() { return seed_ == 1 || (seed_ > 1 && random_() % 2); }

 private:
  unsigned seed_;
  std::mt19937 random_;
};

// One execution of one collective, and what each lane brings to it.
struct Meeting {
  const char* name;
  Place place;
  int warp;       // kWholeBlock for block barriers
  unsigned mask;  // lanes of the warp that have to come
  bool orders_memory;
  std::vector<int> arrived;    // thread indices
  unsigned arrived_lanes = 0;  // of a warp's meeting
  struct alignas(16) Luggage {
    unsigned char bytes[48];
  };
  std::array<Luggage, kLanes> luggage;
  static constexpr int kWholeBlock = -1;
};

struct PendingCopy {
  void* shared;
  std::array<unsigned char, 16> bytes;
  bool landed;
  Place place;
};

struct Thread {
  int index = 0;
  uint3 position{};
  bool exited = false, waits = false;
  std::shared_ptr<Meeting> meeting;  // the last one
  // Logical time, for races.h: seen[l] is the last step of lane l that a __syncwarp put before this thread's present.
  std::array<uint32_t, kLanes> seen{};
  std::vector<PendingCopy> copies;               // cp.async since the last commit
  std::vector<std::vector<PendingCopy>> groups;  // committed, oldest first
  Fiber fiber;

  int warp() const { return index / kLanes; }
  int lane() const { return index % kLanes; }
};

class Block {
 public:
  dim3 grid_size, size;
  uint3 position{};
  Range shared{};         // dynamic shared memory
  uint32_t barriers = 0;  // block barriers so far: the block's logical time

  Block(dim3 grid_size, dim3 size, Schedule& schedule)
      : grid_size(grid_size), size(size), schedule(schedule), threads_(size.x * size.y * size.z) {}

  Schedule& schedule;

  // Runs every thread of one block to its end; throws what a thread reports.
  void run(uint3 at, std::function<void()> kernel) {
    position = at, kernel_ = std::move(kernel), barriers = 0, error_.clear(), open_.clear();
    for (int i = 0; i < int(threads_.size()); ++i) {
      Thread& t = threads_[i];
      t.index = i;
      t.position = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
      t.exited = t.waits = false;
      t.seen.fill(0);
      t.seen[t.lane()] = 1;
      t.copies.clear(), t.groups.clear();
      t.fiber.start(&thread_body);
    }
    exited_ = 0;
    exited_lanes_.assign(warps(), 0);
    for (int i = int(threads_.size()); i < warps() * kLanes; ++i) exited_lanes_[i / kLanes] |= 1u << i % kLanes;
    Block* outer = current_;
    current_ = this;
    for (bool progress = true; progress && error_.empty();) {
      progress = false;
      for (int warp : schedule.order(warps())) progress |= run_warp(warp);
    }
    running_ = nullptr, current_ = outer;
    if (error_.empty() && std::any_of(threads_.begin(), threads_.end(), [](auto& t) { return !t.exited; }))
      error_ = "deadlock: " + who_waits_where();
    if (error_.empty()) return;
    throw std::runtime_error(error_ + " [block " + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
                             std::to_string(at.z) + "]");
  }

  static Block& current() { return *current_; }
  static bool inside_a_thread() { return current_ && current_->running_; }
  Thread& running() { return *running_; }
  Thread& thread(int index) { return threads_[index]; }

  // Ends the launch with a message, from inside a thread.
  [[noreturn]] void fail(const std::string& message) {
    error_ = message;
    for (;;) running_->fiber.suspend();
  }

  // The running thread takes part in a collective; returns when all have come.
  Meeting& meet(const char* name, Place place, int warp, unsigned mask, bool orders_memory,
                const void* luggage = nullptr, size_t bytes = 0) {
    Thread& t = *running_;
    if (warp != Meeting::kWholeBlock && !(mask >> t.lane() & 1))
      fail(std::string(name) + " at " + text(place) + ": lane " + std::to_string(t.lane()) + " is not in its own mask");
    auto same = [&](const std::shared_ptr<Meeting>& m) {
      return !strcmp(m->name, name) && !strcmp(m->place.file, place.file) && m->place.line == place.line &&
             m->warp == warp && m->mask == mask;
    };
    auto found = std::find_if(open_.begin(), open_.end(), same);
    if (found == open_.end())
      found =
          open_.insert(found, std::make_shared<Meeting>(Meeting{name, place, warp, mask, orders_memory, {}, 0, {}}));
    t.meeting = *found;
    t.meeting->arrived.push_back(t.index);
    t.meeting->arrived_lanes |= 1u << t.lane();
    if (bytes) memcpy(t.meeting->luggage[t.lane()].bytes, luggage, bytes);
    t.waits = true;
    end_complete_meetings();
    while (t.waits) t.fiber.suspend();
    return *t.meeting;
  }

 private:
  static void thread_body() {
    Fiber::entered();
    Block& block = *current_;
    block.kernel_();
    Thread& t = *block.running_;
    t.exited = true;
    ++block.exited_;
    block.exited_lanes_[t.warp()] |= 1u << t.lane();
    block.end_complete_meetings();  // those that waited for nobody but this thread
    for (;;) t.fiber.suspend();
  }

  // Runs the lanes of a warp as far as they can go; false if none could.
  bool run_warp(int warp) {
    const int first = warp * kLanes, lanes = std::min(kLanes, int(threads_.size()) - first);
    bool any = false;
    for (bool progress = true; progress;) {
      progress = false;
      for (int lane : schedule.order(lanes)) {
        Thread& t = threads_[first + lane];
        if (t.exited || t.waits) continue;
        any = progress = true;
        running_ = &t;
        t.fiber.resume();
        if (!error_.empty()) return false;
      }
    }
    return any;
  }

  bool is_complete(const Meeting& m) {
    if (m.warp == Meeting::kWholeBlock) return m.arrived.size() + exited_ == threads_.size();
    return !(m.mask & ~(m.arrived_lanes | exited_lanes_[m.warp]));
  }

  void end_complete_meetings() {
    for (size_t i = 0; i < open_.size();) {
      if (!is_complete(*open_[i])) {
        ++i;
        continue;
      }
      if (open_[i]->orders_memory) advance_time(*open_[i]);
      for (int index : open_[i]->arrived) threads_[index].waits = false;
      open_.erase(open_.begin() + i);
    }
  }

  void advance_time(const Meeting& m) {
    if (m.warp == Meeting::kWholeBlock) {
      ++barriers;
      return;
    }
    std::array<uint32_t, kLanes> seen{};
    for (int index : m.arrived)
      for (int lane = 0; lane < kLanes; ++lane) seen[lane] = std::max(seen[lane], threads_[index].seen[lane]);
    for (int index : m.arrived) {
      threads_[index].seen = seen;
      ++threads_[index].seen[threads_[index].lane()];
    }
  }

  std::string who_waits_where() {
    std::string result;
    for (const auto& m : open_)
      result += std::string(m->name) + " at " + text(m->place) + " has threads " + ranges(m->arrived) + "; ";
    std::vector<int> exited;
    for (const auto& t : threads_)
      if (t.exited) exited.push_back(t.index);
    return result + (exited.empty() ? "none has exited" : "exited: " + ranges(exited));
  }

  static std::string ranges(std::vector<int> indices) {
    std::sort(indices.begin(), indices.end());
    std::string result;
    for (size_t i = 0; i < indices.size();) {
      size_t end = i;
      while (end + 1 < indices.size() && indices[end + 1] == indices[end] + 1) ++end;
      result += (result.empty() ? "" : ",") + std::to_string(indices[i]);
      if (end > i) result += "-" + std::to_string(indices[end]);
      i = end + 1;
    }
    return result;
  }

  static inline Block* current_ = nullptr;
  int warps() const { return (int(threads_.size()) + kLanes - 1) / kLanes; }

  Thread* running_ = nullptr;
  std::vector<Thread> threads_;
  size_t exited_ = 0;
  std::vector<unsigned> exited_lanes_;  // per warp; lanes that the block is too small for count as exited
  std::vector<std::shared_ptr<Meeting>> open_;
  std::function<void()> kernel_;
  std::string error_;
};

}  // namespace cuda_on_cpu
