#include <tensorkey/hints.h>

#include <gtest/gtest.h>

#include <random>

namespace tensorkey {
namespace {

using Said = std::vector<std::string>;

void pass(Passes& passes, std::uint64_t batch, std::uint64_t batches, std::uint64_t last,
          std::uint64_t hits = 0, std::uint64_t layer = 1) {
  for (std::uint64_t i = 0; i < batches; ++i) passes.observe({batch, hits, layer});
  if (last > 0) passes.observe({last, 0, layer});
}

Said hints_of(const Passes& passes) { return hints({.misses = 1000}, {}, passes); }

TEST(Passes, ASecondPassIsKnownByItsSmallerLastBatch) {
  Passes passes;
  pass(passes, 64, 15, 40);
  EXPECT_EQ(passes.rows(), 0U);
  EXPECT_EQ(hints_of(passes), Said{});
  pass(passes, 64, 15, 40);
  EXPECT_EQ(passes.rows(), 1000U);
  EXPECT_EQ(hints_of(passes),
            Said{"second pass and 0 % hits: inputs differ each time (augmentation?)"});
}

TEST(Passes, TrainingAndValidationMayTakeTurns) {
  Passes passes;
  for (const std::uint64_t epoch : {0U, 1U}) {
    pass(passes, 64, 15, 40);
    pass(passes, 256, 4, 100, epoch * 256);
    EXPECT_EQ(passes.rows(), epoch * 1124U);
  }
  EXPECT_EQ(hints_of(passes), Said{});  // validation hits
  pass(passes, 64, 15, 40);
  EXPECT_EQ(hints_of(passes).size(), 1U);  // training does not
}

TEST(Passes, HitsAreNoCauseForAHint) {
  Passes passes;
  pass(passes, 64, 15, 40);
  pass(passes, 64, 15, 40, 1);
  EXPECT_EQ(passes.hits(), 15U);
  EXPECT_EQ(hints_of(passes), Said{});
}

TEST(Passes, AChangedLayerIsNamedInsteadOfTheInputs) {
  Passes passes;
  pass(passes, 64, 15, 40, 0, 1);
  pass(passes, 64, 15, 40, 0, 2);
  ASSERT_EQ(hints_of(passes).size(), 1U);
  EXPECT_NE(hints_of(passes)[0].find("the layer changed in between"), std::string::npos);
}

TEST(Passes, EvictionExplainsMissesBetter) {
  Passes passes;
  pass(passes, 64, 15, 40);
  pass(passes, 64, 15, 40);
  EXPECT_EQ(hints({.misses = 1000, .misses_evicted = 600}, {}, passes), Said{});
}

TEST(Passes, ServersGiveNoFalseAlarm) {
  Passes passes;
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) passes.observe({1 + random() % 32, 0, 1});
  EXPECT_EQ(passes.rows(), 0U);
  for (int i = 0; i < 100000; ++i) passes.observe({1, 0, 1});
  for (int i = 0; i < 1000; ++i) pass(passes, 8, 2, 4);  // requests of 20 rows, cut into eights
  EXPECT_EQ(passes.rows(), 0U);
}

TEST(Passes, WhatWasNotSeenIsNotCounted) {
  Passes passes;
  for (int i = 0; i < 4; ++i) {
    pass(passes, 64, 7, 0);
    passes.interrupt();
    pass(passes, 64, 8, 40);
    EXPECT_EQ(passes.rows(), i == 0 ? 0U : 552U);  // alike by chance: 8 batches and 40 rows
  }
}

TEST(Hints, TheBound) {
  CacheStats cache{.bound = 3'100'000,
                   .bytes = 3'100'000,
                   .metadata = 100'000,
                   .entries = 3000,
                   .misses_new = 10'000,
                   .misses_evicted = 7'000,
                   .insertions = 10'000,
                   .evictions = 7'000,
                   .distinct = 10'000};
  EXPECT_EQ(hints({}, cache, {}),
            Said{"the bound holds 30 % of what was asked for: 3.0 MiB of about 9.6 MiB"});
  CacheStats whole = cache;
  whole.distinct = 3000;
  EXPECT_EQ(hints({}, whole, {}), Said{});
  CacheStats once = cache;  // a stream that never asks again wants no larger bound
  once.misses_evicted = 0;
  EXPECT_EQ(hints({}, once, {}), Said{});
}

TEST(Hints, NothingFits) {
  EXPECT_EQ(hints({}, {.bound = 65536, .misses_new = 2, .rejections = 2}, {}),
            Said{"no answer fits the bound of 64.0 KiB: nothing is stored"});
}

TEST(Hints, PaddingAndExpiry) {
  EXPECT_EQ(
      hints({.misses = 100, .padded_rows = 300}, {}, {}),
      Said{"75 % of the rows run only filled a chunk: larger batches, or chunk=1, run fewer"});
  EXPECT_EQ(hints({.misses = 100, .padded_rows = 100}, {}, {}), Said{});
  EXPECT_EQ(hints({.misses = 200, .misses_expired = 150}, {}, {}),
            Said{"75 % of the misses were there, but older than ttl"});
  EXPECT_EQ(hints({.misses = 99, .misses_expired = 99, .padded_rows = 999}, {}, {}), Said{});
}

}  // namespace
}  // namespace tensorkey
