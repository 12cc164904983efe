// One process and its directory: what goes in comes out, now and in the next run, within the bound.
#include <tensorkey/error.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <thread>

#include "store/disk/disk_test_folder.h"

namespace tensorkey::test {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> segment_files(const Folder& folder) {
  std::vector<fs::path> files;
  for (const auto& file : fs::directory_iterator(folder.cache())) {
    if (file.path().extension() == ".seg") files.push_back(file.path());
  }
  std::ranges::sort(files);
  return files;
}

TEST(Disk, WhatWasStoredIsFoundNowAndInTheNextRun) {
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder));
    for (std::uint64_t id = 0; id < 100; ++id) put(cache, id, 1000);
    for (std::uint64_t id = 0; id < 100; ++id) expect_entry(cache.find(key_of(id)), id);
    EXPECT_FALSE(cache.find(key_of(100)));
  }
  ActivationCache cache(on_disk(folder));
  for (std::uint64_t id = 0; id < 100; ++id) {
    EXPECT_TRUE(cache.contains(key_of(id)));
    expect_entry(cache.find(key_of(id)), id);
  }
  EXPECT_FALSE(cache.contains(key_of(100)));
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.hits, 100);
  EXPECT_EQ(stats.stored_hits, 100);
  cache.reset_stats();
  EXPECT_EQ(cache.stats().stored_hits, 0);
  EXPECT_EQ(stats.bound, 0);
  EXPECT_EQ(stats.bytes, 0);
  ASSERT_TRUE(stats.disk);
  EXPECT_EQ(stats.disk->entries, 100);
  EXPECT_EQ(stats.disk->state, "");
  EXPECT_EQ(stats.disk->errors, 0);
  EXPECT_LE(stats.disk->bytes, stats.disk->bound);
}

TEST(Disk, EveryPartOfAnEntryComesBack) {
  const Folder folder;
  const std::array<std::int64_t, 2> dims{2, 3};
  std::vector<std::byte> floats(24, std::byte{7});
  std::vector<std::byte> bools(1, std::byte{1});
  const std::array tensors{TensorParts{.name = "x",
                                       .dtype = DType::kFloat32,
                                       .shape = dims,
                                       .strides = Strides::kFirstDimFastest,
                                       .data = floats},
                           TensorParts{.name = "mask", .dtype = DType::kBool, .data = bools}};
  const EntryParts parts{.key = key_of(1), .input = key_of(2), .seconds = 0.25, .tensors = tensors};
  {
    ActivationCache cache(on_disk(folder));
    cache.insert(parts, scope_id("s"));
  }
  ActivationCache cache(on_disk(folder));
  const EntryPtr entry = cache.find(key_of(1));
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->input(), key_of(2));
  EXPECT_EQ(entry->seconds(), 0.25);
  ASSERT_EQ(entry->tensor_count(), 2U);
  EXPECT_EQ(entry->tensor(0).name, "x");
  EXPECT_EQ(entry->tensor(0).strides, Strides::kFirstDimFastest);
  EXPECT_TRUE(std::ranges::equal(entry->tensor(0).shape, dims));
  EXPECT_TRUE(std::ranges::equal(entry->tensor(1).data, bools));
  EXPECT_EQ(cache.purge(scope_id("other")), 0U);
  EXPECT_EQ(cache.purge(scope_id("s")), 1U);
  EXPECT_FALSE(cache.find(key_of(1)));
}

TEST(Disk, MemoryIsFilledFromDisk) {
  const Folder folder;
  CacheOptions options = on_disk(folder);
  options.memory = kMiB;
  {
    ActivationCache cache(options);
    put(cache, 1);
  }
  ActivationCache cache(options);
  expect_entry(cache.find(key_of(1)), 1);
  expect_entry(cache.find(key_of(1)), 1);
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.hits, 2);
  EXPECT_EQ(stats.stored_hits, 1);
  EXPECT_EQ(stats.entries, 1U);
}

TEST(Disk, ValuesAreReadIntoTheCallersMemory) {
  const Folder folder;
  for (const std::size_t bytes : {0U, 1U, 15U, 16U, 100U, 1U << 20, (1U << 20) + 7U}) {
    SCOPED_TRACE(bytes);
    const std::uint64_t id = bytes + 1;
    {
      ActivationCache cache(on_disk(folder));
      put(cache, id, bytes);
    }
    ActivationCache cache(on_disk(folder));
    std::vector<std::byte> out(bytes);
    EXPECT_TRUE(cache.read(key_of(id), out));
    EXPECT_TRUE(
        std::ranges::all_of(out, [&](std::byte b) { return b == static_cast<std::byte>(id); }));
    std::vector<std::byte> other(bytes + 1);
    EXPECT_FALSE(cache.read(key_of(id), other));
    std::vector<std::byte> much(bytes + 16);
    EXPECT_FALSE(cache.read(key_of(id), much));
    EXPECT_FALSE(cache.read(key_of(0), out));
  }
}

