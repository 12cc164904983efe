// Rows in memory alone until it is known whether they are true.
#include <tensorkey/memo.h>

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "store/disk/disk_test_folder.h"

namespace tensorkey {
namespace {

using test::Folder;

std::vector<Key> keys_of(const std::vector<int>& ids) {
  std::vector<std::string> names;
  names.reserve(ids.size());
  for (const int id : ids) names.push_back(std::to_string(id));
  std::vector<OwnId> own;
  for (const std::string& name : names) own.push_back({.type = OwnId::Type::kInt, .data = name});
  std::vector<Key> keys(ids.size());
  own_keys(own, keys);
  return keys;
}

MemoBatch look_up(Memo& memo, const std::vector<int>& ids, Keep keep = Keep::kPending) {
  return memo.lookup(keys_of(ids), {}, keep);
}

// Gives `value` as the answer to all missing rows.
void answer(MemoBatch& batch, std::int32_t value) {
  const std::size_t count = batch.missing().size();
  const std::vector<std::int32_t> values(count, value);
  const std::array<std::int64_t, 1> shape{static_cast<std::int64_t>(count)};
  const TensorView output = view(values.data(), shape);
  batch.insert(0, count, {&output, 1}, 0.5);
}

void compute(Memo& memo, const std::vector<int>& ids, std::int32_t value,
             Keep keep = Keep::kPending) {
  MemoBatch batch = look_up(memo, ids, keep);
  answer(batch, value);
}

// The answers that there are now; 0 where there is none.
std::vector<std::int32_t> known(ActivationCache& cache, const std::vector<int>& ids) {
  std::vector<std::int32_t> values;
  for (const Key& key : keys_of(ids)) {
    std::int32_t value = 0;
    const EntryPtr entry = cache.find(key);
    if (entry) std::memcpy(&value, entry->tensor(0).data.data(), sizeof value);
    values.push_back(value);
  }
  return values;
}

using Values = std::vector<std::int32_t>;

CacheOptions both_tiers(const Folder& folder) {
  return {.memory = 1 << 20, .disk = folder.cache(), .disk_limit = std::uint64_t{64} << 20};
}

std::uint64_t written(ActivationCache& cache) {
  EXPECT_TRUE(cache.flush());
  return cache.stats().disk.value().insertions;
}

TEST(MemoPending, RowsAreHitHereAndWrittenWhenTheyAreSettled) {
  const Folder folder;
  const auto cache = std::make_shared<ActivationCache>(both_tiers(folder));
  Memo memo(cache);
  compute(memo, {1, 2}, 7);
  compute(memo, {2, 3}, 7);
  EXPECT_EQ(memo.pending(), 3U);
  EXPECT_TRUE(look_up(memo, {1, 2, 3}).missing().empty());
  EXPECT_TRUE(look_up(memo, {1, 2, 3}, Keep::kNow).missing().empty());
  EXPECT_EQ(written(*cache), 0U);
  {
    ActivationCache other(both_tiers(folder));
    EXPECT_EQ(known(other, {1, 2, 3}), (Values{0, 0, 0}));
  }
  EXPECT_EQ(memo.settle(true), 3U);
  EXPECT_EQ(memo.pending(), 0U);
  EXPECT_EQ(written(*cache), 3U);
  EXPECT_EQ(memo.settle(true), 0U);
  EXPECT_EQ(memo.settle(false), 0U);
  ActivationCache other(both_tiers(folder));
  EXPECT_EQ(known(other, {1, 2, 3}), (Values{7, 7, 7}));
  EXPECT_EQ(known(*cache, {1, 2, 3}), (Values{7, 7, 7}));
}

TEST(MemoPending, WhatIsDroppedIsGoneAndWhatWasStoredOtherwiseIsNot) {
  const Folder folder;
  const auto cache = std::make_shared<ActivationCache>(both_tiers(folder));
  Memo memo(cache);
  Memo other(cache);
  compute(memo, {1}, 7, Keep::kNow);
  compute(memo, {2}, 8);
  compute(other, {3}, 9);
  EXPECT_EQ(memo.settle(false), 1U);
  EXPECT_EQ(known(*cache, {1, 2, 3}), (Values{7, 0, 9}));
  compute(memo, {2}, 10);
  EXPECT_EQ(memo.settle(true), 1U);
  EXPECT_EQ(other.settle(true), 1U);
  EXPECT_EQ(written(*cache), 3U);
  ActivationCache later(both_tiers(folder));
  EXPECT_EQ(known(later, {1, 2, 3}), (Values{7, 10, 9}));
}

// The row was confirmed by another Memo before it is dropped here: from memory alone.
TEST(MemoPending, ADropLeavesWhatIsBelowMemory) {
  const Folder folder;
  const auto cache = std::make_shared<ActivationCache>(both_tiers(folder));
  Memo memo(cache);
  compute(memo, {1}, 7);
  {
    const auto elsewhere = std::make_shared<ActivationCache>(both_tiers(folder));
    Memo other(elsewhere);
    compute(other, {1}, 8, Keep::kNow);
    EXPECT_EQ(written(*elsewhere), 1U);
  }
  cache->refresh();
  EXPECT_EQ(memo.settle(false), 1U);
  EXPECT_EQ(known(*cache, {1}), Values{8});
}

TEST(MemoPending, WithoutATierBelowRowsStayOrGo) {
  const auto cache = std::make_shared<ActivationCache>(CacheOptions{.memory = 1 << 20});
  Memo memo(cache);
  compute(memo, {1, 2}, 7);
  EXPECT_EQ(memo.settle(true), 2U);
  compute(memo, {3}, 8);
  EXPECT_EQ(memo.pending(), 1U);
  EXPECT_FALSE(memo.pending_full());
  EXPECT_EQ(memo.settle(false), 1U);
  EXPECT_EQ(known(*cache, {1, 2, 3}), (Values{7, 7, 0}));
}

// Weights that were found changed while a batch was on its way: its rows are its own.
TEST(MemoPending, RowsOfABatchFromBeforeADropAreNotKept) {
  const Folder folder;
  const auto cache = std::make_shared<ActivationCache>(both_tiers(folder));
  Memo memo(cache);
  MemoBatch batch = look_up(memo, {1, 2});
  EXPECT_EQ(memo.settle(false), 0U);
  answer(batch, 7);
  std::array<std::int32_t, 2> out{};
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(out));
  batch.assemble({&bytes, 1});
  EXPECT_EQ(out, (std::array<std::int32_t, 2>{7, 7}));
  EXPECT_EQ(memo.pending(), 0U);
  EXPECT_EQ(memo.settle(true), 0U);
  EXPECT_EQ(known(*cache, {1, 2}), (Values{0, 0}));

