#include <tensorkey/layer.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "memo/layer_test_calls.h"

namespace tensorkey {
namespace {

using testing::ask;
using testing::Batch;
using testing::bypassed;
using testing::clean;
using testing::contains;
using testing::data;
using testing::error;
using testing::Function;
using testing::in_chunks;
using testing::Leaf;
using testing::leaf;
using testing::Leaves;
using testing::memory;
using testing::rows;
using testing::Runner;

// --- Answers

TEST(Layer, RunsOnlyWhatIsMissing) {
  LayerEngine engine(memory(), {});
  const auto first = ask(engine, rows(0, 40), clean);
  EXPECT_EQ(first.hits, 0U);
  EXPECT_EQ(first.rows_run, 64U);
  EXPECT_EQ(first.bytes, in_chunks(clean, rows(0, 40), 32));
  const auto second = ask(engine, rows(20, 40), clean);
  EXPECT_EQ(second.hits, 20U);
  EXPECT_EQ(second.rows_run, 32U);
  EXPECT_EQ(second.runs, 1);
  EXPECT_EQ(second.bytes, in_chunks(clean, rows(20, 40), 32));
  EXPECT_EQ(ask(engine, rows(5, 50), clean).runs, 0);
  EXPECT_EQ(engine.stats().verdict->chunk, 32U);
  EXPECT_GT(engine.stats().probe_runs, 0U);
}

// Whatever was a hit and whatever a miss, answers are those of the layer run in chunks.
TEST(Layer, AnyPatternOfHitsGivesTheBitsOfTheLayerInChunks) {
  for (const Function& function : {Function(clean), Function(testing::by_slot)}) {
    auto cache = memory(100'000);  // some are evicted
    LayerEngine engine(cache, {});
    std::mt19937 random(11);
    ask(engine, rows(0, 40), function);
    const std::uint32_t chunk = engine.stats().verdict->chunk;
    for (int round = 0; round < 600; ++round) {
      std::vector<std::int64_t> places(random() % 50 + 1);
      for (std::int64_t& place : places) place = static_cast<std::int64_t>(random() % 400);
      const Batch batch(data(), places);
      ASSERT_EQ(ask(engine, batch, function).bytes, in_chunks(function, batch, chunk)) << round;
    }
    const MemoStats stats = engine.memo().stats();
    EXPECT_EQ(stats.hits + stats.misses, stats.lookups);
    EXPECT_GT(cache->stats().evictions, 0U);
  }
}

TEST(Layer, SlotDependentBitsRunOneRowAtATime) {
  LayerEngine engine(memory(), {});
  const auto answer = ask(engine, rows(0, 40), testing::by_slot);
  EXPECT_EQ(answer.bytes, in_chunks(testing::by_slot, rows(0, 40), 1));
  EXPECT_EQ(answer.rows_run, 40U);
  EXPECT_EQ(engine.stats().verdict->chunk, 1U);

  LayerEngine accepting(memory(), {.accept_slot = true});
  EXPECT_EQ(ask(accepting, rows(0, 40), testing::by_slot).rows_run, 64U);
  EXPECT_EQ(accepting.stats().verdict->chunk, 32U);
}

TEST(Layer, IsLeftIfItsChunksMakeItFarSlower) {
  LayerEngine engine(memory(), {.chunk = 1});
  std::vector<int> runs;
  for (unsigned call = 0; call < 60 && !engine.bypass().aside(); ++call) {
    runs.push_back(ask(engine, Batch(40, 7, 1000 + call), clean).runs);
  }
  ASSERT_GE(runs.size(), 10U);  // what the cache takes counts, too
  ASSERT_LE(runs.size(), 27U);
  EXPECT_EQ(runs.rbegin()[2], 40);
  EXPECT_EQ(runs.rbegin()[1], 41);  // and once as a whole
  EXPECT_EQ(runs.rbegin()[0], 41);
  EXPECT_TRUE(contains(engine.bypass().report().decision, "of a layer of 1.00 ms, which takes 40"));
}

TEST(Layer, EvenChunksNeedNoPrice) {
  LayerEngine engine(memory(), {.chunk = 32});
  for (unsigned call = 0; call < 600; ++call) {
    const int runs = ask(engine, Batch(64, 7, 1000 + call), clean).runs;
    EXPECT_TRUE(runs == 2 || call == 0) << runs;
    EXPECT_FALSE(engine.bypass().wants_price());
  }
}

TEST(Layer, ChunkIsResolvedByTheFirstCall) {
  LayerEngine small(memory(), {});
  EXPECT_EQ(ask(small, rows(0, 8), clean).rows_run, 8U);
  EXPECT_EQ(ask(small, rows(100, 40), clean).rows_run, 40U);
  LayerEngine large(memory(), {});
  EXPECT_EQ(ask(large, rows(0, 16), clean).rows_run, 32U);
  LayerEngine told(memory(), {.chunk = 64});
  EXPECT_EQ(ask(told, rows(0, 8), clean).rows_run, 64U);
}

TEST(Layer, LeavesOfAllKindsComeBack) {
  LayerEngine engine(memory(), {});
  for (int round = 0; round < 2; ++round) {
    const auto answer = ask(engine, rows(0, 20), testing::several);
    ASSERT_EQ(answer.leaves.size(), 3U);
    EXPECT_EQ(answer.leaves[0].shape, (std::vector<std::int64_t>{20, 3}));
    EXPECT_EQ(answer.leaves[1].shape, (std::vector<std::int64_t>{20}));
    EXPECT_EQ(answer.leaves[1].dtype, DType::kInt32);
    EXPECT_EQ(answer.leaves[2].shape, (std::vector<std::int64_t>{2, 2}));
    EXPECT_FALSE(answer.leaves[2].by_row);
    EXPECT_EQ(answer.form, "tensor");
    EXPECT_EQ(answer.bytes, in_chunks(testing::several, rows(0, 20), 32));
    EXPECT_EQ(answer.runs > 0, round == 0);
  }
}

TEST(Layer, AnOutputOfConstantsAloneIsAnswered) {
  const Function constant = [](const Batch&) { return Leaves{leaf<float>("table", {2}, {1, 2})}; };
  LayerEngine engine(memory(), {});
  EXPECT_EQ(ask(engine, rows(0, 20), constant).bytes, in_chunks(constant, rows(0, 20), 32));
  EXPECT_EQ(ask(engine, rows(0, 20), constant).runs, 0);
}

TEST(Layer, AssembleAsksForExactlyTheRoomOfTheLeaves) {
  LayerEngine engine(memory(), {});
  const Batch batch = rows(0, 4);
  Runner runner(batch, clean);
  const testing::Members members(batch);
  const LayerAnswer answer = engine.answer({.members = members.span()}, runner);
  std::vector<std::byte> room(4 * 3 * 4 + 1);
  const std::span<std::byte> small = std::span(room).first(room.size() - 2);
  const std::span<std::byte> large = room;
  EXPECT_THROW(answer.assemble({&small, 1}), Error);
  EXPECT_THROW(answer.assemble({&large, 1}), Error);
  EXPECT_THROW(answer.assemble({}), Error);
}

TEST(Layer, AnotherLayerOrOtherWeightsAreOtherAnswers) {
  LayerEngine engine(memory(), {.probe = false});
  const Function twice = [](const Batch& x) {
    std::vector<float> values;
    for (std::size_t r = 0; r < x.rows(); ++r) values.push_back(2 * x.row(r)[0]);
    return Leaves{leaf<float>("out", {static_cast<std::int64_t>(x.rows())}, values)};
  };
  ask(engine, rows(0, 20), clean);
  EXPECT_EQ(ask(engine, rows(0, 20), twice, {.about = Digest{9}}).bytes,
            in_chunks(twice, rows(0, 20), 32));
  EXPECT_EQ(ask(engine, rows(0, 20), twice, {.weights = Digest{9}}).bytes,
            in_chunks(twice, rows(0, 20), 32));
  EXPECT_EQ(ask(engine, rows(0, 20), clean).runs, 0);
  const Batch batch = rows(0, 2);
  const testing::Members members(batch);
  EXPECT_NE(engine.scope({.members = members.span()}),
            engine.scope({.members = members.span(), .weights = Digest{9}}));
  EXPECT_FALSE(engine.scope({.members = members.span(), .about = Digest{77}}));
}

TEST(Layer, WithoutRowsThereIsNothingToAnswer) {
  LayerEngine engine(memory(), {});
  EXPECT_EQ(bypassed([&] { ask(engine, rows(0, 0), clean); }), "a batch of 0 rows");
  Runner runner(data(), clean);
  EXPECT_EQ(bypassed([&] { static_cast<void>(engine.answer({}, runner)); }),
            "no tensor among the inputs");
}

TEST(Layer, OptionsOutOfRangeAreRefused) {
  for (const LayerOptions& options :
       {LayerOptions{.chunk = 33}, LayerOptions{.chunk = 1U << 20}, LayerOptions{.verify = 1.5},
        LayerOptions{.verify = -1}, LayerOptions{.tolerance = -1},
        LayerOptions{.chunk = 32, .rows_are_batches = true}}) {
    EXPECT_THROW(LayerEngine(memory(), options), Error);
  }
  EXPECT_THROW(LayerEngine(nullptr, {}), Error);
}

// --- Refusals

TEST(Layer, RowsThatDependOnEachOtherAreRefusedLoudlyAtFirst) {
  LayerEngine engine(memory(), {});
  for (int round = 0; round < 2; ++round) {
    const std::string why = error(ErrorCode::kUnsupported, [&] {
      const auto answer = ask(engine, rows(0, 20), testing::by_largest);
      EXPECT_EQ(round, 0);
    });
    EXPECT_TRUE(contains(why,
                         "[CachedLayer] the rows of this layer cannot be cached one by one: rows "
                         "depend on each other"))
        << why;
  }
  // It was probed once.
  const std::uint64_t runs = engine.stats().probe_runs;
  ask(engine, rows(0, 20), clean, {.about = Digest{1}});
  EXPECT_GT(engine.stats().probe_runs, runs);
  EXPECT_TRUE(bypassed([&] {
                ask(engine, rows(0, 20), testing::by_largest);
              }).starts_with("refused by the probe: rows depend on each other"));
  EXPECT_TRUE(engine.stats().verdict->refused);
}

TEST(Layer, ALeafThatIsNeitherIsRefusedByItsPath) {
  const Function twice = [](const Batch& x) {
    return Leaves{leaf<float>("aux", {static_cast<std::int64_t>(2 * x.rows())},
                              std::vector<float>(2 * x.rows()))};
  };
  LayerEngine engine(memory(), {});
  const std::string why =
      error(ErrorCode::kInvalidArgument, [&] { ask(engine, rows(0, 20), twice); });
  EXPECT_TRUE(contains(why, "output leaf aux has neither a row for each input row")) << why;
  ask(engine, rows(0, 20), clean, {.about = Digest{1}});
  EXPECT_TRUE(contains(bypassed([&] { ask(engine, rows(0, 20), twice); }), "leaf aux"));
}

// What the probe did not see is seen by the checks of every chunk.
TEST(Layer, AConstantThatChangesLaterIsNotAnswered) {
  float value = 1;
  const Function changing = [&](const Batch& x) {
    Leaves leaves = clean(x);
    leaves.push_back(leaf<float>("table", {1, 1}, {value}));
    return leaves;
  };
  LayerEngine engine(memory(), {});
  ask(engine, rows(0, 20), changing);
  value = 2;
  EXPECT_TRUE(contains(bypassed([&] { ask(engine, rows(100, 20), changing); }), "leaf table"));
  int runs = 0;
  const Function counted = [&](const Batch& x) {
    ++runs;
    return changing(x);
  };
  EXPECT_NE(bypassed([&] { ask(engine, rows(100, 20), counted); }), "");
  EXPECT_EQ(runs, 0);  // so it stays
}

TEST(Layer, OutputsThatCannotBeStoredRunWithoutTheCache) {
  const Function dates = [](const Batch& x) {
    Leaf made = leaf<std::int64_t>("when", {static_cast<std::int64_t>(x.rows())},
                                   std::vector<std::int64_t>(x.rows(), 5));
    made.dtype = DType::kDateTime64;
    made.params = "ns";
    return Leaves{made};
  };
  LayerEngine engine(memory(), {});
  for (int round = 0; round < 2; ++round) {
    const std::string why = bypassed([&] { ask(engine, rows(0, 20), dates); });
    EXPECT_TRUE(contains(why, "its output cannot be stored: ")) << why;
  }
}

TEST(Layer, RowsOfDifferentShapesRunWithoutTheCache) {
  const Function by_first = [](const Batch& x) {
    const std::int64_t width = x.row(0)[0] < 0 ? 1 : 2;
    return Leaves{leaf<float>("out", {static_cast<std::int64_t>(x.rows()), width},
                              std::vector<float>(x.rows() * static_cast<std::size_t>(width)))};
  };
  Batch batch(2, 1, 1);
  batch.values = {-1, 1};
  LayerEngine engine(memory(), {.chunk = 1, .probe = false});
  EXPECT_TRUE(contains(bypassed([&] { ask(engine, batch, by_first); }), "differ in shape"));
  // Each alone is stored; together they are no tensor.
  ask(engine, Batch(batch, {0}), by_first);
  ask(engine, Batch(batch, {1}), by_first);
  EXPECT_TRUE(contains(bypassed([&] { ask(engine, batch, by_first); }), "differ in shape"));
}

TEST(Layer, WhatTheLayerThrowsPassesThroughAndStoresNothing) {
  LayerEngine engine(memory(), {});
  ask(engine, rows(0, 20), clean);
  bool fails = true;
  const Function failing = [&](const Batch& x) {
    if (fails) throw std::range_error("the layer's own");
    return clean(x);
  };
  EXPECT_THROW(ask(engine, rows(0, 20), failing, {.about = Digest{3}}), std::range_error);
  EXPECT_THROW(ask(engine, rows(10, 20), failing), std::range_error);
  fails = false;
  EXPECT_EQ(ask(engine, rows(10, 20), failing).hits, 10U);
}

TEST(Layer, ARunnerThatBypassesForGoodIsNotAskedAgain) {
  LayerEngine engine(memory(), {});
  int runs = 0;
  const Function unfit = [&](const Batch&) -> Leaves {
    ++runs;
    throw LayerBypassed("a tensor subclass", true);
  };
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(bypassed([&] { ask(engine, rows(0, 20), unfit); }), "a tensor subclass");
  }
  EXPECT_EQ(runs, 1);
  const Function once = [&](const Batch&) -> Leaves { throw LayerBypassed("out of memory"); };
  ask(engine, rows(0, 20), clean, {.about = Digest{4}});
  EXPECT_EQ(bypassed([&] { ask(engine, rows(100, 20), once, {.about = Digest{4}}); }),
            "out of memory");
  EXPECT_EQ(ask(engine, rows(100, 20), clean, {.about = Digest{4}}).hits, 0U);
}

// --- Plans

TEST(Layer, OneRowIsProvenWhenThereAreMore) {
  LayerEngine engine(memory(), {});
  ask(engine, rows(0, 1), clean);
  EXPECT_FALSE(engine.stats().verdict->complete);
  ask(engine, rows(1, 1), clean);
  EXPECT_FALSE(engine.stats().verdict->complete);
  ask(engine, rows(2, 2), clean);
  EXPECT_TRUE(engine.stats().verdict->complete);

  LayerEngine dependent(memory(), {});
  ask(dependent, rows(0, 1), testing::by_largest);
  EXPECT_TRUE(contains(
      error(ErrorCode::kUnsupported, [&] { ask(dependent, rows(1, 20), testing::by_largest); }),
      "rows depend on each other"));
}

Batch wide(std::size_t count, unsigned seed) { return {count, 9, seed}; }

TEST(Layer, UnprovenIsSaid) {
  LayerEngine engine(memory(), {.probe = false});
  EXPECT_EQ(ask(engine, rows(0, 20), testing::by_largest).runs, 3);  // of two sizes, and the misses
  EXPECT_EQ(engine.stats().verdict->text, "unproven: probe=False");
  EXPECT_EQ(ask(engine, wide(20, 1), testing::by_largest).runs, 1);
  LayerEngine whole(memory(), {.rows_are_batches = true, .probe = false});
  EXPECT_EQ(ask(whole, rows(0, 1), testing::by_largest).runs, 1);
}

TEST(Layer, AnotherShapeOfRowsGetsTheShortForm) {
  LayerEngine engine(memory(), {});
  ask(engine, rows(0, 20), clean);
  const auto answer = ask(engine, wide(40, 1), clean);
  EXPECT_EQ(answer.runs, 3);  // the first chunk twice
  EXPECT_EQ(answer.rows_run, 64U);
  EXPECT_EQ(answer.bytes, in_chunks(clean, wide(40, 1), 32));
  EXPECT_EQ(engine.stats().verdict->text,
            "clean in short: 32 rows of this shape keep their bits in a second run, one slot "
            "further");
  EXPECT_EQ(ask(engine, wide(40, 2), clean).runs, 2);
}

TEST(Layer, TheShortFormFindsBitsThatDependOnTheSlot) {
  const Function by_width = [](const Batch& x) {
    return x.width == 9 ? testing::by_slot(x) : clean(x);
  };
  LayerEngine engine(memory(), {});
  ask(engine, rows(0, 20), by_width);
  const auto answer = ask(engine, wide(40, 1), by_width);
  EXPECT_EQ(answer.bytes, in_chunks(by_width, wide(40, 1), 1));
  EXPECT_EQ(engine.stats().verdict->chunk, 1U);
  EXPECT_TRUE(engine.stats().verdict->text.starts_with("slot: ")) << engine.stats().verdict->text;
  ask(engine, rows(0, 20), by_width);
  EXPECT_EQ(engine.stats().verdict->chunk, 32U);
}

TEST(Layer, TheShortFormRefusesRowsThatDependOnTheirPlace) {
  const Function by_width = [](const Batch& x) {
    if (x.width != 9) return clean(x);
    std::vector<float> values;
    for (std::size_t r = 0; r < x.rows(); ++r) values.push_back(static_cast<float>(r));
    return Leaves{leaf<float>("out", {static_cast<std::int64_t>(x.rows())}, values)};
  };
  LayerEngine engine(memory(), {});
  ask(engine, rows(0, 20), by_width);
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(contains(bypassed([&] { ask(engine, wide(40, 1), by_width); }),
                         "refused by the probe: 32 of 32 rows change one slot further"));
  }
}

TEST(Layer, RowsThatAreBatchesAreRunAlone) {
  LayerEngine engine(memory(), {.rows_are_batches = true});
  for (int round = 0; round < 2; ++round) {
    const auto answer = ask(engine, rows(0, 1), testing::by_largest);
    EXPECT_EQ(answer.bytes, in_chunks(testing::by_largest, rows(0, 1), 1));
    EXPECT_EQ(answer.runs, round == 0 ? 3 : 0);
  }
  EXPECT_EQ(ask(engine, wide(1, 1), testing::by_largest).runs, 2);  // the short form
  EXPECT_EQ(ask(engine, wide(1, 1), testing::by_largest).runs, 0);
}

TEST(Layer, VouchedAnswersAreNotProbed) {
  LayerEngine engine(memory(), {});
  ask(engine, rows(0, 20), clean, {.vouched = true});
  EXPECT_EQ(engine.stats().probe_runs, 2U);  // what the output is made of
  EXPECT_EQ(engine.stats().verdict->text, "unproven: only stored answers so far");
  EXPECT_EQ(ask(engine, rows(0, 20), clean).hits, 20U);
  EXPECT_EQ(engine.stats().probe_runs, 2U);  // nothing was to be run
  EXPECT_EQ(ask(engine, rows(0, 40), clean).hits, 20U);
  EXPECT_TRUE(engine.stats().verdict->text.starts_with("clean: "));
}

TEST(Layer, VouchedAnswersAreFoundByOthers) {
  const auto cache = memory();
  LayerEngine one(cache, {});
  ask(one, rows(0, 20), clean, {.vouched = true});
  LayerEngine other(cache, {});
  EXPECT_EQ(ask(other, rows(0, 3), clean).hits, 3U);  // in the chunks of the first
  EXPECT_EQ(other.stats().probe_runs, 0U);
  EXPECT_EQ(ask(other, rows(10, 40), clean).hits, 10U);
  EXPECT_TRUE(other.stats().verdict->text.starts_with("clean: "));
}

}  // namespace
}  // namespace tensorkey
