#include <tensorkey/probe.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "memo/layer_test_layers.h"

namespace tensorkey {
namespace {

using testing::Batch;
using testing::Function;
using testing::leaf;
using testing::Leaves;
using testing::Runner;

std::vector<std::int64_t> first(std::int64_t count) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

ProbeOptions options(std::uint32_t chunk = 32) {
  return {.chunk = chunk, .clock = [] { return 0.0; }};
}

ProbeResult run(const Function& function, std::uint32_t chunk = 32, std::int64_t rows = 16) {
  const Batch batch(16, 7, 1);
  Runner runner(batch, function);
  return probe(runner, first(rows), options(chunk));
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string message(const Function& function, std::uint32_t chunk = 32) {
  try {
    run(function, chunk);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(Probe, ACleanLayerKeepsItsChunk) {
  const ProbeResult found = run(testing::clean);
  EXPECT_EQ(found.verdict.chunk, 32U);
  EXPECT_FALSE(found.verdict.refused);
  EXPECT_TRUE(found.verdict.complete);
  EXPECT_EQ(found.verdict.text,
            "clean: 16 rows keep their bits wherever they stand in a chunk of 32 and whatever "
            "stands beside them");
  EXPECT_EQ(found.by_row, (std::vector<std::uint8_t>{1}));
  EXPECT_EQ(found.rows, (found.runs - 1) * 32 + 2);
}

TEST(Probe, ChunksOfOneRowAreComparedWithABatch) {
  const ProbeResult found = run(testing::clean, 1);
  EXPECT_EQ(found.verdict.chunk, 1U);
  EXPECT_EQ(found.verdict.text, "clean: 16 rows have equal bits alone and in a batch");
}

TEST(Probe, BitsThatDependOnTheSlotRunOneRowAtATime) {
  const ProbeResult found = run(testing::by_slot);
  EXPECT_EQ(found.verdict.chunk, 1U);
  EXPECT_FALSE(found.verdict.refused);
  EXPECT_TRUE(
      found.verdict.text.starts_with("slot: 16 of 16 rows change in the last bits with "
                                     "their place in a chunk of 32, by up to "))
      << found.verdict.text;
  EXPECT_TRUE(contains(found.verdict.text,
                       ": runs one row at a time; alone and in a batch of 16, 4 of 16 rows differ "
                       "in the last bits"))
      << found.verdict.text;
}

TEST(Probe, SlotDifferencesCanBeAccepted) {
  const Batch batch(16, 7, 1);
  Runner runner(batch, testing::by_slot);
  ProbeOptions accepting = options();
  accepting.accept_slot = true;
  const ProbeResult found = probe(runner, first(16), accepting);
  EXPECT_EQ(found.verdict.chunk, 32U);
  EXPECT_FALSE(found.verdict.refused);
  EXPECT_TRUE(found.verdict.text.ends_with(": slot differences accepted (bits=\"slot\")"))
      << found.verdict.text;

  Runner dependent(batch, testing::by_largest);
  EXPECT_TRUE(probe(dependent, first(16), accepting).verdict.refused);
}

TEST(Probe, RowsThatDependOnEachOtherAreRefused) {
  for (const std::uint32_t chunk : {1U, 32U}) {
    const ProbeResult found = run(testing::by_largest, chunk);
    EXPECT_TRUE(found.verdict.refused);
    EXPECT_TRUE(found.verdict.text.starts_with("rows depend on each other: "))
        << found.verdict.text;
  }
}

TEST(Probe, ADependenceOnOneRowAloneIsFound) {
  // The largest value of all stands in one row: where it is there, all others change.
  Batch batch(16, 7, 1);
  batch.values[35] = 40;
  Runner runner(batch, testing::by_largest);
  EXPECT_TRUE(probe(runner, first(16), options()).verdict.refused);
}

TEST(Probe, RowsThatSeeTheirPlaceAreRefused) {
  const ProbeResult found = run([](const Batch& x) {
    std::vector<float> values;
    for (std::size_t r = 0; r < x.rows(); ++r)
      values.push_back(x.row(r)[0] + static_cast<float>(r));
    return Leaves{leaf<float>("out", {static_cast<std::int64_t>(x.rows())}, values)};
  });
  EXPECT_TRUE(found.verdict.refused);
  EXPECT_TRUE(contains(found.verdict.text, "rows depend on their place in the batch"));
}

TEST(Probe, ALayerThatDrawsRandomNumbersIsRefusedAndTheirStatePutBack) {
  const Batch batch(16, 7, 1);
  Runner* drawing = nullptr;
  Runner runner(batch, [&](const Batch& x) {
    drawing->random += "+";
    return testing::clean(x);
  });
  drawing = &runner;
  const ProbeResult found = probe(runner, first(16), options());
  EXPECT_TRUE(found.verdict.refused);
  EXPECT_EQ(found.verdict.text,
            "it draws random numbers in each run; put it in inference mode first, such as "
            "layer.eval(), or cache the part before the random one");
  EXPECT_EQ(runner.random, "seed");
  EXPECT_EQ(runner.restored, 1);
}

TEST(Probe, ALayerWithStateIsRefusedAndItsBuffersPutBack) {
  const Batch batch(16, 7, 1);
  Runner* counting = nullptr;
  Runner runner(batch, [&](const Batch& x) {
    counting->changed = {"a", "b", "c", "d", "e"};
    return testing::clean(x);
  });
  counting = &runner;
  ProbeOptions state = options(1);
  state.state_only = true;
  for (const ProbeOptions& asked : {options(), options(1), state}) {
    const ProbeResult found = probe(runner, first(1), asked);
    EXPECT_TRUE(found.verdict.refused);
    EXPECT_TRUE(contains(found.verdict.text, "each run changes its own state (a, b, c, d, ...); "));
  }
  EXPECT_EQ(runner.restored, 3);
}

TEST(Probe, TheFirstRunMayChangeStateAndDiffer) {
  const Batch batch(16, 7, 1);
  Runner* lazy = nullptr;
  Runner runner(batch, [&](const Batch& x) {
    if (lazy->runs == 1) {
      lazy->changed = {"cache"};
      return testing::by_largest(x);
    }
    return testing::clean(x);
  });
  lazy = &runner;
  EXPECT_FALSE(probe(runner, first(16), options()).verdict.refused);
}

TEST(Probe, RunsThatDifferAreRefused) {
  float noise = 0;
  const ProbeResult found = run([&](const Batch& x) {
    noise += 1;
    return Leaves{leaf<float>("out", {static_cast<std::int64_t>(x.rows())},
                              std::vector<float>(x.rows(), noise))};
  });
  EXPECT_TRUE(found.verdict.refused);
  EXPECT_TRUE(found.verdict.text.starts_with("two runs on the same rows differ, by up to "));
}

TEST(Probe, OneRowLeavesNeighboursOpen) {
  for (const std::uint32_t chunk : {1U, 32U}) {
    const ProbeResult found = run(testing::by_largest, chunk, 1);
    EXPECT_FALSE(found.verdict.refused);
    EXPECT_FALSE(found.verdict.complete);
    EXPECT_EQ(found.verdict.chunk, chunk);
    EXPECT_TRUE(contains(found.verdict.text, "neighbours not yet measured: only one row"));
  }
}

TEST(Probe, LeavesAreTheSameForEveryRowOrHaveARowForEach) {
  const ProbeResult found = run(testing::several);
  EXPECT_FALSE(found.verdict.refused);
  EXPECT_EQ(found.by_row, (std::vector<std::uint8_t>{1, 1, 0}));
}

// A table of 32 rows beside a chunk of 32, one of 2 beside the pair, one of 1 beside one row.
TEST(Probe, AFirstDimThatEqualsTheChunkByChanceIsNoRow) {
  for (const std::int64_t size : {1, 2, 32}) {
    const Function function = [size](const Batch& x) {
      Leaves leaves = testing::clean(x);
      leaves.push_back(
          leaf<float>("table", {size}, std::vector<float>(static_cast<std::size_t>(size), 7)));
      return leaves;
    };
    for (const std::uint32_t chunk : {1U, 32U}) {
      const ProbeResult found = run(function, chunk);
      EXPECT_EQ(found.by_row, (std::vector<std::uint8_t>{1, 0}));
      EXPECT_FALSE(found.verdict.refused) << found.verdict.text;
    }
  }
}

TEST(Probe, ALeafThatIsNeitherIsRefusedByItsPath) {
  const auto with = [](auto make) {
    return [make](const Batch& x) {
      Leaves leaves = testing::clean(x);
      leaves.push_back(make(x));
      return leaves;
    };
  };
  const std::string twice = message(with([](const Batch& x) {
    return leaf<float>("aux[0]", {static_cast<std::int64_t>(2 * x.rows())},
                       std::vector<float>(2 * x.rows()));
  }));
  EXPECT_EQ(twice,
            "[CachedLayer] output leaf aux[0] has neither a row for each input row nor the same "
            "value for every row: shape (4,) for 2 rows");
  const std::string square = message(with([](const Batch& x) {
    const auto rows = static_cast<std::int64_t>(x.rows());
    return leaf<float>("mask", {rows, rows}, std::vector<float>(x.rows() * x.rows()));
  }));
  EXPECT_TRUE(contains(square, "leaf mask has neither")) << square;
  const std::string sum = message(with([](const Batch& x) {
    return leaf<float>("loss", {}, {std::accumulate(x.values.begin(), x.values.end(), 0.0F)});
  }));
  EXPECT_TRUE(contains(sum, "leaf loss has neither")) << sum;
  // Only another row shows that it is not constant: it counts rows by what they are.
  const std::string other = message(with([](const Batch& x) {
    return leaf<float>("first", {1, 1, 1}, {x.row(0)[0]});
  }));
  EXPECT_TRUE(contains(other, "leaf first has neither")) << other;
}

TEST(Probe, ANumberOfRowsInTheFormIsRefused) {
  const Batch batch(16, 7, 1);
  Runner* sized = nullptr;
  Runner runner(batch, [&](const Batch& x) {
    sized->form = std::to_string(x.rows());
    return testing::clean(x);
  });
  sized = &runner;
  EXPECT_THROW(static_cast<void>(probe(runner, first(16), options())), Error);
  EXPECT_EQ(runner.random, "seed");
}

TEST(Probe, TheWorstLeafIsNamed) {
  const ProbeResult found = run([](const Batch& x) {
    Leaves leaves = testing::clean(x);
    Leaves moved = testing::by_slot(x);
    moved[0].path = "logits";
    leaves.push_back(moved[0]);
    return leaves;
  });
  EXPECT_EQ(found.verdict.chunk, 1U);
  EXPECT_TRUE(contains(found.verdict.text, " units in the last place in logits: runs one row"))
      << found.verdict.text;
}

TEST(Probe, StateAloneLooksAtNothingElse) {
  const Batch batch(1, 7, 1);
  Runner runner(batch, testing::by_largest);
  ProbeOptions state = options(1);
  state.state_only = true;
  const ProbeResult found = probe(runner, first(1), state);
  EXPECT_FALSE(found.verdict.refused);
  EXPECT_TRUE(found.verdict.complete);
  EXPECT_EQ(runner.runs, 2);
  EXPECT_EQ(found.by_row, (std::vector<std::uint8_t>{1}));
}

TEST(Probe, EndsEarlyWhereTheLayerIsSlow) {
  const Batch batch(16, 7, 1);
  double now = 0;
  Runner runner(batch, [&](const Batch& x) {
    now += 10;
    return testing::clean(x);
  });
  const ProbeResult slow = probe(runner, first(16), {.clock = [&] { return now; }});
  EXPECT_FALSE(slow.verdict.refused);
  EXPECT_TRUE(slow.verdict.complete);
  EXPECT_LT(slow.runs, run(testing::clean).runs);
  EXPECT_GE(slow.runs, 10U);  // three shifts, two of (a), (b)
}

TEST(Probe, WhatTheLayerThrowsPassesThrough) {
  const Batch batch(16, 7, 1);
  for (const int last : {1, 3}) {
    Runner* failing = nullptr;
    Runner runner(batch, [&](const Batch& x) {
      failing->random = "drawn";
      if (failing->runs == last) throw std::range_error("the layer's own");
      return testing::clean(x);
    });
    failing = &runner;
    EXPECT_THROW(static_cast<void>(probe(runner, first(16), options())), std::range_error);
    EXPECT_EQ(runner.random, "seed");
    EXPECT_EQ(runner.restored, 1);
  }
}

}  // namespace
}  // namespace tensorkey
