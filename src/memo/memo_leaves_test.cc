// Rows of several tensors or none, rows by the caller's own keys, and what a batch says of a row.
#include <tensorkey/memo.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

namespace tensorkey {
namespace {

using Shape = std::vector<std::int64_t>;
using Positions = std::vector<std::int64_t>;

std::vector<Key> keys_of(const std::vector<std::string>& names, std::string_view scope = {}) {
  std::vector<OwnId> ids;
  for (const std::string& name : names) ids.push_back({.data = name});
  std::vector<Key> keys(ids.size());
  own_keys(ids, keys, {.scope = scope});
  return keys;
}

Positions missing(const MemoBatch& batch) {
  return {batch.missing().begin(), batch.missing().end()};
}

std::shared_ptr<ActivationCache> cache() {
  return std::make_shared<ActivationCache>(CacheOptions{.memory = 1 << 20});
}

// The output for a row is three leaves: (2, 2) floats, an int and nothing at all, made from a
// number. The floats lie transposed in memory.
struct Outputs {
  explicit Outputs(const std::vector<int>& numbers) {
    for (const int number : numbers) {
      const auto x = static_cast<float>(number);
      floats.insert(floats.end(), {x, x + 2, x + 1, x + 3});
      ints.push_back(number);
    }
    const auto rows = static_cast<std::int64_t>(numbers.size());
    floats_shape = {rows, 2, 2};
    ints_shape = {rows};
    empty_shape = {rows, 0};
    views = {{.data = floats.data(),
              .dtype = DType::kFloat32,
              .shape = floats_shape,
              .strides = floats_strides},
             view(ints.data(), ints_shape),
             {.data = ints.data(), .dtype = DType::kUInt8, .shape = empty_shape}};
  }
  Outputs(const Outputs&) = delete;
  Outputs& operator=(const Outputs&) = delete;

