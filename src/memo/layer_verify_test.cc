// Keys of the caller's own, rows that are pending, and hits that are computed again.
#include <tensorkey/layer.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "memo/layer_test_calls.h"

namespace tensorkey {
namespace {

using testing::ask;
using testing::Batch;
using testing::clean;
using testing::in_chunks;
using testing::memory;
using testing::Runner;
using testing::TempDir;

Batch rows(std::size_t first, std::size_t count) {
  static const Batch data(400, 7, 5);
  std::vector<std::int64_t> places(count);
  std::iota(places.begin(), places.end(), static_cast<std::int64_t>(first));
  return {data, places};
}

// Names of rows: "0", "1", ...
struct Names {
  Names(std::size_t first, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) texts.push_back(std::to_string(first + i));
    for (const std::string& text : texts) ids.push_back({.data = text});
  }
  std::vector<std::string> texts;
  std::vector<OwnId> ids;
};

// --- Keys of the caller's own

TEST(LayerIds, HitsNeedNoInputs) {
  LayerEngine engine(memory(), {});
  const Batch batch = rows(0, 40);
  const Names names(0, 40);
  Runner first(batch, clean);
  EXPECT_EQ(ask(engine, first, batch, {.ids = names.ids}).bytes, in_chunks(clean, batch, 32));
  Runner second(batch, clean);
  const auto answer = ask(engine, second, batch, {.ids = names.ids});
  EXPECT_EQ(answer.bytes, in_chunks(clean, batch, 32));
  EXPECT_TRUE(second.prepared.empty());

  const Names more(30, 20);
  std::vector<std::int64_t> missing;
  for (const MissingRow& row : engine.missing({.ids = more.ids})) missing.push_back(row.position);
  EXPECT_EQ(missing, (std::vector<std::int64_t>{10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
  const Batch later = rows(30, 20);
  Runner third(later, clean);
  ask(engine, third, later, {.ids = more.ids});
  EXPECT_EQ(third.prepared, (std::vector<std::int64_t>{10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
}

TEST(LayerIds, PositionsArePreparedBeforeTheyRun) {
  LayerEngine engine(memory(), {});
  const Batch batch = rows(0, 40);
  const Names names(0, 40);
  Runner runner(batch, clean);
  ask(engine, runner, batch, {.ids = names.ids});
  std::vector<std::int64_t> all = runner.prepared;
  std::ranges::sort(all);
  const auto repeated = std::ranges::unique(all);
  all.erase(repeated.begin(), repeated.end());
  EXPECT_EQ(all.size(), 40U);
}

TEST(LayerIds, AnIdThatIsNoneIsTheCallersMistake) {
  LayerEngine engine(memory(), {});
  const Batch batch = rows(0, 1);
  const OwnId bad{.type = OwnId::Type::kInt, .data = "007"};
  Runner runner(batch, clean);
  EXPECT_THROW(ask(engine, runner, batch, {.ids = {&bad, 1}}), Error);
}

TEST(LayerIds, AnIdAndAContentAreOtherRows) {
  LayerEngine engine(memory(), {});
  const Batch batch = rows(0, 20);
  const Names names(0, 20);
  Runner runner(batch, clean);
  ask(engine, runner, batch, {.ids = names.ids});
  EXPECT_EQ(ask(engine, batch, clean).hits, 0U);
}

// --- Pending

TEST(LayerPending, RowsStayInTheProcessUntilTheyAreConfirmed) {
  const TempDir dir;
  const Batch batch = rows(0, 20);
  for (const bool confirmed : {false, true}) {
    {
      LayerEngine engine(dir.cache(), {});
      EXPECT_EQ(ask(engine, batch, testing::several, {.pending = true}).hits, 0U);
      EXPECT_EQ(ask(engine, batch, testing::several, {.pending = true}).runs, 0);
      EXPECT_EQ(engine.stats().pending, 20U);
      EXPECT_FALSE(engine.pending_full());
      if (confirmed) {
        EXPECT_EQ(engine.confirm(), 20U);
      }
      EXPECT_EQ(engine.stats().pending, confirmed ? 0U : 20U);
    }
    LayerEngine next(dir.cache(), {});
    const auto answer = ask(next, batch, testing::several, {.pending = true});
    EXPECT_EQ(answer.hits, confirmed ? 20U : 0U);
    EXPECT_EQ(answer.runs > 0, !confirmed);
    EXPECT_EQ(answer.bytes, in_chunks(testing::several, batch, 32));
  }
}

TEST(LayerPending, RowsThatAreDroppedAreForgotten) {
  LayerEngine engine(memory(), {});
  const Batch batch = rows(0, 20);
  ask(engine, batch, testing::several, {.pending = true});
  EXPECT_EQ(engine.drop_pending(), 20U);
  EXPECT_EQ(engine.stats().dropped_pending, 20U);
  EXPECT_EQ(engine.stats().pending, 0U);
  // Another table, too: it was of the weights that nobody has read.
  const testing::Function other = [](const Batch& x) {
    testing::Leaves leaves = testing::several(x);
    leaves[2] = testing::leaf<double>("table", {2, 2}, {9, 9, 9, 9});
    return leaves;
  };
  const auto answer = ask(engine, batch, other);
  EXPECT_EQ(answer.hits, 0U);
  EXPECT_EQ(answer.bytes, in_chunks(other, batch, 32));
}

// --- Verify

// Another answer for one row of a batch than what the layer gives.
void plant(LayerEngine& engine, const Batch& batch, std::size_t row, float by) {
  const testing::Members members(batch);
  const Digest scope = *engine.scope({.members = members.span()});
  const std::string_view bytes(reinterpret_cast<const char*>(scope.data()), scope.size());
  std::vector<Key> keys(batch.rows());
  row_keys(members.span()[0].view, keys, {.scope = bytes});
  const EntryPtr known = engine.cache().find(keys[row]);
  ASSERT_TRUE(known);
  TensorParts tensor = known->tensor(0);
  std::vector<std::byte> wrong(tensor.data.begin(), tensor.data.end());
  float value;
  std::memcpy(&value, wrong.data(), sizeof value);
  value += by;
  std::memcpy(wrong.data(), &value, sizeof value);
  tensor.data = wrong;
  engine.cache().remove(keys[row]);
  ASSERT_TRUE(engine.cache().insert({.key = keys[row], .seconds = 1, .tensors = {&tensor, 1}},
                                    scope_id(bytes)));
}

TEST(LayerVerify, TrueHitsAreFoundTrue) {
  for (const std::uint32_t chunk : {1U, 32U}) {
    LayerEngine engine(memory(), {.chunk = chunk, .verify = 1});
    ask(engine, rows(0, 20), testing::several);
    EXPECT_EQ(engine.stats().verified, 0U);  // no hits yet
    const auto answer = ask(engine, rows(0, 20), testing::several);
    EXPECT_EQ(answer.deviation.rows, 0U);
    EXPECT_EQ(answer.runs, chunk == 1 ? 20 : 1);
    EXPECT_EQ(engine.stats().verified, 20U);
    EXPECT_EQ(engine.stats().deviating, 0U);
  }
}

TEST(LayerVerify, AWrongEntryIsFound) {
  LayerEngine engine(memory(), {.verify = 1});
  const Batch batch = rows(0, 20);
  ask(engine, batch, clean);
  plant(engine, batch, 7, 0.5F);
  const auto answer = ask(engine, batch, clean);
  EXPECT_EQ(answer.deviation.rows, 1U);
  EXPECT_NEAR(answer.deviation.largest, 0.5, 1e-5);
  EXPECT_EQ(answer.deviation.where, "out");
  EXPECT_EQ(engine.stats().verified, 20U);
  EXPECT_EQ(engine.stats().deviating, 1U);
  EXPECT_NEAR(engine.stats().largest_deviation, 0.5, 1e-5);
}

TEST(LayerVerify, ToleranceIsAbsolute) {
  for (const double tolerance : {0.4, 0.6}) {
    LayerEngine engine(memory(), {.verify = 1, .tolerance = tolerance});
    const Batch batch = rows(0, 20);
    ask(engine, batch, clean);
    plant(engine, batch, 7, 0.5F);
    EXPECT_EQ(ask(engine, batch, clean).deviation.rows, tolerance < 0.5 ? 1U : 0U);
  }
}

TEST(LayerVerify, TheShareThatWasAskedForIsComputedAgain) {
  LayerEngine engine(memory(), {.verify = 0.1});
  for (int round = 0; round < 4000; ++round) ask(engine, rows(0, 32), clean);
  const double share = static_cast<double>(engine.stats().verified) / (3999 * 32);
  EXPECT_GT(share, 0.08);
  EXPECT_LT(share, 0.12);
}

TEST(LayerVerify, RowsThatAreRoundedAreComparedAsTheyAreStored) {
  LayerEngine engine(memory(), {.verify = 1, .codec = Codec::kFloat16});
  ask(engine, rows(0, 20), clean);
  EXPECT_EQ(ask(engine, rows(0, 20), clean).deviation.rows, 0U);
  EXPECT_EQ(engine.stats().verified, 20U);
}

TEST(LayerVerify, BitsThatDependOnTheSlotShow) {
  LayerEngine engine(memory(), {.chunk = 32, .probe = false, .verify = 1});
  ask(engine, rows(0, 32), testing::by_slot);
  EXPECT_GT(ask(engine, rows(0, 32), testing::by_slot).deviation.rows, 0U);

  LayerEngine accepting(memory(), {.chunk = 32, .accept_slot = true, .verify = 1});
  ask(accepting, rows(0, 32), testing::by_slot);
  EXPECT_EQ(ask(accepting, rows(0, 32), testing::by_slot).deviation.rows, 0U);
  EXPECT_EQ(accepting.stats().verified, 32U);
}

TEST(LayerVerify, AnIdThatMeansAnotherInputNowIsFound) {
  LayerEngine engine(memory(), {.verify = 1});
  const Names names(0, 20);
  const Batch batch = rows(0, 20);
  Runner first(batch, clean);
  ask(engine, first, batch, {.ids = names.ids});
  Batch changed = rows(0, 20);
  changed.values[21] += 1;
  Runner second(changed, clean);
  const auto answer = ask(engine, second, changed, {.ids = names.ids});
  EXPECT_EQ(answer.bytes, in_chunks(clean, batch, 32));
  EXPECT_EQ(answer.deviation.rows, 1U);
  EXPECT_EQ(answer.deviation.where, "input");
  EXPECT_EQ(answer.deviation.largest, std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace tensorkey
