// What the tests of the disk tier share: a directory of their own, and caches over it.
#pragma once

#include <tensorkey/cache.h>

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "store/cache_test_entries.h"

namespace tensorkey::test {

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "tensorkey-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  [[nodiscard]] std::filesystem::path path() const { return path_; }
  [[nodiscard]] std::string cache() const { return (path_ / "cache").string(); }

 private:
  std::filesystem::path path_;
};

constexpr std::uint64_t kSmallest = std::uint64_t{4} << 20;

// Without memory, so that every hit is one of the disk.
inline CacheOptions on_disk(const Folder& folder, std::uint64_t limit = std::uint64_t{64} << 20) {
  return {.memory = 0, .disk = folder.cache(), .disk_limit = limit};
}

inline DiskStats disk_stats(const ActivationCache& cache) { return cache.stats().disk.value(); }

}  // namespace tensorkey::test
