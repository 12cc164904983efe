// Streams are played against the policy in made-up seconds: no clock is read.
#include <tensorkey/bypass.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <unordered_set>
#include <vector>

namespace tensorkey {
namespace {

// A layer and its cache, in seconds a call of 64 rows.
struct World {
  double layer = 1e-3;
  double cache = 130e-6;
  double in_chunks = 0;  // the layer in uneven chunks; 0: they are even, and cost what it does
  BypassPolicy policy = {};
  std::uint64_t priced = 0;
  std::uint64_t left = 0;
  std::uint64_t aside = 0;
  std::uint64_t calls = 0;
  std::uint64_t through = 0;
  double overhead = 0;  // what the cache cost, net of what it saved
  std::unordered_set<std::uint64_t> stored = {};

  CallCosts costs(std::uint64_t hits) const {
    const double run = in_chunks > 0 ? in_chunks : layer;
    return {.calls = 1,
            .rows = 64,
            .hits = hits,
            .rows_run = 64 - hits,
            .seconds_layer = run * static_cast<double>(64 - hits) / 64,
            .seconds_saved = run * static_cast<double>(hits) / 64,
            .seconds_digest = cache / 2,
            .seconds_frontend = cache / 2,
            .uneven = in_chunks > 0 && hits < 64};
  }

  // One call with a batch that is known by its number.
  void call(std::uint64_t batch) {
    ++calls;
    if (left > 0) {
      --left;
      ++aside;
      return;
    }
    ++through;
    CallCosts measured = costs(stored.insert(batch).second ? 0 : 64);
    if (measured.uneven && policy.wants_price()) {
      ++priced;
      measured.rows_whole = 64;
      measured.seconds_whole = layer;
      overhead += layer;
    }
    overhead += measured.seconds_cache() - (layer - measured.seconds_layer);
    left = policy.observe(measured, aside);
    aside = 0;
  }

