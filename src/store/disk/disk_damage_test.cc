// Files that were damaged in every way: what is found is right, what is not found is a counted miss,
// and a damaged segment loses only what is damaged.
#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "store/disk/disk_test_processes.h"
#include "store/disk/index.h"
#include "store/disk/segment.h"

namespace tensorkey::test {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kIds = 90;

using Bytes = std::vector<char>;
using Files = std::map<std::string, Bytes>;

Bytes read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write_file(const fs::path& path, const Bytes& bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

Files read_files(const std::string& folder) {
  Files files;
  for (const auto& each : fs::directory_iterator(folder)) {
    files[each.path().filename().string()] = read_file(each.path());
  }
  return files;
}

void write_files(const std::string& folder, const Files& files) {
  for (const auto& each : fs::directory_iterator(folder)) {
    if (!files.contains(each.path().filename().string())) fs::remove(each.path());
  }
  for (const auto& [name, bytes] : files) write_file(folder + "/" + name, bytes);
}

// A directory with some segments, the last rows of the index still in its log.
class DiskDamage : public ::testing::Test {
 protected:
  void SetUp() override {
    const CacheOptions options = on_disk(folder_, kSmallest);
    for (std::uint64_t part = 0; part < 3; ++part) {
      ActivationCache cache(options);
      // While it holds its segment another one is begun.
      for (std::uint64_t id = part; id < kIds; id += 3) put_value(cache, id);
      cache.flush();
      const Child other([&] {
        ActivationCache second(options);
        put_value(second, 1000 + part);
        second.flush();
        return 0;
      });
      Child(std::move(const_cast<Child&>(other))).wait();
      for (std::uint64_t id = 200 + part; id < 290; id += 3) put_value(cache, id);
    }
  }

  const Folder folder_;
};

}  // namespace
}  // namespace tensorkey::test
