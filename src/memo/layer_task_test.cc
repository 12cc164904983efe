// Calls whose layer runs in a graph; Graph plays the graph.
#include <tensorkey/layer_task.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <tensorkey/error.h>

#include "memo/layer_test_calls.h"

namespace tensorkey {
namespace {

using testing::ask;
using testing::Batch;
using testing::by_largest;
using testing::by_slot;
using testing::bypassed;
using testing::clean;
using testing::contains;
using testing::data;
using testing::error;
using testing::Function;
using testing::in_chunks;
using testing::kColumns;
using testing::Leaf;
using testing::Leaves;
using testing::Members;
using testing::memory;
using testing::rows;
using testing::TempDir;

const std::vector<LeafShape>& one_leaf() {
  static const std::vector<LeafShape> leaves{
      {.dtype = DType::kFloat32, .shape = {static_cast<std::int64_t>(kColumns)}}};
  return leaves;
}

struct Ran {
  std::size_t chunks = 0;
  LayerTask::Whole whole = LayerTask::Whole::kNot;
  std::vector<float> values = {};  // of all rows
  Deviation deviation = {};

  [[nodiscard]] std::vector<std::byte> bytes() const {
    const auto all = std::as_bytes(std::span(values));
    return {all.begin(), all.end()};
  }
};

std::vector<TensorView> views_of(const Leaves& leaves) {
  std::vector<TensorView> views;
  for (const Leaf& leaf : leaves) {
    views.push_back({.data = leaf.data.data(), .dtype = leaf.dtype, .shape = leaf.shape});
  }
  return views;
}

// What a traced call does, of a layer with one leaf.
class Graph {
 public:
  Graph(LayerEngine& engine, Function function, std::uint32_t chunk = 32)
      : engine_(engine), function_(std::move(function)), chunk_(chunk) {}

  Ran run(const Batch& batch, LayerCall call = {}) {
    const Members members(batch);
    call.members = members.span();
    LayerTask task = engine_.begin(call, {.chunk = chunk_, .leaves = one_leaf()});
    EXPECT_LE(task.chunks(), LayerTask::capacity(batch.rows(), chunk_, true));
    Ran ran{.chunks = task.chunks(), .whole = task.whole()};
    if (task.whole() == LayerTask::Whole::kAnswer) {
      ran.values = floats(function_(batch));
      return ran;
    }
    std::vector<float> table((batch.rows() + 1) * kColumns, -7.0F);  // one row to drop into
    std::array<std::span<std::byte>, 1> outs{
        std::as_writable_bytes(std::span(table).first(batch.rows() * kColumns))};
    task.read(outs);
    if (task.whole() == LayerTask::Whole::kCompare) {
      const Leaves whole = function_(batch);
      task.deliver_whole(views_of(whole), 0.001);
    }
    for (std::size_t c = 0; c < task.chunks(); ++c) {
      const auto part = task.positions().subspan(c * chunk_, chunk_);
      const Leaves leaves = function_(Batch(batch, {part.begin(), part.end()}));
      const std::vector<float> values = floats(leaves);
      for (std::size_t i = 0; i < chunk_; ++i) {
        const auto target = static_cast<std::size_t>(task.targets()[c * chunk_ + i]);
        std::copy_n(&values[i * kColumns], kColumns, &table[target * kColumns]);
      }
      task.deliver(c, views_of(leaves), 0.001);
    }
    ran.deviation = task.deviation();
    for (const std::int64_t source : task.sources()) {
      const auto at = static_cast<std::size_t>(source) * kColumns;
      ran.values.insert(ran.values.end(), &table[at], &table[at] + kColumns);
    }
    return ran;
  }

 private:
  static std::vector<float> floats(const Leaves& leaves) {
    std::vector<float> values(leaves[0].data.size() / sizeof(float));
    std::memcpy(values.data(), leaves[0].data.data(), leaves[0].data.size());
    return values;
  }