  std::vector<float> floats;
  std::vector<std::int32_t> ints;
  Shape floats_shape, ints_shape, empty_shape;
  Shape floats_strides{16, 4, 8};
  std::vector<TensorView> views;
};

void expect_answer(const MemoBatch& batch, const std::vector<int>& numbers) {
  std::vector<float> floats(numbers.size() * 4);
  std::vector<std::int32_t> ints(numbers.size());
  const std::array<std::span<std::byte>, 3> outs{
      std::as_writable_bytes(std::span(floats)), std::as_writable_bytes(std::span(ints)), {}};
  batch.assemble(outs);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    ASSERT_EQ(ints[i], numbers[i]);
    for (std::size_t j = 0; j < 4; ++j) {
      ASSERT_EQ(floats[4 * i + j], static_cast<float>(numbers[i]) + static_cast<float>(j));
    }
  }
}

TEST(MemoLeaves, SeveralAreStoredAndPutTogether) {
  for (const Codec codec : {Codec::kRaw, Codec::kLossless}) {
    Memo memo(cache(), {.codec = codec});
    MemoBatch batch = memo.lookup(keys_of({"a", "b", "a", "c"}), {});
    EXPECT_EQ(missing(batch), (Positions{0, 1, 3}));
    batch.insert(0, 2, Outputs({5, 6, 0}).views, 1);  // a row of padding
    batch.insert(2, 1, Outputs({7}).views, 1);
    expect_answer(batch, {5, 6, 5, 7});
    EXPECT_EQ(memo.stats().padded_rows, 1U);

    const MemoBatch again = memo.lookup(keys_of({"c", "a"}), {});
    EXPECT_TRUE(again.missing().empty());
    expect_answer(again, {7, 5});
    ASSERT_EQ(again.example()->tensor_count(), 3U);
    EXPECT_EQ(again.example()->tensor(1).name, "1");
    EXPECT_EQ(memo.stats().bytes_read, 2U * (4 * sizeof(float) + sizeof(std::int32_t)));
  }
}

TEST(MemoLeaves, AreThoseOfAllRowsOrAnError) {
  Memo memo(cache());
  const Outputs outputs({1, 2});
  MemoBatch batch = memo.lookup(keys_of({"a", "b"}), {});
  batch.insert(0, 1, outputs.views, 0);
  const std::span views(outputs.views);
  EXPECT_THROW(batch.insert(1, 1, views.first(2), 0), Error);
  const std::vector<TensorView> swapped{views[1], views[0], views[2]};
  EXPECT_THROW(batch.insert(1, 1, swapped, 0), Error);
  batch.insert(1, 1, views, 0);
  std::vector<std::byte> room(64);
  const std::span bytes(room);
  EXPECT_THROW(batch.assemble({}), Error);
  EXPECT_THROW(batch.assemble(std::vector{bytes.first(32), bytes.first(8)}), Error);
  EXPECT_THROW(batch.assemble(std::vector{bytes.first(32), bytes.first(7), bytes.first(0)}), Error);
  batch.assemble(std::vector{bytes.first(32), bytes.first(8), bytes.first(0)});

  // Rows that were stored by calls with other leaves.
  MemoBatch other = memo.lookup(keys_of({"c"}), {});
  other.insert(0, 1, views.first(1), 0);
  const MemoBatch both = memo.lookup(keys_of({"a", "c"}), {});
  EXPECT_TRUE(both.missing().empty());
  EXPECT_THROW(both.assemble(std::vector{bytes.first(32), bytes.first(8), bytes.first(0)}), Error);
}

TEST(MemoLeaves, ARowWithoutElementsIsNotARowOfAnotherShape) {
  Memo memo(cache());
  const Outputs outputs({1});
  memo.lookup(keys_of({"a"}), {}).insert(0, 1, {&outputs.views[2], 1}, 0);
  memo.lookup(keys_of({"b"}), {}).insert(0, 1, {&outputs.views[1], 1}, 0);
  const MemoBatch batch = memo.lookup(keys_of({"a", "b"}), {});
  const std::span<std::byte> none;
  EXPECT_THROW(batch.assemble({&none, 1}), Error);
}

TEST(MemoLeaves, ARowMayHaveNone) {
  Memo memo(cache());
  for (int round = 0; round < 2; ++round) {
    MemoBatch batch = memo.lookup(keys_of({"a", "b"}), {});
    EXPECT_EQ(batch.missing().size(), round == 0 ? 2U : 0U);
    if (round == 0) batch.insert(0, 2, {}, 1);
    batch.assemble({});
    std::vector<std::byte> room(1);
    const std::span<std::byte> bytes(room);
    EXPECT_THROW(batch.assemble({&bytes, 1}), Error);
    EXPECT_EQ(batch.entry(1).tensor_count(), 0U);
  }
  EXPECT_EQ(memo.stats().hits, 2U);
}

TEST(MemoLeaves, InputsAreKeptWithTheEntries) {
  Memo memo(cache());
  const std::vector<Key> inputs = keys_of({"content of a", "content of b", "content of c"});
  const Outputs outputs({1, 2, 3});
  MemoBatch batch = memo.lookup(keys_of({"a", "b", "c"}), {});
  EXPECT_THROW(batch.insert(0, 2, outputs.views, 0, inputs), Error);
  batch.insert(0, 2, outputs.views, 0, std::span(inputs).first(2));
  batch.insert(2, 1, Outputs({3}).views, 0);
  EXPECT_EQ(batch.entry(0).input(), inputs[0]);
  const MemoBatch again = memo.lookup(keys_of({"c", "b", "b"}), {});
  expect_answer(again, {3, 2, 2});
  EXPECT_EQ(again.entry(0).input(), std::nullopt);
  EXPECT_EQ(again.entry(1).input(), inputs[1]);
  EXPECT_EQ(again.entry(2).input(), inputs[1]);
}

TEST(MemoLeaves, ABatchSaysWhichRowsWereHits) {
  Memo memo(cache());
  memo.lookup(keys_of({"a", "b"}), {}).insert(0, 2, Outputs({1, 2}).views, 0);
  MemoBatch batch = memo.lookup(keys_of({"x", "a", "x", "b", "a"}), {});
  batch.insert(0, 1, Outputs({3}).views, 0);
  std::vector<bool> hits;
  for (std::size_t row = 0; row < batch.rows(); ++row) hits.push_back(batch.was_hit(row));
  EXPECT_EQ(hits, (std::vector{false, true, false, true, true}));
  const MemoBatch again = memo.lookup(keys_of({"x"}), {});
  EXPECT_TRUE(again.was_hit(0));
}

TEST(MemoKeys, MissingIsNeitherCountedNorClaimed) {
  Memo memo(cache());
  memo.lookup(keys_of({"a"}), {}).insert(0, 1, Outputs({1}).views, 0);
  const MemoStats before = memo.stats();
  const CacheStats cache_before = memo.cache().stats();
  EXPECT_EQ(memo.missing(keys_of({"b", "a", "c", "b"})),
            (std::vector<MissingRow>{{.position = 0}, {.position = 2}}));
  EXPECT_TRUE(memo.missing({}).empty());
  EXPECT_EQ(memo.stats().lookups, before.lookups);
  EXPECT_EQ(memo.cache().stats().lookups(), cache_before.lookups());
  EXPECT_EQ(missing(memo.lookup(keys_of({"b", "a", "c"}), {})), (Positions{0, 2}));
}

// purge() finds rows that were looked up by keys under their scope.
TEST(MemoKeys, RowsBelongToTheirScope) {
  Memo memo(cache());
  MemoBatch batch = memo.lookup(keys_of({"a", "b"}, "s"), {.scope = "s"});
  batch.insert(0, 2, Outputs({1, 2}).views, 0);
  EXPECT_EQ(missing(memo.lookup(keys_of({"a", "b"}, "t"), {.scope = "t"})), (Positions{0, 1}));
  EXPECT_EQ(memo.cache().purge(scope_id("s")), 2U);
}

}  // namespace
}  // namespace tensorkey