TEST(Disk, RowsOfATableAreEntriesOfTheirOwn) {
  const Folder folder;
  std::vector<float> values(300 * 8);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const std::array<std::int64_t, 2> shape{300, 8};
  const TensorView rows = view(values.data(), shape);
  std::vector<Key> keys(300);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = key_of(i);
  {
    ActivationCache cache(on_disk(folder));
    EXPECT_EQ(cache.insert_rows(keys, rows, 0.5, 7), 300U);
    EXPECT_THROW(cache.insert_rows(std::span(keys).first(299), rows), Error);
    EXPECT_THROW(cache.insert_rows(keys, view(values.data(), std::span(shape).first(0))), Error);
    EXPECT_EQ(cache.insert_rows({}, view(values.data(), std::array<std::int64_t, 2>{0, 8})), 0U);
  }
  ActivationCache cache(on_disk(folder));
  std::vector<float> out(values.size());
  std::array<bool, 300> found{};
  cache.read(keys, std::as_writable_bytes(std::span(out)), found);
  EXPECT_TRUE(std::ranges::all_of(found, [](bool each) { return each; }));
  EXPECT_EQ(out, values);
  const EntryPtr entry = cache.find(keys[299]);
  EXPECT_EQ(entry->seconds(), 0.5);
  EXPECT_TRUE(std::ranges::equal(entry->tensor(0).shape, std::array<std::int64_t, 1>{8}));
  EXPECT_EQ(cache.purge(7), 300U);
  ActivationCache memory({.memory = kMiB});
  EXPECT_EQ(memory.insert_rows(keys, rows), 300U);
  EXPECT_TRUE(memory.find(keys[299]));
}

TEST(Disk, RemovedEntriesStayRemoved) {
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder));
    for (std::uint64_t id = 0; id < 10; ++id) put(cache, id, 100, id % 2);
    EXPECT_TRUE(cache.remove(key_of(0)));  // perhaps still in the queue
    cache.flush();
    EXPECT_TRUE(cache.remove(key_of(2)));
    EXPECT_FALSE(cache.remove(key_of(2)));
    EXPECT_EQ(cache.purge(1), 5U);
    EXPECT_FALSE(cache.find(key_of(0)));
    EXPECT_FALSE(cache.find(key_of(2)));
    EXPECT_FALSE(cache.find(key_of(3)));
  }
  ActivationCache cache(on_disk(folder));
  for (std::uint64_t id = 0; id < 10; ++id) {
    EXPECT_EQ(cache.contains(key_of(id)), id == 4 || id == 6 || id == 8) << id;
  }
  put(cache, 2);  // it may come back
  expect_entry(cache.find(key_of(2)), 2);
  cache.clear();
  EXPECT_FALSE(cache.find(key_of(2)));
  EXPECT_EQ(disk_stats(cache).entries, 0);
  put(cache, 2);
  expect_entry(cache.find(key_of(2)), 2);
}

TEST(Disk, WhatWasPurgedMayBeStoredAgainAtOnce) {
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder));
    for (std::uint64_t id = 0; id < 10; ++id) put(cache, id, 100, 7);
    EXPECT_TRUE(cache.flush());
    EXPECT_EQ(cache.purge(7), 10U);
    for (std::uint64_t id = 0; id < 10; ++id) put(cache, id, 100, 7);  // nobody looked it up before
  }
  ActivationCache cache(on_disk(folder));
  for (std::uint64_t id = 0; id < 10; ++id) expect_entry(cache.find(key_of(id)), id);
}

