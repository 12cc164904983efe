// Files that were damaged in every way: what is found is right, what is not found is a counted
// miss, and a damaged segment loses only what is damaged.
#include <algorithm>
#include <fstream>
#include <map>
#include <memory>

#include <tensorkey/error.h>

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
  std::error_code gone;  // as what SQLite removes may be
  const std::uintmax_t size = fs::file_size(path, gone);
  Bytes bytes(gone ? 0 : size);
  std::ifstream stream(path, std::ios::binary);
  stream.read(bytes.data(), std::ssize(bytes));
  bytes.resize(static_cast<std::size_t>(stream.gcount()));
  return bytes;
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

// What a damaged segment may cost: the entries of which a byte is in these places.
struct Hurt {
  std::uint32_t segment = 0;
  std::uint64_t from = 0;
  std::uint64_t to = ~std::uint64_t{0};
};

// Damages files in a random way, in their bytes.
class Vandal {
 public:
  explicit Vandal(std::uint64_t seed) : random_(seed) {}

  std::uint64_t below(std::uint64_t end) { return end == 0 ? 0 : random_() % end; }

  // At most `used` bytes from the beginning count; returns what was changed.
  Hurt hurt(Bytes& bytes, std::uint64_t used, bool may_cut) {
    const std::uint64_t at = below(below(8) == 0 ? bytes.size() : std::min(used, bytes.size()));
    const std::uint64_t length =
        std::min<std::uint64_t>(1 + below(below(2) == 0 ? 64 : 9000), bytes.size() - at);
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = begin + static_cast<std::ptrdiff_t>(length);
    switch (below(may_cut ? 8 : 5)) {
      case 0: std::fill(begin, end, '\0'); return {.from = at, .to = at + length};
      case 1:
        std::generate(begin, end, [&] { return static_cast<char>(random_()); });
        return {.from = at, .to = at + length};
      case 5: bytes.resize(at); return {.from = at};
      case 6: bytes.erase(begin, end); return {.from = at};
      case 7: {
        const Bytes more(begin, end);
        bytes.insert(bytes.end(), more.begin(), more.end());
        return {.from = 0, .to = 0};
      }
      default:
        if (bytes.empty()) return {.from = 0, .to = 0};
        *begin = static_cast<char>(*begin ^ (1 << below(8)));
        return {.from = at, .to = at + 1};
    }
  }

 private:
  std::mt19937_64 random_;
};

// A directory with three segments, and the last rows of the index still in its log.
class DiskDamage : public ::testing::Test {
 protected:
  DiskDamage() : options_(on_disk(folder_, kSmallest)) {
    // In memory, where it can be: what is tested are the bytes.
    if (mount_) options_.disk = mount_.path() + "/cache";
    {
      std::array<std::unique_ptr<ActivationCache>, 3> caches;  // each has a segment of its own
      for (auto& cache : caches) cache = std::make_unique<ActivationCache>(options_);
      for (std::uint64_t id = 0; id < kIds; ++id) put_value(*caches[id % 3], id);
      for (auto& cache : caches) cache->flush();
    }
    whole_ = read_files(options_.disk);
    for (const auto& [name, bytes] : whole_) {
      const auto id = static_cast<std::uint32_t>(internal::segment_of(name));
      if (id != 0) segments_.push_back(id);
    }
    internal::Index index({.path = options_.disk + "/index.db"});
    for (std::uint64_t id = 0; id < kIds; ++id) {
      places_.push_back(index.find(key_of(id)).value().place);
      std::uint64_t& used = used_[places_.back().segment];
      used = std::max(used, places_.back().offset + places_.back().length);
    }
  }

  [[nodiscard]] bool may_lose(const std::vector<Hurt>& hurts, std::uint64_t id) const {
    const internal::Place& place = places_[id];
    return std::ranges::any_of(hurts, [&](const Hurt& hurt) {
      return hurt.segment == place.segment && hurt.to > hurt.from &&
             (hurt.from < internal::kSegmentHead ||
              (hurt.from < place.offset + place.length && hurt.to > place.offset));
    });
  }

  std::uint32_t any_segment(Vandal& vandal) const {
    return segments_[vandal.below(segments_.size())];
  }

  std::vector<Hurt> hurt_segments(Files& files, Vandal& vandal) const {
    const std::uint32_t one = any_segment(vandal);
    const std::uint32_t two = any_segment(vandal);
    Bytes& bytes = files[internal::segment_name(one)];
    Bytes& others = files[internal::segment_name(two)];
    switch (vandal.below(12)) {
      case 0:
        if (one == two) return {};
        std::swap(bytes, others);
        return {{.segment = one}, {.segment = two}};
      case 1:
        if (one == two) return {};
        others = bytes;
        return {{.segment = two}};
      case 2: files[internal::segment_name(40 + vandal.below(3))] = bytes; return {};
      case 3: files.erase(internal::segment_name(one)); return {{.segment = one}};
      default: {
        Hurt hurt = vandal.hurt(bytes, used_.at(one), true);
        hurt.segment = one;
        return {hurt};
      }
    }
  }

