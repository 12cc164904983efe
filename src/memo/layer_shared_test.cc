// What a layer leaves in its cache for other engines, other processes and people who look.
#include <tensorkey/layer.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "memo/layer_test_calls.h"

namespace tensorkey {
namespace {

using testing::ask;
using testing::Batch;
using testing::clean;
using testing::contains;
using testing::error;
using testing::Function;
using testing::in_chunks;
using testing::Leaves;
using testing::memory;
using testing::rows;
using testing::TempDir;

TEST(LayerShared, ASecondProcessRunsNothing) {
  const TempDir dir;
  const std::vector<std::byte> expected = in_chunks(testing::several, rows(0, 40), 32);
  {
    LayerEngine engine(dir.cache(), {});
    EXPECT_EQ(ask(engine, rows(0, 40), testing::several).bytes, expected);
  }
  LayerEngine engine(dir.cache(), {});
  const auto answer = ask(engine, rows(0, 40), testing::several);
  EXPECT_EQ(answer.bytes, expected);
  EXPECT_EQ(answer.runs, 0);
  EXPECT_EQ(answer.form, "tensor");
  EXPECT_EQ(engine.stats().probe_runs, 0U);
  EXPECT_TRUE(engine.stats().verdict->text.starts_with("clean: 16 rows"));
  // Nor does one that asks what is missing before anything is known.
  LayerEngine third(dir.cache(), {});
  const Batch batch = rows(20, 40);
  const testing::Members members(batch);
  EXPECT_EQ(third.missing({.members = members.span()}).size(), 20U);
}

TEST(LayerShared, OneRowAtATimeWins) {
  const TempDir dir;
  {
    LayerEngine first(dir.cache(), {});
    EXPECT_EQ(ask(first, rows(0, 20), clean).rows_run, 32U);
  }
  {
    LayerEngine told(dir.cache(), {.chunk = 1});
    EXPECT_EQ(ask(told, rows(0, 20), clean).rows_run, 20U);
  }
  LayerEngine follows(dir.cache(), {});
  EXPECT_EQ(ask(follows, rows(0, 20), clean).runs, 0);
  EXPECT_EQ(follows.stats().verdict->chunk, 1U);
}

TEST(LayerShared, ARefusalIsShared) {
  const TempDir dir;
  for (int process = 0; process < 2; ++process) {
    LayerEngine engine(dir.cache(), {});
    int runs = 0;
    const Function counted = [&](const Batch& x) {
      ++runs;
      return testing::by_largest(x);
    };
    EXPECT_NE(error(ErrorCode::kUnsupported, [&] { ask(engine, rows(0, 20), counted); }), "");
    EXPECT_EQ(runs > 0, process == 0);
  }
}

TEST(LayerShared, AFormThatIsGoneIsFoundByOneChunk) {
  auto cache = memory();
  LayerEngine engine(cache, {});
  const Batch batch = rows(0, 40);
  const testing::Members members(batch);
  ask(engine, batch, testing::several);
  const Digest scope = *engine.scope({.members = members.span()});
  const auto key = internal::Records::form_place(
                       scope, internal::Signature({.members = members.span()}).encoded(), {})
                       .key;
  ASSERT_TRUE(cache->remove(key));
  LayerEngine other(cache, {});
  const auto answer = ask(other, batch, testing::several);
  EXPECT_EQ(answer.runs, 1);
  EXPECT_EQ(answer.hits, 40U);
  EXPECT_EQ(answer.bytes, in_chunks(testing::several, batch, 32));
  EXPECT_TRUE(cache->contains(key));
}

// Whoever may write the store may write anything: what is not whole is found out again.
TEST(LayerShared, HostileRecordsAreIgnored) {
  auto cache = memory();
  const Batch batch = rows(0, 40);
  const testing::Members members(batch);
  const LayerCall call{.members = members.span()};
  const std::string signature = internal::Signature(call).encoded();
  const std::vector<std::byte> junk(300, std::byte{0xFF});
  const std::int64_t size[] = {300};
  const TensorParts tensor{.shape = size, .data = junk};
  const auto plant = [&](const Key& key) {
    cache->remove(key);
    ASSERT_TRUE(cache->insert({.key = key, .seconds = 1, .tensors = {&tensor, 1}}));
  };
  plant(internal::Records::verdict_place(call.about, signature, {}).key);
  plant(
      internal::Records::form_place(internal::scope_of(call.about, call.weights, 32), signature, {})
          .key);
  LayerEngine engine(cache, {});
  EXPECT_EQ(ask(engine, batch, testing::several).bytes, in_chunks(testing::several, batch, 32));
  EXPECT_GT(engine.stats().probe_runs, 0U);
  // A form of other leaves than those that were found is no answer either.
  internal::Records records(cache);
  records.store(internal::Records::form_place(internal::scope_of(call.about, call.weights, 32),
                                              signature, {}),
                internal::Form{.bytes = "?", .by_row = {1, 1, 1}, .constants = {}}, 1, Keep::kNow);
  LayerEngine other(cache, {});
  const auto answer = ask(other, batch, testing::several);
  EXPECT_EQ(answer.form, "tensor");
  EXPECT_EQ(answer.bytes, in_chunks(testing::several, batch, 32));
}

TEST(LayerShared, ClearDropsWhatThisEngineStored) {
  auto cache = memory();
  LayerEngine engine(cache, {});
  LayerEngine other(cache, {});
  ask(engine, rows(0, 20), testing::several);
  ask(other, rows(0, 20), clean, {.about = Digest{8}});
  EXPECT_EQ(engine.clear(), 21U);  // and the form
  EXPECT_EQ(ask(engine, rows(0, 20), testing::several).hits, 0U);
  EXPECT_EQ(ask(other, rows(0, 20), clean, {.about = Digest{8}}).hits, 20U);
}

TEST(LayerShared, CallsAreReported) {
  LayerEngine engine(memory(), {});
  for (int pass = 0; pass < 2; ++pass) {
    for (std::size_t first : {0U, 32U, 64U, 96U, 128U}) {
      ask(engine, rows(first, first == 128 ? 8 : 32), clean, {.weights = Digest{1}});
    }
  }
  EXPECT_EQ(engine.memo().stats().hits, 136U);
  ask(engine, rows(0, 32), clean, {.weights = Digest{2}});
  EXPECT_NE(engine.stats().seconds_frontend, 0);
  for (std::size_t first : {32U, 64U, 96U, 128U}) {
    ask(engine, rows(first, first == 128 ? 8 : 32), clean, {.weights = Digest{2}});
  }
  const std::vector<std::string> said = engine.hints();
  EXPECT_TRUE(std::ranges::any_of(said, [](const std::string& hint) {
    return contains(hint, "the layer changed in between");
  }));
  engine.reset_stats();
  EXPECT_EQ(engine.stats().probe_runs, 0U);
  EXPECT_EQ(engine.memo().stats().lookups, 0U);
  EXPECT_TRUE(engine.stats().verdict);
}

}  // namespace
}  // namespace tensorkey