TEST(Disk, TheSmallestBoundHoldsAtEveryMoment) {
  const Folder folder;
  ActivationCache cache(on_disk(folder, kSmallest));
  std::mt19937_64 random(1);
  for (std::uint64_t id = 0; id < 3000; ++id) {
    // Ever dearer, so that all of them are worth more than what is there.
    put(cache, id, 64 + random() % 20'000);
    if (id % 50 != 0) continue;
    ASSERT_LE(disk_stats(cache).bytes, kSmallest) << id;
    cache.flush();
    ASSERT_LE(disk_stats(cache).bytes, kSmallest) << id;
  }
  const DiskStats stats = disk_stats(cache);
  EXPECT_GT(stats.entries, 100);
  EXPECT_GT(stats.bytes, kSmallest / 2);
  EXPECT_EQ(stats.errors, 0) << stats.state;
  EXPECT_GT(stats.rejections, 0);
}

TEST(Disk, ManySmallEntriesFillTheBoundWithTheirIndex) {
  const Folder folder;
  ActivationCache cache(on_disk(folder, kSmallest));
  for (std::uint64_t id = 0; id < 20'000; ++id) put(cache, id, 16);
  cache.flush();
  const DiskStats stats = disk_stats(cache);
  EXPECT_LE(stats.bytes, kSmallest);
  EXPECT_GT(stats.entries, 2000);
  EXPECT_EQ(stats.errors, 0) << stats.state;
  EXPECT_EQ(stats.insertions + stats.rejections + stats.dropped, 20'000);
}

TEST(Disk, AnEntryLargerThanASegmentHasOneOfItsOwn) {
  const Folder folder;
  ActivationCache cache(on_disk(folder, kSmallest));
  put(cache, 1, kMiB);
  put(cache, 2, 5 * kMiB);  // than the bound
  cache.flush();
  expect_entry(cache.find(key_of(1)), 1);
  EXPECT_FALSE(cache.find(key_of(2)));
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(stats.dropped + stats.rejections, 1);
  EXPECT_LE(stats.bytes, kSmallest);
}

TEST(Disk, ALimitStaysWithTheDirectory) {
  const Folder folder;
  {
    const ActivationCache cache(on_disk(folder, 2 * kSmallest));
    EXPECT_EQ(disk_stats(cache).bound, 2 * kSmallest);
  }
  {
    ActivationCache cache(on_disk(folder, 0));
    EXPECT_EQ(disk_stats(cache).bound, 2 * kSmallest);
    for (std::uint64_t id = 0; id < 600; ++id) put(cache, id, 10'000);
  }
  const ActivationCache cache(on_disk(folder, kSmallest));
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(stats.bound, kSmallest);
  EXPECT_LE(stats.bytes, kSmallest);
  EXPECT_GT(stats.entries, 100);
}

TEST(Disk, EntriesGrowOld) {
  const Folder folder;
  CacheOptions options = on_disk(folder);
  {
    ActivationCache cache(options);
    put(cache, 1);
  }
  options.ttl = 1000;
  {
    ActivationCache cache(options);
    expect_entry(cache.find(key_of(1)), 1);
  }
  options.ttl = 1;
  std::this_thread::sleep_for(std::chrono::milliseconds(2100));
  ActivationCache cache(options);
  EXPECT_FALSE(cache.find(key_of(1)));
  EXPECT_EQ(disk_stats(cache).expired, 1);
  put(cache, 1);
  expect_entry(cache.find(key_of(1)), 1);
}

TEST(Disk, ASecretIsAskedFor) {
  const Folder folder;
  CacheOptions options = on_disk(folder);
  options.secret.emplace().fill(7);
  {
    ActivationCache cache(options);
    put(cache, 1);
  }
  {
    ActivationCache cache(options);
    expect_entry(cache.find(key_of(1)), 1);
    std::vector<std::byte> out(100);
    EXPECT_TRUE(cache.read(key_of(1), out));
  }
  for (const bool keyed : {true, false}) {
    CacheOptions other = on_disk(folder);
    if (keyed) other.secret.emplace().fill(8);
    ActivationCache cache(other);
    EXPECT_FALSE(cache.find(key_of(1)));
    EXPECT_EQ(disk_stats(cache).corrupt, 1);
  }
}

TEST(Disk, OptionsOutOfRange) {
  const Folder folder;
  EXPECT_THROW(ActivationCache({.memory = 0}), Error);
  EXPECT_THROW(ActivationCache(on_disk(folder, kSmallest - 1)), Error);
  EXPECT_THROW(ActivationCache({.disk_limit = kSmallest}), Error);
  CacheOptions options = on_disk(folder);
  options.lease_timeout = std::nan("");
  EXPECT_THROW(ActivationCache{options}, Error);
  EXPECT_FALSE(fs::exists(folder.cache()));
}

// --- Damage: a bad entry is a miss, and only it.

void overwrite(const fs::path& file, std::uint64_t offset, std::span<const char> bytes) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

TEST(Disk, FlippedBitsAreMissesAndTheRestIsFound) {
  constexpr std::uint64_t kEntries = 40;
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder));
    for (std::uint64_t id = 0; id < kEntries; ++id) put(cache, id, 500);
  }
  std::mt19937_64 random(2);
  const fs::path file = segment_files(folder).at(0);
  std::vector<char> whole(60'000);
  std::ifstream(file, std::ios::binary)
      .read(whole.data(), static_cast<std::streamsize>(whole.size()));
  std::uint64_t corrupt = 0;
  for (int round = 0; round < 200; ++round) {
    const std::uint64_t at = 64 + random() % (kEntries * 700);
    const char flipped = static_cast<char>(whole[at] ^ (1 << random() % 8));
    overwrite(file, at, {&flipped, 1});
    CacheOptions options = on_disk(folder);
    ActivationCache cache(options);
    std::uint64_t missing = 0;
    for (std::uint64_t id = 0; id < kEntries; ++id) {
      const EntryPtr entry = cache.find(key_of(id));
      if (entry) {
        expect_entry(entry, id);
      } else {
        ++missing;
        put(cache, id, 500);  // computed again
      }
    }
    ASSERT_LE(missing, 1U);
    ASSERT_EQ(missing, disk_stats(cache).corrupt);
    corrupt += missing;
    overwrite(file, at, {&whole[at], 1});
  }
  EXPECT_GT(corrupt, 10U);
}

TEST(Disk, AFileThatIsCutShortSwappedOrGoneIsMisses) {
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder, kSmallest));
    for (std::uint64_t id = 0; id < 150; ++id) put(cache, id, 10'000);
  }
  const std::vector<fs::path> files = segment_files(folder);
  ASSERT_GE(files.size(), 5U);
  fs::resize_file(files[0], 20'000);
  fs::rename(files[1], folder.path() / "swap");
  fs::rename(files[2], files[1]);
  fs::rename(folder.path() / "swap", files[2]);
  fs::remove(files[3]);
  ActivationCache cache(on_disk(folder, 0));
  std::uint64_t found = 0;
  for (std::uint64_t id = 0; id < 150; ++id) {
    const EntryPtr entry = cache.find(key_of(id));
    if (entry) expect_entry(entry, id);
    found += entry ? 1U : 0U;
  }
  EXPECT_GT(found, 20U);
  EXPECT_LT(found, 70U);
  const DiskStats stats = disk_stats(cache);
  EXPECT_EQ(stats.corrupt + stats.stale, 150 - found);
  for (std::uint64_t id = 0; id < 150; ++id) put(cache, id, 10'000);
  cache.flush();
  cache.flush();
  EXPECT_LE(disk_stats(cache).bytes, kSmallest);
}

TEST(Disk, ADamagedIndexIsMadeAnewFromTheRecords) {
  const Folder folder;
  {
    ActivationCache cache(on_disk(folder));
    for (std::uint64_t id = 0; id < 500; ++id) put(cache, id, 300, 5);
    cache.flush();
    EXPECT_TRUE(cache.remove(key_of(77)));
  }
  const fs::path index = fs::path(folder.cache()) / "index.db";
  fs::remove(fs::path(folder.cache()) / "index.db-wal");
  overwrite(index, 0, std::vector<char>(4096, 'x'));
  ActivationCache cache(on_disk(folder, 0));
  for (std::uint64_t id = 0; id < 500; ++id) {
    if (id == 77) {
      EXPECT_FALSE(cache.find(key_of(id)));
    } else {
      expect_entry(cache.find(key_of(id)), id);
    }
  }
  EXPECT_EQ(disk_stats(cache).rebuilds, 1);
  EXPECT_TRUE(fs::exists(fs::path(folder.cache()) / "index.db.damaged"));
  EXPECT_EQ(cache.purge(5), 499U);
}

TEST(Disk, TheDirectoryMayGoWhileItIsInUse) {
  const Folder folder;
  ActivationCache cache(on_disk(folder));
  put(cache, 1);
  cache.flush();
  fs::remove_all(folder.cache());
  put(cache, 2);
  cache.flush();
  EXPECT_FALSE(cache.find(key_of(3)));
  static_cast<void>(cache.find(key_of(1)));  // its segment may be open still
  EXPECT_FALSE(cache.remove(key_of(3)));
  const DiskStats stats = disk_stats(cache);
  EXPECT_GT(stats.errors, 0);
  EXPECT_NE(stats.state, "");
  EXPECT_FALSE(fs::exists(folder.cache()));
}

TEST(Disk, APackHoldsWhatTheCacheHeld) {
  const Folder folder;
  const std::string pack = (folder.path() / "latents.tkpack").string();
  {
    CacheOptions options = on_disk(folder);
    options.memory = kMiB;
    ActivationCache cache(options);
    for (std::uint64_t id = 0; id < 50; ++id) put(cache, id, 100, id % 2);
    EXPECT_EQ(cache.pack(pack, 1), 25U);
    EXPECT_EQ(cache.pack(pack), 50U);
  }
  ActivationCache cache({.memory = 0, .pack = pack});
  for (std::uint64_t id = 0; id < 50; ++id) expect_entry(cache.find(key_of(id)), id);
  EXPECT_FALSE(cache.find(key_of(50)));
  EXPECT_FALSE(put(cache, 50));
  EXPECT_FALSE(cache.remove(key_of(1)));
  std::vector<std::byte> out(100);
  EXPECT_TRUE(cache.read(key_of(3), out));
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.hits, 51);
  ASSERT_TRUE(stats.pack);
  EXPECT_EQ(stats.pack->entries, 50);
  EXPECT_EQ(stats.pack->hits, 51);
  EXPECT_THROW(ActivationCache({.pack = folder.cache() + "/nothing"}), Error);
}

}  // namespace
}  // namespace tensorkey::test
