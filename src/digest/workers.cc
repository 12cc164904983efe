#include "digest/workers.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace tensorkey::internal {
namespace {

constexpr unsigned kMostByDefault = 8;

unsigned usable_cpus() noexcept {
  cpu_set_t set;
  CPU_ZERO(&set);
  // Fails on machines with more CPUs than a cpu_set_t has bits: more than enough then.
  if (sched_getaffinity(0, sizeof set, &set) != 0) return kMostByDefault;
  return static_cast<unsigned>(std::max(CPU_COUNT(&set), 1));
}

}  // namespace

unsigned worker_count(unsigned asked, std::size_t bytes) noexcept {
  if (bytes < 2 * kBytesPerThread || asked == 1) return 1;
  const unsigned most = asked != 0 ? asked : std::min(usable_cpus(), kMostByDefault);
  return static_cast<unsigned>(std::min<std::size_t>(most, bytes / kBytesPerThread));
}

void run_units(unsigned threads, std::size_t units, void (*work)(void* context, std::size_t unit),
               void* context) {
  std::atomic<std::size_t> next = 0;
  const auto loop = [&]() noexcept {
    for (std::size_t i = next.fetch_add(1, std::memory_order_relaxed); i < units;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      work(context, i);
    }
  };
  std::vector<std::jthread> helpers;
  try {
    helpers.reserve(threads - 1);
    while (helpers.size() + 1 < threads) helpers.emplace_back(loop);
  } catch (const std::system_error&) {  // too many threads
  } catch (const std::bad_alloc&) {
  }
  loop();
}

}  // namespace tensorkey::internal
