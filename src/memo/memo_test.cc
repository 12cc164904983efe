#include <tensorkey/memo.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

namespace tensorkey {
namespace {

using Shape = std::vector<std::int64_t>;
constexpr std::size_t kWidth = 3;

// A batch of rows of three floats that say which they are, and the layer x -> 2x + 1 in chunks.
struct Rows {
  explicit Rows(const std::vector<int>& ids)
      : shape{static_cast<std::int64_t>(ids.size()), kWidth} {
    for (const int id : ids) {
      for (std::size_t i = 0; i < kWidth; ++i)
        values.push_back(static_cast<float>(id) + 0.5F * static_cast<float>(i));
    }
  }
  [[nodiscard]] TensorView tensor() const { return view(values.data(), shape); }
  std::vector<float> values;
  Shape shape;
};

std::vector<float> layer(const std::vector<float>& input) {
  std::vector<float> output(input.size());
  std::ranges::transform(input, output.begin(), [](float x) { return 2 * x + 1; });
  return output;
}

// Of rows that are one tensor.
void insert(MemoBatch& batch, std::size_t first, std::size_t count, const TensorView& output,
            double seconds) {
  batch.insert(first, count, {&output, 1}, seconds);
}

void assemble(const MemoBatch& batch, std::span<float> out) {
  const std::span<std::byte> bytes = std::as_writable_bytes(out);
  batch.assemble({&bytes, 1});
}

void run_missing(MemoBatch& batch, const Rows& input, std::size_t chunk) {
  const auto missing = batch.missing();
  for (std::size_t first = 0; first < missing.size(); first += chunk) {
    const std::size_t count = std::min(chunk, missing.size() - first);
    std::vector<float> rows;
    for (std::size_t j = 0; j < chunk; ++j) {
      const auto row = static_cast<std::ptrdiff_t>(missing[first + std::min(j, count - 1)] *
                                                   static_cast<std::int64_t>(kWidth));
      const auto begin = input.values.begin() + row;
      rows.insert(rows.end(), begin, begin + kWidth);
    }
    const std::vector<float> output = layer(rows);
    const Shape shape{static_cast<std::int64_t>(chunk), kWidth};
    insert(batch, first, count, view(output.data(), shape), 1.0);
  }
}

std::vector<float> call(Memo& memo, const std::vector<int>& ids, std::size_t chunk = 4) {
  const Rows input(ids);
  const TupleMember member{"x", input.tensor()};
  MemoBatch batch = memo.lookup({&member, 1}, {});
  run_missing(batch, input, chunk);
  std::vector<float> out(input.values.size());
  assemble(batch, out);
  EXPECT_EQ(out, layer(input.values));
  return out;
}

std::shared_ptr<ActivationCache> cache(std::size_t memory = 1 << 20) {
  return std::make_shared<ActivationCache>(CacheOptions{.memory = memory});
}

TEST(Memo, RunsOnlyWhatIsMissingAndKeepsTheOrder) {
  Memo memo(cache());
  call(memo, {1, 2, 3});
  const Rows input({3, 9, 1, 8, 9});
  const TupleMember member{"x", input.tensor()};
  MemoBatch batch = memo.lookup({&member, 1}, {});
  EXPECT_EQ(std::vector<std::int64_t>(batch.missing().begin(), batch.missing().end()),
            (std::vector<std::int64_t>{1, 3}));
  run_missing(batch, input, 2);
  std::vector<float> out(input.values.size());
  assemble(batch, out);
  EXPECT_EQ(out, layer(input.values));

  const MemoStats stats = memo.stats();
  EXPECT_EQ(stats.lookups, 8U);
  EXPECT_EQ(stats.misses, 5U);
  EXPECT_EQ(stats.hits, 3U);
  EXPECT_EQ(stats.duplicates, 1U);
  EXPECT_EQ(stats.padded_rows, 1U);
  EXPECT_DOUBLE_EQ(stats.seconds_spent, 2.0);
  EXPECT_DOUBLE_EQ(stats.seconds_saved, 2.0 / 3 + 0.5);
}

TEST(Memo, AnyPatternOfHitsGivesTheSameAnswers) {
  std::mt19937 random(7);
  Memo memo(cache(80'000));  // some are evicted
  for (int round = 0; round < 300; ++round) {
    std::vector<int> ids(random() % 20 + 1);
    for (int& id : ids) id = static_cast<int>(random() % 400);
    call(memo, ids, round % 2 == 0 ? 4 : 1);
  }
  const MemoStats stats = memo.stats();
  EXPECT_EQ(stats.hits + stats.misses, stats.lookups);
  EXPECT_GT(stats.hits, stats.duplicates);
  EXPECT_GT(memo.cache().stats().evictions, 0U);
}

TEST(Memo, EntryLargerThanTheBoundIsComputedAndNotStored) {
  Memo memo(cache(1 << 16));
  const Rows x({1, 2});
  const TupleMember member{"x", x.tensor()};
  const Shape large{2, 1 << 15};
  const std::vector<float> output(std::size_t{2} << 15, 1.5F);
  for (int i = 0; i < 2; ++i) {
    MemoBatch batch = memo.lookup({&member, 1}, {});
    insert(batch, 0, 2, view(output.data(), large), 1.0);
    std::vector<float> out(output.size());
    assemble(batch, out);
    EXPECT_EQ(out, output);
  }
  EXPECT_EQ(memo.stats().misses, 4U);
  EXPECT_EQ(memo.stats().rejections, 4U);
  EXPECT_EQ(memo.cache().stats().rejections, 4U);
}

TEST(Memo, ScopesAreApart) {
  const auto shared = cache();
  Memo memo(shared);
  Memo other(shared);
  const Rows input({1, 2});
  const TupleMember member{"x", input.tensor()};
  MemoBatch first = memo.lookup({&member, 1}, {.scope = "a"});
  run_missing(first, input, 2);
  EXPECT_EQ(other.lookup({&member, 1}, {.scope = "b"}).missing().size(), 2U);
  EXPECT_EQ(other.lookup({&member, 1}, {.scope = "a"}).missing().size(), 0U);
}

TEST(Memo, SeveralTensorsMakeOneRow) {
  Memo memo(cache());
  const Rows x({1, 2});
  const Rows y({5, 6});
  const Rows z({5, 7});
  const TupleMember xy[] = {{"x", x.tensor()}, {"y", y.tensor()}};
  const TupleMember xz[] = {{"x", x.tensor()}, {"y", z.tensor()}};
  MemoBatch batch = memo.lookup(xy, {});
  run_missing(batch, x, 2);
  const MemoBatch second = memo.lookup(xz, {});
  ASSERT_EQ(second.missing().size(), 1U);
  EXPECT_EQ(second.missing()[0], 1);
  ASSERT_NE(second.example(), nullptr);
  EXPECT_TRUE(std::ranges::equal(second.example()->tensor(0).shape, Shape{kWidth}));
}

TEST(Memo, BadInputChangesNothing) {
  EXPECT_THROW(Memo(nullptr), Error);
  Memo memo(cache());
  EXPECT_THROW((void)memo.lookup(std::span<const TupleMember>(), {}), Error);
  const Rows x({1, 2});
  const Rows y({1});
  const TupleMember uneven[] = {{"x", x.tensor()}, {"y", y.tensor()}};
  EXPECT_THROW((void)memo.lookup(uneven, {}), Error);
  const Shape scalar;
  const TupleMember rank0[] = {{"x", view(x.values.data(), scalar)}};
  EXPECT_THROW((void)memo.lookup(rank0, {}), Error);

  const TupleMember member{"x", x.tensor()};
  MemoBatch batch = memo.lookup({&member, 1}, {});
  std::vector<float> out(x.values.size());
  EXPECT_THROW(assemble(batch, out), Error);
  EXPECT_THROW(insert(batch, 0, 3, x.tensor(), 0), Error);
  EXPECT_THROW(insert(batch, 2, 1, x.tensor(), 0), Error);
  EXPECT_THROW(insert(batch, 0, 2, y.tensor(), 0), Error);
  EXPECT_THROW(insert(batch, 0, 1, view(x.values.data(), scalar), 0), Error);
  EXPECT_EQ(memo.cache().stats().entries, 0U);
  insert(batch, 0, 1, x.tensor(), 0);
  const Shape narrow{2, 1};
  EXPECT_THROW(insert(batch, 1, 1, view(x.values.data(), narrow), 0), Error);
  insert(batch, 1, 1, x.tensor(), 0);
  EXPECT_THROW(assemble(batch, std::span(out).first(2)), Error);
}

TEST(Memo, ABatchOutlivesItsMemo) {
  auto memo = std::make_unique<Memo>(cache());
  const Rows x({1, 2});
  const TupleMember member{"x", x.tensor()};
  MemoBatch batch = memo->lookup({&member, 1}, {});
  memo.reset();
  run_missing(batch, x, 2);
  std::vector<float> out(x.values.size());
  assemble(batch, out);
  EXPECT_EQ(out, layer(x.values));
}

TEST(Memo, NoRows) {
  Memo memo(cache());
  const Rows none({});
  const TupleMember member{"x", none.tensor()};
  const MemoBatch batch = memo.lookup({&member, 1}, {});
  EXPECT_EQ(batch.rows(), 0U);
  batch.assemble({});
}

TEST(Memo, AnEntryOfAnotherKindUnderTheKeyOfARowIsNoAnswer) {
  Memo memo(cache());
  const Rows x({1});
  std::array<Key, 1> keys;
  row_keys(x.tensor(), keys);
  const Shape none{0};
  const TensorParts named{.name = "x", .shape = none};
  memo.cache().insert({.key = keys[0], .tensors = {&named, 1}});
  call(memo, {1});
  EXPECT_EQ(memo.stats().misses, 1U);
}

TEST(Memo, CodecsAreDecodedAndWhatIsLossyIsSoFromTheFirstAnswer) {
  for (const Codec codec : {Codec::kLossless, Codec::kFloat16, Codec::kBFloat16}) {
    Memo memo(cache(), {.codec = codec});
    const Rows input({1, 2, 3});
    const TupleMember member{"x", input.tensor()};
    const Shape shape{3, 4000};
    std::vector<float> output(12'000);
    for (std::size_t i = 0; i < output.size(); ++i) {
      output[i] = 1 + static_cast<float>(i % 1000) / 997;
    }
    std::vector<float> first(output.size());
    std::vector<float> second(output.size());
    MemoBatch batch = memo.lookup({&member, 1}, {});
    insert(batch, 0, 3, view(output.data(), shape), 1.0);
    assemble(batch, first);
    const MemoBatch again = memo.lookup({&member, 1}, {});
    EXPECT_TRUE(again.missing().empty());
    assemble(again, second);
    EXPECT_EQ(first, second);
    EXPECT_EQ(first == output, !is_lossy(codec));
    for (std::size_t i = 0; i < output.size(); ++i) ASSERT_NEAR(first[i], output[i], 0.005);
    EXPECT_LT(memo.cache().snapshot()[0].bytes, 4000 * sizeof(float));
  }
}

// --- Single flight

std::vector<float> finish(MemoBatch& batch, const Rows& input) {
  do {
    run_missing(batch, input, 2);
  } while (batch.wait() != MemoBatch::Wait::kDone);
  std::vector<float> out(input.values.size());
  assemble(batch, out);
  return out;
}

TEST(MemoThreads, ARowIsComputedByOneBatchAtATime) {
  Memo memo(cache());
  const Rows x({1, 2});
  const Rows y({2, 3});
  const TupleMember first_member{"x", x.tensor()};
  const TupleMember second_member{"x", y.tensor()};
  MemoBatch first = memo.lookup({&first_member, 1}, {});
  std::vector<float> out;
  std::thread other([&] {
    MemoBatch second = memo.lookup({&second_member, 1}, {});
    EXPECT_EQ(std::vector<std::int64_t>(second.missing().begin(), second.missing().end()),
              std::vector<std::int64_t>{1});
    run_missing(second, y, 2);
    EXPECT_EQ(second.wait(0), MemoBatch::Wait::kTimeout);
    run_missing(first, x, 2);  // as the first thread would, a moment later
    out = finish(second, y);
  });
  other.join();
  EXPECT_EQ(out, layer(y.values));
  EXPECT_EQ(finish(first, x), layer(x.values));
  const MemoStats stats = memo.stats();
  EXPECT_EQ(stats.lookups, 4U);
  EXPECT_EQ(stats.misses, 3U);
  EXPECT_EQ(stats.hits, 1U);
  EXPECT_EQ(stats.waits, 1U);
}

TEST(MemoThreads, AFailureReachesWhoWaitsAndIsNotStored) {
  Memo memo(cache());
  const Rows x({1});
  const TupleMember member{"x", x.tensor()};
  std::optional<MemoBatch> first = memo.lookup({&member, 1}, {});
  std::thread other([&] {
    MemoBatch second = memo.lookup({&member, 1}, {});
    EXPECT_TRUE(second.missing().empty());
    first->fail(std::make_exception_ptr(std::runtime_error("no luck")));
    EXPECT_THROW(second.wait(), std::runtime_error);
  });
  other.join();
  first.reset();
  call(memo, {1});
  EXPECT_EQ(memo.cache().stats().entries, 1U);
}

TEST(MemoThreads, WhatABatchGivesUpIsTakenOver) {
  Memo memo(cache());
  const Rows x({1, 2});
  const TupleMember member{"x", x.tensor()};
  std::optional<MemoBatch> first = memo.lookup({&member, 1}, {});
  std::thread other([&] {
    MemoBatch second = memo.lookup({&member, 1}, {});
    EXPECT_TRUE(second.missing().empty());
    first.reset();
    EXPECT_EQ(second.wait(), MemoBatch::Wait::kMore);
    EXPECT_EQ(second.missing().size(), 2U);
    EXPECT_EQ(finish(second, x), layer(x.values));
  });
  other.join();
  EXPECT_EQ(memo.stats().hits + memo.stats().misses, memo.stats().lookups);
}

TEST(MemoThreads, TwoBatchesThatWaitForEachOtherGoOn) {
  Memo memo(cache());
  const Rows x({1});
  const Rows y({2});
  const TupleMember x_member{"x", x.tensor()};
  const TupleMember y_member{"x", y.tensor()};
  std::barrier both(2);
  const auto nested = [&](const TupleMember& outer, const Rows& rows, const TupleMember& inner,
                          const Rows& inner_rows) {
    MemoBatch batch = memo.lookup({&outer, 1}, {});
    both.arrive_and_wait();
    MemoBatch within = memo.lookup({&inner, 1}, {});  // the computation of the outer one asks
    EXPECT_EQ(finish(within, inner_rows), layer(inner_rows.values));
    EXPECT_EQ(finish(batch, rows), layer(rows.values));
  };
  std::thread other([&] { nested(y_member, y, x_member, x); });
  nested(x_member, x, y_member, y);
  other.join();
}

TEST(MemoThreads, ManyThreadsGetTheSameAnswers) {
  Memo memo(cache(90'000));
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 8; ++seed) {
    threads.emplace_back([&memo, seed] {
      std::mt19937 random(seed);
      for (int round = 0; round < 100; ++round) {
        std::vector<int> ids(random() % 20 + 1);
        for (int& id : ids) id = static_cast<int>(random() % 300);
        const Rows input(ids);
        const TupleMember member{"x", input.tensor()};
        MemoBatch batch = memo.lookup({&member, 1}, {});
        EXPECT_EQ(finish(batch, input), layer(input.values));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const MemoStats stats = memo.stats();
  EXPECT_EQ(stats.hits + stats.misses, stats.lookups);
  EXPECT_EQ(stats.misses, stats.misses_new + stats.misses_evicted + stats.misses_expired);
}

}  // namespace
}  // namespace tensorkey
