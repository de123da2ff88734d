// Where shared memory lies, and its poison.
//
// Dynamic shared memory is a heap block of exactly the launch's size, so that AddressSanitizer sees its ends. Static
// shared memory is thread_local: the driver library's thread-local segment then holds nothing else and can be found and
// filled as a whole. The AddressSanitizer build makes it ordinary statics instead, which get red zones, and no poison.
#pragma once
#include <dlfcn.h>
#include <link.h>

#include <cstdlib>

#include "block.h"

namespace cuda_on_cpu {

constexpr unsigned char kPoison = 0xff;  // NaN in every float format, -1 in integers

// Makes the segment exist, and exist for this operating-system thread, before it is looked for.
inline thread_local volatile char segment_exists;

inline Range static_shared() {
#if defined(__SANITIZE_ADDRESS__)
  return {nullptr, 0};
#else
  static const Range found = [] {
    segment_exists = 1;
    Range result{nullptr, 0};
    auto visit = [](dl_phdr_info* library, size_t, void* out) {
      if (!library->dlpi_tls_data) return 0;
      for (int i = 0; i < library->dlpi_phnum; ++i) {
        if (library->dlpi_phdr[i].p_type != PT_TLS) continue;
        Range segment{static_cast<unsigned char*>(library->dlpi_tls_data), library->dlpi_phdr[i].p_memsz};
        if (segment.holds(const_cast<char*>(&segment_exists))) *static_cast<Range*>(out) = segment;
      }
      return 0;
    };
    dl_iterate_phdr(visit, &result);
    return result;
  }();
  return found;
#endif
}

inline bool is_shared([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  return true;  // statics cannot be told from other memory there, and it finds what is out of bounds by itself
#else
  return static_shared().holds(address, bytes) || Block::current().shared.holds(address, bytes);
#endif
}

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(Block::current().shared.begin);
}

}  // namespace cuda_on_cpu
