#include <tensorkey/cache.h>

#include <gtest/gtest.h>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <tensorkey/entry_format.h>
#include <tensorkey/error.h>

#include "store/cache_test_entries.h"

namespace tensorkey {
namespace {

using namespace test;

TEST(Entry, HoldsItsParts) {
  const std::array<float, 6> values{1, 2, 3, 4, 5, 6};
  const std::array<std::int64_t, 2> shape{2, 3};
  const std::array<std::int64_t, 1> none{0};
  const std::array tensors{
      TensorParts{.name = "mean",
                  .dtype = DType::kFloat32,
                  .shape = shape,
                  .strides = Strides::kFirstDimFastest,
                  .data = std::as_bytes(std::span(values))},
      TensorParts{.name = "nothing", .dtype = DType::kInt8, .shape = none},
  };
  const EntryPtr entry =
      make_entry({.key = key_of(1), .input = key_of(2), .seconds = 0.5, .tensors = tensors});
  EXPECT_EQ(entry->key(), key_of(1));
  EXPECT_EQ(entry->input(), key_of(2));
  EXPECT_EQ(entry->seconds(), 0.5);
  ASSERT_EQ(entry->tensor_count(), 2U);
  const TensorParts mean = entry->tensor(0);
  EXPECT_EQ(mean.name, "mean");
  EXPECT_EQ(mean.dtype, DType::kFloat32);
  EXPECT_EQ(mean.strides, Strides::kFirstDimFastest);
  EXPECT_TRUE(std::ranges::equal(mean.shape, shape));
  EXPECT_TRUE(std::ranges::equal(mean.data, tensors[0].data));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mean.data.data()) % 16, 0U);
  EXPECT_EQ(entry->tensor(1).name, "nothing");
  EXPECT_TRUE(entry->tensor(1).data.empty());
  EXPECT_GE(entry->footprint(), sizeof values + 64);
}

TEST(Entry, BadPartsAreRefused) {
  const std::array<std::byte, 4> data{};
  const auto with = [&](std::vector<std::int64_t> shape, double seconds = 0) {
    const TensorParts tensor{.shape = shape, .data = data};
    return make_entry({.key = key_of(1), .seconds = seconds, .tensors = {&tensor, 1}});
  };
  EXPECT_TRUE(with({4}));
  EXPECT_THROW(with({5}), Error);
  EXPECT_THROW(with({-4}), Error);
  EXPECT_THROW(with({std::int64_t{1} << 62, 16}), Error);
  EXPECT_THROW(with(std::vector<std::int64_t>(65, 1)), Error);
  EXPECT_THROW(with({4}, -1), Error);
  EXPECT_THROW(with({4}, std::numeric_limits<double>::quiet_NaN()), Error);
}

TEST(ActivationCache, FindsWhatWasInsertedAndKeepsTheFirst) {
  ActivationCache cache({.memory = kMiB});
  EXPECT_FALSE(cache.find(key_of(1)));
  expect_entry(put(cache, 1), 1);
  const EntryPtr again = put(cache, 1, 5);
  EXPECT_EQ(again->tensor(0).data.size(), 100U);
  expect_entry(cache.find(key_of(1)), 1);
  std::array<std::byte, 100> values;
  EXPECT_TRUE(cache.read(key_of(1), values));
  EXPECT_EQ(values[99], std::byte{1});
  EXPECT_FALSE(cache.read(key_of(1), std::span(values).first(99)));
  EXPECT_TRUE(cache.contains(key_of(1)));
  const CacheStats stats = cache.stats();
  EXPECT_EQ(stats.entries, 1U);
  EXPECT_EQ(stats.insertions, 1U);
  EXPECT_EQ(stats.hits, 2U);
  EXPECT_EQ(stats.misses(), 2U);
  EXPECT_EQ(stats.lookups(), 4U);
  EXPECT_GE(stats.bytes, stats.metadata + again->footprint());
}

TEST(ActivationCache, BadArguments) {
  EXPECT_THROW(ActivationCache({.memory = 1000}), Error);
  EXPECT_THROW(ActivationCache({.ttl = -1}), Error);
  ActivationCache cache;
  std::vector<Key> keys(2);
  std::vector<EntryPtr> room(1);
  EXPECT_THROW(cache.find(keys, room), Error);
  EXPECT_THROW(cache.resize(0), Error);
}