  // Asks for everything; returns what is missing.
  static std::vector<std::uint64_t> ask_all(ActivationCache& cache) {
    std::vector<std::uint64_t> missing;
    for (std::uint64_t id = 0; id < kIds; ++id) {
      const Answer answer = ask(cache, id);
      EXPECT_NE(answer, Answer::kWrong) << id;
      if (answer == Answer::kMissing) missing.push_back(id);
    }
    return missing;
  }

  static void put_back(ActivationCache& cache, const std::vector<std::uint64_t>& missing) {
    for (const std::uint64_t id : missing) put_value(cache, id);
    EXPECT_TRUE(cache.flush(20));
  }

  const Folder folder_;
  const Mount mount_{folder_.path() / "mount", "size=32m"};
  CacheOptions options_;
  Files whole_;
  std::vector<std::uint32_t> segments_;
  std::vector<internal::Place> places_;
  std::map<std::uint32_t, std::uint64_t> used_;  // bytes of a segment
};

TEST_F(DiskDamage, ASegmentLosesOnlyWhatIsDamaged) {
  Vandal vandal(1);
  std::uint64_t lost = 0;
  for (int round = 0; round < times(250, 50'000); ++round) {
    SCOPED_TRACE(round);
    Files files = whole_;
    const std::vector<Hurt> hurts = hurt_segments(files, vandal);
    write_files(options_.disk, files);
    ActivationCache cache(options_);
    const std::vector<std::uint64_t> missing = ask_all(cache);
    for (const std::uint64_t id : missing) ASSERT_TRUE(may_lose(hurts, id)) << id;
    const DiskStats stats = disk_stats(cache);
    ASSERT_EQ(stats.misses, missing.size());
    ASSERT_EQ(stats.corrupt + stats.stale, missing.size());
    ASSERT_EQ(stats.state, "");
    put_back(cache, missing);
    const std::vector<std::uint64_t> still = ask_all(cache);
    ASSERT_TRUE(still.empty()) << still[0];
    ASSERT_LE(disk_bytes(options_.disk), kSmallest);
    lost += missing.size();
    if (HasFailure()) return;
  }
  EXPECT_GT(lost, 250U);
}

TEST_F(DiskDamage, AnIndexLosesNothingToWhoComputesAgain) {
  Vandal vandal(2);
  std::uint64_t rebuilds = 0;
  for (int round = 0; round < times(150, 40'000); ++round) {
    SCOPED_TRACE(round);
    Files files = whole_;
    for (std::uint64_t i = 0; i <= vandal.below(3); ++i) {
      static constexpr std::array kNames{"index.db", "index.db", "index.db-wal", "index.db-shm"};
      Bytes& bytes = files[kNames[vandal.below(4)]];
      vandal.hurt(bytes, bytes.size(), true);
    }
    if (vandal.below(16) == 0) files.erase("index.db-wal");
    if (vandal.below(16) == 0) files.erase("index.db-shm");
    if (vandal.below(16) == 0) files.erase("index.db");
    if (vandal.below(16) == 0) std::swap(files["index.db"], files["index.db-wal"]);
    write_files(options_.disk, files);
    try {
      ActivationCache cache(options_);
      const std::vector<std::uint64_t> missing = ask_all(cache);
      DiskStats stats = disk_stats(cache);
      ASSERT_GE(stats.misses, missing.size());
      put_back(cache, missing);
      ask_all(cache);
      stats = disk_stats(cache);
      rebuilds += stats.rebuilds;
    } catch (const Error& error) {
      // A number that says "newer" is believed.
      ASSERT_EQ(error.code(), ErrorCode::kUnavailable) << error.what();
      ASSERT_NE(std::string(error.what()).find("newer"), std::string::npos) << error.what();
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(rebuilds, 5U);
}

// The same under a process that has everything open.
TEST_F(DiskDamage, FilesInUse) {
  Vandal vandal(3);
  for (int round = 0; round < times(80, 10'000); ++round) {
    SCOPED_TRACE(round);
    write_files(options_.disk, whole_);
    ActivationCache cache(options_);
    if (vandal.below(2) == 0) {
      ASSERT_TRUE(ask_all(cache).empty());
    }
    for (int i = 0; i < 3; ++i) {
      Files files = read_files(options_.disk);
      const std::uint64_t which = vandal.below(5);
      std::string name = internal::segment_name(any_segment(vandal));
      if (which == 3) name = "index.db";
      if (which == 4) name = vandal.below(2) == 0 ? "index.db-wal" : "index.db-shm";
      if (!files.contains(name)) continue;
      Bytes& bytes = files[name];
      // The shared memory of SQLite is mapped: a file that is cut ends whoever has it.
      vandal.hurt(bytes, bytes.size(), which < 3);
      std::fstream stream(options_.disk + "/" + name,
                          std::ios::in | std::ios::out | std::ios::binary);
      stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
      stream.close();
      if (which < 3) fs::resize_file(options_.disk + "/" + name, bytes.size());
      const std::vector<std::uint64_t> missing = ask_all(cache);
      ASSERT_GE(disk_stats(cache).misses, missing.size());
      put_back(cache, missing);
    }
    ask_all(cache);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace tensorkey::test
