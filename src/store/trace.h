// The access trace: one line an access, "key size cost time", for tensorkey-simulate
// (docs/eviction.md). Thread-safe; costs one relaxed load while it is off.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "base/fork.h"
#include "policy/policy.h"

namespace tensorkey::internal {

class Trace {
 public:
  // See ActivationCache::trace.
  void open(const std::string& path, std::size_t limit);

  [[nodiscard]] bool on() const noexcept { return on_.load(std::memory_order_relaxed); }

  void write(const Request& request);

 private:
  struct Close {
    void operator()(std::FILE* file) const noexcept { static_cast<void>(std::fclose(file)); }
  };

  std::atomic<bool> on_{false};
  // Guarded by mutex_.
  std::unique_ptr<std::FILE, Close> file_;
  std::size_t left_ = 0;
  std::chrono::steady_clock::time_point start_;
  ForkMutex mutex_{[this] { forget(); }};

  void forget() noexcept;
};

}  // namespace tensorkey::internal