  // That what was there was confirmed says nothing of what comes: it stays pending.
  MemoBatch next = look_up(memo, {1});
  EXPECT_EQ(memo.settle(true), 0U);
  answer(next, 8);
  EXPECT_EQ(memo.pending(), 1U);
}

TEST(MemoPending, WhatWasNotConfirmedDoesNotOutliveTheMemo) {
  const Folder folder;
  const auto cache = std::make_shared<ActivationCache>(both_tiers(folder));
  std::optional<MemoBatch> batch;
  {
    Memo memo(cache);
    compute(memo, {1}, 7);
    batch = look_up(memo, {2});
  }
  answer(*batch, 7);
  EXPECT_EQ(known(*cache, {1, 2}), (Values{0, 0}));
  EXPECT_EQ(written(*cache), 0U);
}

TEST(MemoPending, BytesThatWaitAreBounded) {
  const Folder folder;
  const auto cache = std::make_shared<ActivationCache>(both_tiers(folder));
  Memo memo(cache);
  constexpr std::size_t kRow = std::size_t{8} << 20;
  const std::vector<std::byte> row(kRow);
  const std::array<std::int64_t, 2> shape{1, static_cast<std::int64_t>(kRow)};
  const TensorView output{.data = row.data(), .dtype = DType::kUInt8, .shape = shape};
  for (int id = 0; id < 20; ++id) {
    EXPECT_EQ(memo.pending_full(), id >= 8) << id;
    MemoBatch batch = look_up(memo, {id});
    batch.insert(0, 1, {&output, 1}, 0.5);
    EXPECT_EQ(batch.entry(0).tensor(0).data.size(), kRow);
  }
  EXPECT_EQ(memo.pending(), 16U);
  EXPECT_EQ(memo.stats().rejections, 4U);
  EXPECT_EQ(memo.settle(false), 16U);
  EXPECT_FALSE(memo.pending_full());
}

// Rows carry the secret under which they were looked up until they are written.
TEST(MemoPending, EntriesAreWrittenUnderTheirSecrets) {
  const Folder folder;
  const std::array<std::uint8_t, 32> secret{1, 2, 3};
  {
    Memo memo(std::make_shared<ActivationCache>(both_tiers(folder)));
    MemoBatch batch = memo.lookup(keys_of({1}), {.secret = secret}, Keep::kPending);
    answer(batch, 7);
    compute(memo, {2}, 8);
    EXPECT_EQ(memo.settle(true), 2U);
    EXPECT_EQ(written(memo.cache()), 2U);
  }
  Memo memo(std::make_shared<ActivationCache>(both_tiers(folder)));
  EXPECT_TRUE(memo.lookup(keys_of({1}), {.secret = secret}).missing().empty());
  EXPECT_TRUE(look_up(memo, {2}).missing().empty());
  EXPECT_EQ(memo.missing(keys_of({1, 2, 3})), std::vector<MissingRow>{{.position = 2}});
  Memo another(std::make_shared<ActivationCache>(both_tiers(folder)));
  EXPECT_EQ(look_up(another, {1}).missing().size(), 1U);
}

// Whatever threads do: after the last drop nothing of what they computed is left.
TEST(MemoPending, ThreadsMissNoDrop) {
  const auto cache = std::make_shared<ActivationCache>(CacheOptions{.memory = 1 << 20});
  Memo memo(cache);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&memo, thread] {
      for (int round = 0; round < 200; ++round) {
        MemoBatch batch = look_up(memo, {round % 50, 100 + round * 3 + thread});
        do {
          if (!batch.missing().empty()) answer(batch, 7);
        } while (batch.wait() != MemoBatch::Wait::kDone);
      }
    });
  }
  std::thread settler([&] {
    while (!stop) {
      static_cast<void>(memo.settle(false));
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  settler.join();
  static_cast<void>(memo.settle(false));
  EXPECT_EQ(memo.pending(), 0U);
  EXPECT_EQ(cache->stats().entries, 0U);
}

}  // namespace
}  // namespace tensorkey