TEST(ActivationCache, EntryLargerThanTheBoundIsRejectedAndEvictsNothing) {
  ActivationCache cache({.memory = kMiB});
  put(cache, 1);
  EXPECT_FALSE(put(cache, 2, 2 * kMiB));
  EXPECT_TRUE(cache.contains(key_of(1)));
  EXPECT_EQ(cache.stats().rejections, 1U);
  EXPECT_EQ(cache.stats().evictions, 0U);
}

TEST(ActivationCache, AnyMixOfCallsGivesTheRightValuesWithinTheBound) {
  constexpr std::size_t kBound = kMiB;
  ActivationCache cache({.memory = kBound});
  std::mt19937 random(3);
  std::map<std::uint64_t, std::size_t> pins;
  for (int step = 0; step < 30'000; ++step) {
    const std::uint64_t id = random() % 2000;
    switch (random() % 20) {
      case 0:
        cache.remove(key_of(id));
        pins.erase(id);
        break;
      case 1:
        if (pins.size() < 20 && cache.pin(key_of(id))) pins[id] = 1;
        break;
      case 2:
        if (cache.unpin(key_of(id))) pins.erase(id);
        break;
      case 3:
        if (random() % 100 == 0) {
          cache.purge(random() % 7);
          std::erase_if(pins,
                        [&](const auto& item) { return !cache.contains(key_of(item.first)); });
        }
        break;
      default:
        if (const EntryPtr entry = cache.find(key_of(id))) {
          expect_entry(entry, id);
        } else {
          put(cache, id, 10 + id % 600 * 3, id % 7);
        }
    }
    const CacheStats stats = cache.stats();
    ASSERT_LE(stats.bytes, kBound);
  }
  for (const auto& [id, unused] : pins) EXPECT_TRUE(cache.contains(key_of(id)));
  std::size_t bytes = 0;
  for (const EntryInfo& info : cache.snapshot()) bytes += info.bytes;
  const CacheStats stats = cache.stats();
  EXPECT_GE(stats.bytes, stats.metadata + bytes);
  EXPECT_GT(stats.metadata + bytes, kBound / 2);
  EXPECT_EQ(stats.entries, cache.snapshot().size());
  EXPECT_GT(stats.evictions, 0U);
  cache.clear();
  EXPECT_EQ(cache.stats().bytes, cache.stats().metadata);
  EXPECT_EQ(cache.stats().entries, 0U);
}

