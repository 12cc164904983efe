#include <tensorkey/memo.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>
#include <vector>

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
    batch.insert(first, count, view(output.data(), shape), 1.0);
  }
}

std::vector<float> call(Memo& memo, const std::vector<int>& ids, std::size_t chunk = 4) {
  const Rows input(ids);
  const TupleMember member{"x", input.tensor()};
  MemoBatch batch = memo.lookup({&member, 1}, {});
  run_missing(batch, input, chunk);
  std::vector<float> out(input.values.size());
  batch.assemble(std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, layer(input.values));
  return out;
}

std::shared_ptr<MemoryStore> store(std::size_t bound = 1 << 20) {
  return std::make_shared<MemoryStore>(bound);
}

TEST(Memo, RunsOnlyWhatIsMissingAndKeepsTheOrder) {
  Memo memo(store());
  call(memo, {1, 2, 3});
  const Rows input({3, 9, 1, 8, 9});
  const TupleMember member{"x", input.tensor()};
  MemoBatch batch = memo.lookup({&member, 1}, {});
  EXPECT_EQ(std::vector<std::int64_t>(batch.missing().begin(), batch.missing().end()),
            (std::vector<std::int64_t>{1, 3}));
  run_missing(batch, input, 2);
  std::vector<float> out(input.values.size());
  batch.assemble(std::as_writable_bytes(std::span(out)));
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
  Memo memo(store(4000));  // some are evicted
  for (int round = 0; round < 300; ++round) {
    std::vector<int> ids(random() % 20 + 1);
    for (int& id : ids) id = static_cast<int>(random() % 40);
    call(memo, ids, round % 2 == 0 ? 4 : 1);
  }
  const MemoStats stats = memo.stats();
  EXPECT_EQ(stats.hits + stats.misses, stats.lookups);
  EXPECT_GT(stats.hits, stats.duplicates);
  EXPECT_GT(memo.store().stats().evictions, 0U);
}

TEST(Memo, EntryLargerThanTheBoundIsComputedAndNotStored) {
  Memo memo(store(1));
  call(memo, {1, 2});
  call(memo, {1, 2});
  EXPECT_EQ(memo.stats().misses, 4U);
  EXPECT_EQ(memo.store().stats().rejections, 4U);
}

TEST(Memo, ScopesAreApart) {
  const auto shared = store();
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
  Memo memo(store());
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
  EXPECT_EQ(second.example()->shape, Shape{kWidth});
}

TEST(Memo, BadInputChangesNothing) {
  EXPECT_THROW(Memo(nullptr), Error);
  Memo memo(store());
  EXPECT_THROW((void)memo.lookup({}, {}), Error);
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
  EXPECT_THROW(batch.assemble(std::as_writable_bytes(std::span(out))), Error);
  EXPECT_THROW(batch.insert(0, 3, x.tensor(), 0), Error);
  EXPECT_THROW(batch.insert(2, 1, x.tensor(), 0), Error);
  EXPECT_THROW(batch.insert(0, 2, y.tensor(), 0), Error);
  EXPECT_THROW(batch.insert(0, 1, view(x.values.data(), scalar), 0), Error);
  EXPECT_EQ(memo.store().stats().entries, 0U);
  batch.insert(0, 1, x.tensor(), 0);
  const Shape narrow{2, 1};
  EXPECT_THROW(batch.insert(1, 1, view(x.values.data(), narrow), 0), Error);
  batch.insert(1, 1, x.tensor(), 0);
  EXPECT_THROW(batch.assemble(std::as_writable_bytes(std::span(out).first(2))), Error);
}

TEST(Memo, ABatchOutlivesItsMemo) {
  auto memo = std::make_unique<Memo>(store());
  const Rows x({1, 2});
  const TupleMember member{"x", x.tensor()};
  MemoBatch batch = memo->lookup({&member, 1}, {});
  memo.reset();
  run_missing(batch, x, 2);
  std::vector<float> out(x.values.size());
  batch.assemble(std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, layer(x.values));
}

TEST(Memo, NoRows) {
  Memo memo(store());
  const Rows none({});
  const TupleMember member{"x", none.tensor()};
  const MemoBatch batch = memo.lookup({&member, 1}, {});
  EXPECT_EQ(batch.rows(), 0U);
  batch.assemble({});
}

}  // namespace
}  // namespace tensorkey