  double burden() const { return overhead / (static_cast<double>(calls) * layer); }
};

TEST(Judge, StaysWhereHitsPayOrTheCacheIsCheap) {
  World world;
  EXPECT_FALSE(judge(world.costs(0)).worthwhile);
  EXPECT_FALSE(judge(world.costs(8)).worthwhile);  // saves 125 us, costs 130
  EXPECT_TRUE(judge(world.costs(9)).worthwhile);
  EXPECT_TRUE(judge(world.costs(64), 1e-3 / 64).worthwhile);
  world.layer = 0.05;
  EXPECT_TRUE(judge(world.costs(0)).worthwhile);  // 0.3 % of the layer
  EXPECT_NEAR(judge(world.costs(16)).saving, 0.0125, 1e-12);
}

TEST(Judge, PaddingIsNoSaving) {
  CallCosts costs{.calls = 10, .rows = 10, .rows_run = 320, .seconds_layer = 0.32};
  costs.seconds_insert = 1e-3;
  const BypassJudgement found = judge(costs);
  EXPECT_NEAR(found.layer, 1e-3, 1e-12);  // a row alone
  EXPECT_NEAR(found.saving, -31e-3, 1e-12);
  EXPECT_FALSE(found.worthwhile);
}

TEST(Judge, ALayerThatNeverRanIsKnownByWhatItsHitsCost) {
  const CallCosts costs{.calls = 2, .rows = 8, .hits = 8, .seconds_saved = 0.8};
  EXPECT_NEAR(judge(costs).layer, 0.4, 1e-12);
  EXPECT_NEAR(judge(costs, 0.2).layer, 0.8, 1e-12);
}

TEST(Judge, ChunksOfMoreThanTwiceTheLayerAreNotCheapHoweverCheapTheCache) {
  World world{.layer = 5e-3, .cache = 10e-6, .in_chunks = 9e-3};
  EXPECT_TRUE(judge(world.costs(0), 0, 5e-3 / 64).worthwhile);
  world.in_chunks = 11e-3;
  const BypassJudgement found = judge(world.costs(0), 0, 5e-3 / 64);
  EXPECT_FALSE(found.worthwhile);
  EXPECT_NEAR(found.layer, 5e-3, 1e-12);
  EXPECT_NEAR(found.waste, 6e-3, 1e-12);
  EXPECT_TRUE(judge(world.costs(0)).worthwhile);  // for want of a price
  EXPECT_TRUE(judge(world.costs(64), 11e-3 / 64, 5e-3 / 64).worthwhile);
}

TEST(Judge, ARowAloneIsNotSlowerForBeingPadded) {
  CallCosts costs{.calls = 10, .rows = 10, .hits = 5, .rows_run = 160, .seconds_layer = 5e-3};
  costs.seconds_insert = 1e-3;
  const BypassJudgement found = judge(costs, 0, 1e-3);
  EXPECT_NEAR(found.layer, 1e-3, 1e-12);
  EXPECT_NEAR(found.saving, 0.5e-3, 1e-12);
  EXPECT_NEAR(found.waste, 0, 1e-12);
  EXPECT_TRUE(found.worthwhile);
}

TEST(BypassPolicy, DecidesAfterFiftyCallsAndOneSecond) {
  World fast;
  for (int i = 0; i < 884; ++i) fast.call(static_cast<std::uint64_t>(i));
  EXPECT_FALSE(fast.policy.is_aside());  // 884 * 1.13 ms < 1 s
  fast.call(884);
  EXPECT_TRUE(fast.policy.is_aside());
  EXPECT_EQ(fast.policy.decision(),
            "stepped aside: a call costs 130 us in the cache and saves 0.00 us of a layer of "
            "1.00 ms");
  World slow{.layer = 0.5, .cache = 0.1};
  for (std::uint64_t i = 0; i < 49; ++i) slow.call(i);
  EXPECT_FALSE(slow.policy.is_aside());
  slow.call(49);
  EXPECT_TRUE(slow.policy.is_aside());
}

TEST(BypassPolicy, AnExpensiveLayerIsNeverLeftForWantOfHits) {
  World world{.layer = 0.05, .cache = 3e-4};
  for (std::uint64_t i = 0; i < 10000; ++i) world.call(i);
  EXPECT_EQ(world.through, world.calls);
  EXPECT_LT(world.burden(), 0.02);
  EXPECT_EQ(world.policy.decision(),
            "in the cache: a call costs 300 us in the cache, 0.6 % of a layer of 50.0 ms");
}

TEST(BypassPolicy, AStreamWithoutReuseCostsAtMostTwoPercent) {
  for (const double cache : {16e-6, 30e-6, 130e-6, 400e-6, 1e-3, 5e-3}) {
    World world{.cache = cache};
    const auto learned = static_cast<std::uint64_t>(1 / (1e-3 + cache)) + 1;
    for (std::uint64_t i = 0; i < learned; ++i) world.call(i);
    const double learning = world.overhead;
    for (std::uint64_t i = learned; i < learned + 30000; ++i) world.call(i);
    EXPECT_LT(world.overhead - learning, 0.011 * 30000 * world.layer) << cache;
    EXPECT_GT(world.through, learned + 5) << cache;  // it goes on probing
  }
}

TEST(BypassPolicy, ALayerCheaperThanItsCacheIsLeftForGood) {
  World world{.layer = 20e-6, .cache = 100e-6};
  for (std::uint64_t i = 0; i < 1000000; ++i) world.call(i % 1000);  // repeats, to no avail
  EXPECT_TRUE(world.policy.is_aside());
  EXPECT_LT(world.through, 12000U);
  EXPECT_NE(world.policy.decision().find("saves 18"), std::string::npos) << world.policy.decision();
}

TEST(BypassPolicy, ChunksThatMakeALayerFarSlowerAreLeft) {
  World world{.layer = 5e-3, .cache = 50e-6, .in_chunks = 0.2};
  for (std::uint64_t i = 0; i < 10; ++i) world.call(i);
  EXPECT_TRUE(world.policy.is_aside());
  EXPECT_EQ(world.priced, 2U);
  EXPECT_EQ(world.policy.decision(),
            "stepped aside: a call costs 50.0 us in the cache and saves 0.00 us of a layer of "
            "5.00 ms, which takes 200 ms in its chunks");
  const double learning = world.overhead;
  for (std::uint64_t i = 0; i < 100000; ++i) world.call(100 + i);
  EXPECT_LT(world.overhead - learning, 0.011 * 100000 * world.layer);
  EXPECT_GT(world.through, 15U);  // it goes on probing
}

TEST(BypassPolicy, ChunksThatMakeALayerFarSlowerAreKeptWhereAllIsFound) {
  World world{.layer = 5e-3, .cache = 50e-6, .in_chunks = 0.2};
  for (std::uint64_t i = 0; i < 20000; ++i) world.call(i % 4);
  EXPECT_EQ(world.through, world.calls);
}

// Passes over `batches` batches, in the same order or in another one each time.
double share_through(World& world, std::uint64_t batches, int passes, bool shuffle) {
  std::mt19937_64 random(7);
  std::vector<std::uint64_t> order(batches);
  std::iota(order.begin(), order.end(), 0);
  std::uint64_t before = 0;
  for (int pass = 0; pass < passes; ++pass) {
    if (shuffle) std::shuffle(order.begin(), order.end(), random);
    before = world.through;
    for (const std::uint64_t batch : order) world.call(batch);
  }
  return static_cast<double>(world.through - before) / static_cast<double>(batches);
}

TEST(BypassPolicy, EpochsAreFoundAgainHoweverLong) {
  for (const bool shuffle : {false, true}) {
    for (const std::uint64_t batches : {100U, 1000U, 1013U, 5000U, 40000U}) {
      World world;
      EXPECT_GT(share_through(world, batches, 8, shuffle), 0.99) << batches << shuffle;
      EXPECT_LT(world.burden(), -0.3) << batches << shuffle;  // most of seven passes is saved
    }
  }
}

TEST(BypassPolicy, AStreamThatBeginsToRepeatIsFoundAgain) {
  World world;
  for (std::uint64_t i = 0; i < 20000; ++i) world.call(1000000 + i);
  EXPECT_TRUE(world.policy.is_aside());
  EXPECT_GT(share_through(world, 2000, 40, true), 0.99);
  EXPECT_EQ(world.policy.decision().rfind("in the cache: ", 0), 0U) << world.policy.decision();
}

TEST(BypassPolicy, WhenRepeatingEndsItStepsAside) {
  World world;
  share_through(world, 2000, 5, false);
  EXPECT_FALSE(world.policy.is_aside());
  for (std::uint64_t i = 0; i < 3000; ++i) world.call(1000000 + i);
  EXPECT_TRUE(world.policy.is_aside());
}

TEST(BypassPolicy, AHotRowThatDoesNotPayIsTriedEverMoreRarely) {
  World world;
  std::mt19937_64 random(3);
  for (std::uint64_t i = 0; i < 300000; ++i) {
    world.call(random() % 50 == 0 ? 0 : 1000 + i);  // 2 % of the calls repeat one batch
  }
  EXPECT_LT(world.burden(), 0.03);  // there is reuse, so P5 does not bind; it stays near
}

TEST(BypassPolicy, AJudgementNeedsNoClockAndIsTheSameEachTime) {
  World one, other;
  for (World* world : {&one, &other}) {
    for (std::uint64_t i = 0; i < 20000; ++i) world->call(i % 7000);
  }
  EXPECT_EQ(one.through, other.through);
  EXPECT_EQ(one.policy.decision(), other.policy.decision());
}

TEST(BypassPolicy, StrangeCostsAreSurvived) {
  BypassPolicy policy;
  for (int i = 0; i < 200; ++i) policy.observe({.calls = 1, .rows = 1, .seconds_frontend = 1}, 0);
  EXPECT_TRUE(policy.is_aside());  // a layer that takes no time
  for (int i = 0; i < 200; ++i) EXPECT_GT(policy.observe({.calls = 1, .rows = 1}, 9), 0U);
}

TEST(Bypass, ModesCount) {
  Bypass bypass(BypassMode::kNever);
  EXPECT_FALSE(bypass.aside());
  bypass.set_mode(BypassMode::kAlways);
  EXPECT_TRUE(bypass.aside());
  EXPECT_TRUE(bypass.aside());
  bypass.set_mode(BypassMode::kAuto);
  EXPECT_FALSE(bypass.aside());
  EXPECT_EQ(bypass.report().always, 2U);
  bypass.reset_counts();
  EXPECT_EQ(bypass.report().always, 0U);
}

TEST(Bypass, StepsAsideForAsManyCallsAsThePolicySays) {
  const World world;
  Bypass bypass;
  int through = 0;
  while (!bypass.aside()) {
    EXPECT_FALSE(bypass.observe(world.costs(0)));
    ++through;
  }
  EXPECT_EQ(through, 885);
  std::uint64_t aside = 1;
  while (bypass.aside()) ++aside;
  EXPECT_GE(aside, 6U);
  EXPECT_LE(aside, 20U);
  EXPECT_EQ(bypass.report().aside, aside);
  EXPECT_TRUE(bypass.observe(world.costs(0)));
}

TEST(Bypass, DisabledNests) {
  Bypass bypass(BypassMode::kNever);
  {
    const Disabled outer;
    {
      const Disabled inner;
      EXPECT_TRUE(bypass.aside());
    }
    EXPECT_TRUE(disabled());
    EXPECT_TRUE(bypass.aside());
  }
  EXPECT_FALSE(bypass.aside());
  EXPECT_EQ(bypass.report().disabled, 2U);
}

}  // namespace
}  // namespace tensorkey
