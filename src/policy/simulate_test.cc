#include <gtest/gtest.h>
#include <tensorkey/error.h>
#include <tensorkey/simulate.h>

#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace tensorkey {
namespace {

std::vector<Access> parse(const std::string& text) {
  std::istringstream input(text);
  return read_trace(input);
}

TEST(Trace, ReadsFieldsAndSkipsTheRest) {
  const auto trace = parse("# key size cost\n\na 10 0.5\r\nb\t20\n  a 10 1e-3 1699999.5 more\nc");
  ASSERT_EQ(trace.size(), 4u);
  EXPECT_EQ(trace[0].size, 10u);
  EXPECT_EQ(trace[0].cost, 0.5);
  EXPECT_EQ(trace[1].size, 20u);
  EXPECT_EQ(trace[1].cost, 1);
  EXPECT_EQ(trace[2].cost, 1e-3);
  EXPECT_EQ(trace[3].size, 1u);
  EXPECT_EQ(trace[0].key, trace[2].key);
  EXPECT_NE(trace[0].key, trace[1].key);
  EXPECT_TRUE(parse("").empty());
  EXPECT_TRUE(parse("#").empty());
}

TEST(Trace, RefusesBadLinesByNumber) {
  const std::string longest(5000, 'x');
  for (const std::string& line :
       {std::string("a -1"), std::string("a 1.5"), std::string("a 99999999999999999999"),
        std::string("a 0x10"), std::string("a 1 nan"), std::string("a 1 -0.5"),
        std::string("a 1 inf"), std::string("a 1 1e999"), std::string("a 1 1e16"),
        std::string("a 1 1,5"), std::string("a size"), std::string("a 1099511627777"), longest}) {
    try {
      parse("ok 1 1\n# fine\n" + line + "\n");
      ADD_FAILURE() << line;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find("[read_trace] line 3: "), std::string::npos)
          << error.what();
    }
  }
}

TEST(Trace, SurvivesAnyBytes) {
  std::uint64_t state = 1;
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (int j = 0; j < 64; ++j) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      text.push_back("a1 \n\t-.e#9\0\xff"[(state >> 33) % 12]);
    }
    try {
      for (const Access& access : parse(text)) {
        EXPECT_TRUE(access.cost >= 0);
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
}

TEST(Simulate, CountsWhatWasAskedAndFound) {
  const std::vector<Access> trace = {{.key = 1, .size = 10, .cost = 2},
                                     {.key = 2, .size = 30, .cost = 1},
                                     {.key = 1, .size = 10, .cost = 2},
                                     {.key = 3, .size = 99, .cost = 5}};
  const Replay replay = simulate("lru", trace, 40);
  EXPECT_EQ(replay.policy, "lru");
  EXPECT_EQ(replay.requests, 4u);
  EXPECT_EQ(replay.hits, 1u);
  EXPECT_DOUBLE_EQ(replay.hit_ratio(), 0.25);
  EXPECT_DOUBLE_EQ(replay.byte_hit_ratio(), 10.0 / 149);
  EXPECT_DOUBLE_EQ(replay.saved_ratio(), 0.2);
  EXPECT_EQ(replay.evictions, 0u);
  EXPECT_EQ(replay.rejections, 1u);
}

TEST(Simulate, KnowsItsPolicies) {
  ASSERT_FALSE(simulated_policies().empty());
  EXPECT_EQ(simulated_policies().front(), "tensorkey");
  EXPECT_EQ(simulated_policies().back(), "belady");
  for (const std::string_view policy : simulated_policies()) {
    const Replay none = simulate(policy, {}, 10);
    EXPECT_EQ(none.requests, 0u);
    EXPECT_EQ(none.hit_ratio(), 0);
    EXPECT_EQ(none.saved_ratio(), 0);
  }
}

TEST(Simulate, EveryPolicyRepeatsItself) {
  std::vector<Access> trace;
  std::uint64_t state = 7;
  for (int i = 0; i < 20'000; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const std::uint64_t key = (state >> 40) % 300 * ((state >> 20) % 4);
    trace.push_back({.key = key, .size = key % 50, .cost = static_cast<double>(key % 7)});
  }
  for (const std::string_view policy : simulated_policies()) {
    const Replay one = simulate(policy, trace, 2000);
    const Replay two = simulate(policy, trace, 2000);
    EXPECT_EQ(one.hits, two.hits) << policy;
    EXPECT_EQ(one.evictions, two.evictions) << policy;
    EXPECT_GT(one.hits, 0u) << policy;
  }
}

TEST(Simulate, RefusesWhatItCannotReplay) {
  const std::vector<Access> trace = {{.key = 1}};
  EXPECT_THROW(simulate("lfu", trace, 10), Error);
  EXPECT_THROW(simulate("lru", trace, 0), Error);
  EXPECT_THROW(simulate("lru", trace, ~std::uint64_t{0}), Error);
  for (const double cost :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const std::vector<Access> bad = {{.key = 1, .size = 1, .cost = cost}};
    EXPECT_THROW(simulate("lru", bad, 10), Error);
  }
}

TEST(Simulate, TakesSizesOfAnyMagnitude) {
  const std::vector<Access> trace = {{.key = 1, .size = ~std::uint64_t{0}},
                                     {.key = 2, .size = 0},
                                     {.key = 3, .size = std::uint64_t{1} << 62},
                                     {.key = 2, .size = 0},
                                     {.key = 3, .size = std::uint64_t{1} << 62}};
  for (const std::string_view policy : simulated_policies()) {
    EXPECT_LE(simulate(policy, trace, std::uint64_t{1} << 62).hits, 2u) << policy;
  }
}

}  // namespace
}  // namespace tensorkey