TEST(ActivationCache, AnEntryLivesAsLongAsItIsHeldAndCounts) {
  EntryPtr held;
  {
    ActivationCache cache({.memory = kMiB});
    put(cache, 1, 400'000);
    held = cache.find(key_of(1));
    cache.remove(key_of(1));
    EXPECT_GE(cache.stats().bytes, 400'000U);
    EXPECT_FALSE(cache.find(key_of(1)));
    // There is no room for what the caller holds as well.
    EXPECT_FALSE(put(cache, 2, 800'000));
    expect_entry(held, 1);
    held = nullptr;
    EXPECT_TRUE(put(cache, 2, 800'000));
    held = cache.find(key_of(2));
  }
  expect_entry(held, 2);
}

TEST(ActivationCache, ResizeEvictsBeforeItReturns) {
  ActivationCache cache({.memory = 4 * kMiB});
  for (std::uint64_t id = 0; id < 100; ++id) put(cache, id, 30'000);
  EXPECT_EQ(cache.stats().entries, 100U);
  cache.resize(kMiB);
  EXPECT_LE(cache.stats().bytes, kMiB);
  EXPECT_GT(cache.stats().entries, 20U);
  cache.resize(4 * kMiB);
  for (std::uint64_t id = 0; id < 100; ++id) put(cache, id, 30'000);
  EXPECT_EQ(cache.stats().entries, 100U);
}

TEST(ActivationCache, PurgeTakesOneScope) {
  ActivationCache cache({.memory = kMiB});
  const std::uint64_t a = scope_id("a");
  const std::uint64_t b = scope_id("b");
  EXPECT_NE(a, b);
  for (std::uint64_t id = 0; id < 30; ++id) put(cache, id, 10, id % 3 == 0 ? a : b);
  EXPECT_EQ(cache.purge(a), 10U);
  EXPECT_EQ(cache.stats().entries, 20U);
  EXPECT_FALSE(cache.contains(key_of(0)));
  EXPECT_TRUE(cache.contains(key_of(1)));
}

TEST(ActivationCache, EntriesExpireUnlessPinned) {
  ActivationCache cache({.memory = kMiB, .ttl = 0.05});
  put(cache, 1);
  put(cache, 2);
  EXPECT_TRUE(cache.pin(key_of(2)));
  // No upper bound on the time is assumed, only that it passes.
  while (cache.contains(key_of(1))) std::this_thread::yield();
  EXPECT_FALSE(cache.find(key_of(1)));
  EXPECT_EQ(cache.stats().misses_expired, 1U);
  expect_entry(cache.find(key_of(2)), 2);
  EXPECT_EQ(cache.snapshot().size(), 1U);
  put(cache, 1, 50);
  EXPECT_GE(cache.stats().expirations, 1U);
}

TEST(ActivationCache, MissesSayWhy) {
  ActivationCache cache({.memory = kMiB});
  EXPECT_FALSE(cache.find(key_of(1)));
  put(cache, 1);
  cache.remove(key_of(1));
  for (std::uint64_t id = 10; id < 300; ++id) {
    EXPECT_FALSE(cache.find(key_of(id)));
    put(cache, id, 10'000);
  }
  const CacheStats before = cache.stats();
  EXPECT_EQ(before.misses_new, 291U);
  EXPECT_EQ(before.misses_evicted, 0U);
  EXPECT_NEAR(static_cast<double>(before.distinct), 291.0, 15.0);
  std::uint64_t gone = 0;
  for (std::uint64_t id = 290; id < 300; ++id) gone += !cache.find(key_of(id));
  EXPECT_EQ(cache.stats().misses_evicted, gone);
  cache.reset_stats();
  EXPECT_EQ(cache.stats().lookups(), 0U);
  EXPECT_EQ(cache.stats().insertions, 0U);
  EXPECT_GT(cache.stats().entries, 0U);
}

// What the policy is for; its own tests say more. Half the data fit but for the metadata, and no
// policy can have more hits than fit: LRU has 0 and 15 %.
TEST(ActivationCache, EpochsOverTwiceTheBoundHitWhatFits) {
  constexpr std::uint64_t kRows = 2000;
  for (const bool shuffled : {false, true}) {
    ActivationCache cache({.memory = kRows * 1024});
    std::vector<std::uint64_t> order(kRows);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(4);
    for (int epoch = 0; epoch < 20; ++epoch) {
      if (shuffled) std::ranges::shuffle(order, random);
      for (const std::uint64_t id : order) {
        if (!cache.find(key_of(id))) put(cache, id, 1800);
      }
    }
    const CacheStats stats = cache.stats();
    const double fit = static_cast<double>(stats.entries) / kRows;
    EXPECT_GT(fit, 0.4);
    const double hits = static_cast<double>(stats.hits) / static_cast<double>(stats.lookups());
    EXPECT_GT(hits, 0.95 * fit * 19 / 20) << (shuffled ? "shuffled" : "in order");
  }
}

TEST(ActivationCache, TraceHasALineForEachAccessUpToItsLimit) {
  const auto folder = std::filesystem::temp_directory_path() / ("tk" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const std::string path = folder / "trace";
  ActivationCache cache({.memory = kMiB});
  cache.trace(path, 200);
  for (int i = 0; i < 20; ++i) {
    if (!cache.find(key_of(7))) put(cache, 7);
  }
  cache.trace("");
  std::ifstream file(path);
  std::string line;
  std::size_t lines = 0;
  while (std::getline(file, line)) {
    ++lines;
    EXPECT_EQ(std::ranges::count(line, ' '), 3) << line;
  }
  EXPECT_GE(lines, 3U);
  EXPECT_LE(std::filesystem::file_size(path), 200U);
  struct stat status {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600);
  std::filesystem::create_symlink(path, folder / "link");
  EXPECT_THROW(cache.trace(folder / "link"), Error);
  EXPECT_THROW(cache.trace(folder / "no" / "folder"), Error);
  std::filesystem::remove_all(folder);
}

TEST(ActivationCache, LoadsEncodedEntriesAndCountsTheCorrupt) {
  ActivationCache cache({.memory = kMiB});
  std::vector<std::byte> bytes = encode_entry(*entry_of(1));
  EXPECT_TRUE(cache.load(bytes));
  expect_entry(cache.find(key_of(1)), 1);
  cache.clear();
  bytes[100] ^= std::byte{4};
  EXPECT_FALSE(cache.load(bytes));
  EXPECT_FALSE(cache.load({}));
  const Digest key = blake3({});
  EXPECT_FALSE(cache.load(encode_entry(*entry_of(1)), 0, key));
  EXPECT_TRUE(cache.load(encode_entry(*entry_of(1), key), 0, key));
  EXPECT_EQ(cache.stats().corrupt, 3U);
  EXPECT_EQ(cache.stats().entries, 1U);
}

}  // namespace
}  // namespace tensorkey
