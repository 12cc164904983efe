// Threads for one large call: started by it and joined before it returns. There is no pool, so a
// process may fork at any time. Internal.
#pragma once

#include <cstddef>

namespace tensorkey::internal {

// A thread is worth its start only if it has this much to digest.
inline constexpr std::size_t kBytesPerThread = std::size_t{4} << 20;

// How many threads, the caller's included, to digest `bytes` bytes with when at most `asked` were
// asked for; 0: one for each usable CPU (sched_getaffinity), at most 8.
[[nodiscard]] unsigned worker_count(unsigned asked, std::size_t bytes) noexcept;

// Calls work(context, i) once for each i < units, from up to `threads` threads, the caller's
// included; a thread that cannot be started is done without. work must not throw.
void run_units(unsigned threads, std::size_t units, void (*work)(void* context, std::size_t unit),
               void* context);

template <class Work>
void run_units(unsigned threads, std::size_t units, Work work) {
  run_units(
      threads, units, [](void* context, std::size_t unit) { (*static_cast<Work*>(context))(unit); },
      &work);
}

}  // namespace tensorkey::internal
