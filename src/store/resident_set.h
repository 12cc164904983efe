// What 16 writing threads make of the resident set of the process, beside the bound of the cache.
#pragma once

#include <tensorkey/cache.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include <malloc.h>
#include <unistd.h>

namespace tensorkey::resident {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kLargest = 8 * kMiB;

// Bytes of this process in memory (proc(5), statm).
inline std::size_t resident_set() {
  std::ifstream file("/proc/self/statm");
  std::size_t total = 0;
  std::size_t pages = 0;
  file >> total >> pages;
  return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

// Bytes of an entry, by its key.
struct Mix {
  const char* name;
  double median;
  double sigma;  // of the logarithm; 0: all of one size
  std::size_t keys;
  std::size_t steps;  // of each thread
};

inline std::size_t size_of(const Mix& mix, std::size_t id) {
  std::mt19937_64 random(id);
  const double factor = std::exp(mix.sigma * std::normal_distribution<double>()(random));
  return std::min(kLargest, static_cast<std::size_t>(mix.median * factor) + 1);
}

struct Peak {
  std::size_t resident = 0;  // above what the process had before
  std::size_t counted = 0;   // stats().bytes
  CacheStats last;
};

inline Peak measure(const Mix& mix, std::size_t bound) {
  const std::vector<std::byte> values(kLargest, std::byte{1});
  ::malloc_trim(0);
  const std::size_t before = resident_set();
  ActivationCache cache({.memory = bound});
  std::vector<std::thread> writers;
  for (unsigned thread = 0; thread < 16; ++thread) {
    writers.emplace_back([&, thread] {
      std::mt19937_64 random(thread);
      for (std::size_t step = 0; step < mix.steps; ++step) {
        const std::size_t id = random() % mix.keys;
        const Key key(blake3(std::as_bytes(std::span(&id, 1))));
        if (cache.find(key)) continue;
        const std::size_t bytes = size_of(mix, id);
        const std::array<std::int64_t, 1> shape{static_cast<std::int64_t>(bytes)};
        const TensorParts tensor{.shape = shape, .data = std::span(values).first(bytes)};
        cache.insert({.key = key, .seconds = 1e-3, .tensors = {&tensor, 1}});
      }
    });
  }
  Peak peak;
  std::atomic<bool> done{false};
  std::thread watcher([&] {
    while (!done) {
      peak.resident = std::max(peak.resident, resident_set() - std::min(before, resident_set()));
      peak.counted = std::max(peak.counted, cache.stats().bytes);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  for (std::thread& writer : writers) writer.join();
  done = true;
  watcher.join();
  peak.last = cache.stats();
  return peak;
}

inline constexpr std::array<Mix, 3> kMixes{{
    {"rows of one size, 6 KB", 6'000, 0, 60'000, 12'000},
    {"lognormal, median 8 KB", 8'000, 1.5, 40'000, 12'000},
    {"lognormal, median 200 KB", 200'000, 1.5, 4'000, 2'000},
}};

}  // namespace tensorkey::resident