  LayerEngine& engine_;
  Function function_;
  std::uint32_t chunk_;
};

// The engine's counters say what was asked for and what was run.
void expect_counts(const LayerEngine& engine, std::uint64_t hits, std::uint64_t misses) {
  const MemoStats stats = const_cast<LayerEngine&>(engine).memo().stats();
  EXPECT_EQ(stats.hits, hits);
  EXPECT_EQ(stats.misses, misses);
  EXPECT_EQ(stats.lookups, hits + misses);
}

TEST(LayerTask, RunsOnlyWhatIsMissing) {
  LayerEngine engine(memory(), {});
  Graph graph(engine, clean);
  const Ran first = graph.run(rows(0, 40));
  EXPECT_EQ(first.chunks, 5U);  // two of misses, three for the probe
  EXPECT_EQ(first.bytes(), in_chunks(clean, rows(0, 40), 32));
  EXPECT_TRUE(contains(engine.stats().verdict->text, "clean in a graph: 32 rows"));
  const Ran second = graph.run(rows(0, 40));
  EXPECT_EQ(second.chunks, 0U);
  EXPECT_EQ(second.values, first.values);
  const Ran third = graph.run(rows(20, 40));
  EXPECT_EQ(third.chunks, 1U);
  EXPECT_EQ(third.bytes(), in_chunks(clean, rows(20, 40), 32));
  expect_counts(engine, 60, 60);
}

TEST(LayerTask, EqualRowsRunOnce) {
  LayerEngine engine(memory(), {});
  Graph graph(engine, clean);
  const Batch batch(data(), {3, 1, 3, 3, 2, 1});
  EXPECT_EQ(graph.run(batch).bytes(), in_chunks(clean, batch, 32));
  expect_counts(engine, 3, 3);
}

TEST(LayerTask, SharesRowsWithCallsThatRunTheLayerThemselves) {
  const auto cache = memory();
  LayerEngine engine(cache, {.chunk = 32});
  Graph graph(engine, clean);
  graph.run(rows(0, 40));
  EXPECT_EQ(ask(engine, rows(0, 40), clean).hits, 40U);
  ask(engine, rows(40, 40), clean);
  EXPECT_EQ(graph.run(rows(40, 40)).chunks, 0U);

  LayerEngine other(cache, {.chunk = 32});
  EXPECT_EQ(Graph(other, clean).run(rows(0, 80)).chunks, 0U);
}

TEST(LayerTask, AnyPatternOfHits) {
  std::mt19937 random(3);
  for (const std::uint32_t chunk : {1U, 32U}) {
    LayerEngine engine(memory(), {.chunk = chunk, .verify = 0.1});
    Graph graph(engine, clean, chunk);
    for (int round = 0; round < 200; ++round) {
      if (round % 40 == 0) engine.clear();
      std::vector<std::int64_t> places(1 + random() % 70);
      for (auto& place : places) place = static_cast<std::int64_t>(random() % 200);
      const Batch batch(data(), places);
      ASSERT_EQ(graph.run(batch).bytes(), in_chunks(clean, batch, chunk)) << round;
    }
    EXPECT_GT(engine.stats().verified, 100U);
    EXPECT_EQ(engine.stats().deviating, 0U);
  }
}

TEST(LayerTask, TheProbeGoesOnUntilRowsDiffer) {
  LayerEngine engine(memory(), {.chunk = 32});
  Graph graph(engine, clean);
  EXPECT_EQ(graph.run(rows(0, 1)).chunks, 1U);
  EXPECT_FALSE(engine.stats().verdict->complete);
  EXPECT_EQ(graph.run(rows(0, 3)).chunks, 4U);
  EXPECT_TRUE(engine.stats().verdict->complete);
  EXPECT_EQ(graph.run(rows(10, 3)).chunks, 1U);
}

TEST(LayerTask, RowsThatDependOnTheirSlotAreNotKept) {
  LayerEngine engine(memory(), {.chunk = 32});
  Graph graph(engine, by_slot);
  graph.run(rows(0, 40));
  EXPECT_TRUE(contains(engine.stats().verdict->text, "slot: "));
  const std::string why = bypassed([&] { graph.run(rows(0, 40)); });
  EXPECT_TRUE(contains(why, "needs chunks of 1: trace it again")) << why;

  const Batch batch = rows(0, 8);
  const Members members(batch);
  EXPECT_EQ(engine.task_chunk({.members = members.span()}, 40), 1U);
  Graph again(engine, by_slot, 1);
  EXPECT_EQ(again.run(batch).bytes(), in_chunks(by_slot, batch, 1));
  expect_counts(engine, 0, 48);

  LayerEngine lenient(memory(), {.chunk = 32, .accept_slot = true});
  Graph accepted(lenient, by_slot);
  accepted.run(rows(0, 40));
  EXPECT_EQ(accepted.run(rows(0, 40)).chunks, 0U);
}

TEST(LayerTask, RowsThatDependOnEachOtherAreRefused) {
  for (const std::uint32_t chunk : {1U, 32U}) {
    LayerEngine engine(memory(), {.chunk = chunk});
    Graph graph(engine, by_largest, chunk);
    const std::string refused = error(ErrorCode::kUnsupported, [&] { graph.run(rows(0, 40)); });
    EXPECT_TRUE(contains(refused, "cannot be cached one by one")) << refused;
    const std::string why = bypassed([&] { graph.run(rows(0, 40)); });
    EXPECT_TRUE(contains(why, "refused by the probe")) << why;
    const Batch batch = rows(0, 8);
    const Members members(batch);
    EXPECT_NE(
        bypassed([&] { static_cast<void>(engine.task_chunk({.members = members.span()}, 8)); }),
        "");
    EXPECT_EQ(engine.cache().stats().entries, 1U);  // the verdict
  }
}

TEST(LayerTask, RunsThatDifferAreRefused) {
  int call = 0;
  const Function restless = [&](const Batch& x) {
    Leaves leaves = clean(x);
    const auto value = static_cast<float>(++call);
    std::memcpy(leaves[0].data.data(), &value, sizeof value);
    return leaves;
  };
  LayerEngine engine(memory(), {.chunk = 1});
  Graph graph(engine, restless, 1);
  const std::string refused = error(ErrorCode::kUnsupported, [&] { graph.run(rows(0, 1)); });
  EXPECT_TRUE(contains(refused, "two runs on the same row differ")) << refused;
}

TEST(LayerTask, VerifyFindsAnotherLayer) {
  LayerEngine engine(memory(), {.chunk = 32, .verify = 1.0});
  Graph(engine, clean).run(rows(0, 40));
  const Function other = [](const Batch& x) {
    Leaves leaves = clean(x);
    for (std::size_t row = 0; row < x.rows(); ++row) {
      leaves[0].data[row * kColumns * sizeof(float)] ^= std::byte{1};
    }
    return leaves;
  };
  const Ran ran = Graph(engine, other).run(rows(0, 40));
  EXPECT_EQ(ran.chunks, 2U);
  EXPECT_EQ(ran.bytes(), in_chunks(clean, rows(0, 40), 32));  // the hits, as they are stored
  EXPECT_EQ(ran.deviation.rows, 40U);
  EXPECT_GT(ran.deviation.largest, 0);
  EXPECT_EQ(engine.stats().deviating, 40U);
}

TEST(LayerTask, AskedToStepAside) {
  LayerEngine engine(memory(), {.bypass = BypassMode::kAlways});
  Graph graph(engine, by_largest);
  const Ran ran = graph.run(rows(0, 5));
  EXPECT_EQ(ran.whole, LayerTask::Whole::kAnswer);
  EXPECT_EQ(ran.chunks, 0U);
  EXPECT_EQ(engine.bypass().report().always, 1U);
  EXPECT_EQ(engine.cache().stats().entries, 0U);
}

TEST(LayerTask, ALayerThatChunksMakeFarSlowerIsLeft) {
  LayerEngine engine(memory(), {.chunk = 1});
  Graph graph(engine, clean, 1);
  std::size_t priced = 0;
  unsigned calls = 0;
  while (calls < 60 && graph.run(Batch(40, 7, 1000 + calls)).whole != LayerTask::Whole::kAnswer) {
    if (++calls > 1 && engine.bypass().wants_price()) ++priced;
  }
  EXPECT_GE(calls, 10U);  // what the cache takes counts, too
  EXPECT_LE(calls, 27U);
  EXPECT_EQ(priced, 2U);
  EXPECT_TRUE(contains(engine.bypass().report().decision, "of a layer of 1.00 ms, which takes 40"));
}

TEST(LayerTask, ATaskThatIsDroppedHoldsNobodyUp) {
  LayerEngine engine(memory(), {.chunk = 32});
  ask(engine, rows(100, 40), clean);  // settles the plan
  const Batch batch = rows(0, 64);
  const Members members(batch);
  const LayerCall call{.members = members.span()};
  std::optional<LayerTask> open(engine.begin(call, {.chunk = 32, .leaves = one_leaf()}));
  EXPECT_EQ(open->chunks(), 2U);
  EXPECT_EQ(ask(engine, batch, clean).hits, 0U);  // would wait for ever for rows of the task
  open.reset();
  EXPECT_EQ(ask(engine, batch, clean).hits, 64U);
}

TEST(LayerTask, WhatWasDeliveredIsKept) {
  LayerEngine engine(memory(), {.chunk = 32});
  ask(engine, rows(100, 40), clean);
  const Batch batch = rows(0, 64);
  const Members members(batch);
  {
    LayerTask task = engine.begin({.members = members.span()}, {.chunk = 32, .leaves = one_leaf()});
    const auto first = task.positions().first(32);
    task.deliver(0, views_of(clean(Batch(batch, {first.begin(), first.end()}))), 0.001);
  }
  EXPECT_EQ(ask(engine, batch, clean).hits, 32U);
}

TEST(LayerTask, RefusesWhatIsOutOfTurnOrOfAnotherShape) {
  LayerEngine engine(memory(), {.chunk = 32});
  ask(engine, rows(100, 40), clean);
  const Batch batch = rows(0, 64);
  const Members members(batch);
  LayerTask task = engine.begin({.members = members.span()}, {.chunk = 32, .leaves = one_leaf()});
  const Leaves good = clean(rows(0, 32));
  const auto refused = [&](auto&& call) {
    return error(ErrorCode::kInvalidArgument, [&] { call(); });
  };
  EXPECT_TRUE(contains(refused([&] { task.deliver(1, views_of(good), 0); }), "out of turn"));
  EXPECT_TRUE(contains(refused([&] { task.deliver_whole(views_of(good), 0); }), "out of turn"));
  EXPECT_TRUE(contains(refused([&] { task.deliver(0, {}, 0); }), "0 tensors; expected 1"));
  const Leaves few = clean(rows(0, 31));
  EXPECT_TRUE(contains(refused([&] { task.deliver(0, views_of(few), 0); }), "32 rows"));
  Leaves another = good;
  another[0].dtype = DType::kInt32;
  EXPECT_TRUE(contains(refused([&] { task.deliver(0, views_of(another), 0); }), "float32"));
  std::vector<std::byte> small(7);
  std::array<std::span<std::byte>, 1> outs{std::span(small)};
  task.read(outs);  // nothing was found: nothing is written
  task.deliver(0, views_of(good), 0);
  EXPECT_TRUE(contains(refused([&] { task.deliver(0, views_of(good), 0); }), "out of turn"));
  EXPECT_TRUE(contains(
      refused([&] { static_cast<void>(engine.begin({.members = members.span()}, {.chunk = 7})); }),
      "chunk is 7"));
}

TEST(LayerTask, RowsOfAnotherShapeAreNoAnswer) {
  LayerEngine engine(memory(), {.chunk = 32});
  Graph(engine, clean).run(rows(0, 40));
  const Batch batch = rows(0, 40);
  const Members members(batch);
  for (const LeafShape& leaf : {LeafShape{.dtype = DType::kInt32, .shape = {kColumns}},
                                LeafShape{.dtype = DType::kFloat32, .shape = {kColumns, 1}}}) {
    const std::vector<LeafShape> leaves{leaf};
    const std::string why = bypassed([&] {
      static_cast<void>(engine.begin({.members = members.span()}, {.chunk = 32, .leaves = leaves}));
    });
    EXPECT_TRUE(contains(why, "stored with other leaves")) << why;
  }
}

TEST(LayerTask, WeightsAndSecretsKeepRowsApart) {
  LayerEngine engine(memory(), {.chunk = 32});
  Graph graph(engine, clean);
  const std::array<std::uint8_t, 32> secret{1};
  const std::array<std::uint8_t, 32> another{2};
  const LayerCall plain{};
  const LayerCall trained{.weights = {1}};
  const LayerCall tenant{.secret = secret};
  const LayerCall stranger{.secret = another};
  for (const LayerCall& call : {plain, trained, tenant, stranger}) {
    EXPECT_GE(graph.run(rows(0, 40), call).chunks, 2U);
    EXPECT_EQ(graph.run(rows(0, 40), call).chunks, 0U);
  }
}

TEST(LayerTask, OtherProcessesFollowTheVerdict) {
  const TempDir folder;
  {
    LayerEngine engine(folder.cache(), {.chunk = 32});
    Graph(engine, by_slot).run(rows(0, 40));
    ASSERT_TRUE(engine.cache().flush(10));
  }
  LayerEngine engine(folder.cache(), {.chunk = 0});
  const Batch batch = rows(0, 40);
  const Members members(batch);
  EXPECT_EQ(engine.task_chunk({.members = members.span()}, 40), 1U);
}

TEST(LayerTaskThreads, ShareAnEngine) {
  LayerEngine engine(memory(), {.chunk = 32, .verify = 0.05});
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&engine, &wrong, seed] {
      std::mt19937 random(seed);
      Graph graph(engine, clean);
      for (int round = 0; round < 30; ++round) {
        std::vector<std::int64_t> places(1 + random() % 40);
        for (auto& place : places) place = static_cast<std::int64_t>(random() % 100);
        const Batch batch(data(), places);
        const bool right = round % 3 == 0
                               ? ask(engine, batch, clean).bytes == in_chunks(clean, batch, 32)
                               : graph.run(batch).bytes() == in_chunks(clean, batch, 32);
        if (!right) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(engine.stats().deviating, 0U);
}

}  // namespace
}  // namespace tensorkey
