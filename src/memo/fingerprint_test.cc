#include <tensorkey/fingerprint.h>

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

using Dims = std::array<std::int64_t, 2>;

TEST(ChangeDigest, SeesDtypeShapeElementsAndOrder) {
  const std::array<float, 6> data{1, 2, 3, 4, 5, 6};
  const std::array<float, 6> other{1, 2, 3, 4, 5, 7};
  const Dims wide{2, 3};
  const Dims high{3, 2};
  TensorView bits = view(data.data(), wide);
  bits.dtype = DType::kInt32;
  const TensorView one = view(data.data(), wide);
  const TensorView two = view(other.data(), wide);
  std::set<std::array<std::uint8_t, 16>> digests;
  for (const std::vector<TensorView>& views : {std::vector<TensorView>{one},
                                               {two},
                                               {bits},
                                               {view(data.data(), high)},
                                               {},
                                               {one, two},
                                               {two, one},
                                               {one, one}}) {
    digests.insert(change_digest(views));
  }
  EXPECT_EQ(digests.size(), 8U);
}

TEST(ChangeDigest, IsOfTheContentWhateverTheStrides) {
  const std::array<float, 6> data{1, 2, 3, 4, 5, 6};
  const std::array<float, 6> transposed{1, 4, 2, 5, 3, 6};
  const Dims dims{2, 3};
  const Dims strides{1, 2};
  TensorView strided = view(transposed.data(), dims);
  strided.strides = strides;
  strided.stride_unit = sizeof(float);
  EXPECT_EQ(change_digest(std::array{view(data.data(), dims)}), change_digest(std::array{strided}));
}

TEST(ChangeDigest, RefusesWhatCannotBeRead) {
  const Dims dims{2, 3};
  const TensorView broken = view(static_cast<const float*>(nullptr), dims);
  EXPECT_THROW(static_cast<void>(change_digest(std::array{broken})), Error);
}

TEST(StrictInterval, CostsOnePercentOfTheLayer) {
  EXPECT_EQ(strict_interval(1e-3, 100e-3), 1U);
  EXPECT_EQ(strict_interval(1e-3, 99e-3), 2U);
  EXPECT_EQ(strict_interval(3.5e-3, 15.8e-3), 23U);
  EXPECT_EQ(strict_interval(1, 0.1), 1000U);
  EXPECT_EQ(strict_interval(1, 1e-300), 1000U);
}

TEST(StrictInterval, IsDefinedEverywhere) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(strict_interval(0, 1), 1U);
  EXPECT_EQ(strict_interval(0, 0), 1U);
  EXPECT_EQ(strict_interval(1, 0), 1000U);
  EXPECT_EQ(strict_interval(1, -1), 1000U);
  EXPECT_EQ(strict_interval(1, inf), 1U);
  EXPECT_EQ(strict_interval(inf, 1), 1000U);
  EXPECT_EQ(strict_interval(inf, inf), 1000U);
  EXPECT_EQ(strict_interval(nan, 1), 1U);
  EXPECT_EQ(strict_interval(1, nan), 1000U);
}

int due_of(StrictSchedule& schedule, int calls) {
  int due = 0;
  for (int i = 0; i < calls; ++i) due += schedule.due() ? 1 : 0;
  return due;
}

void observe_layers(StrictSchedule& schedule, int calls, double seconds) {
  for (int i = 0; i < calls; ++i) schedule.observe_layer(seconds);
}

TEST(StrictSchedule, IsStrictUntilEightCallsAreMeasured) {
  StrictSchedule schedule;
  schedule.observe_strict(1e-3);
  observe_layers(schedule, 7, 1e-3);
  EXPECT_EQ(schedule.interval(), 1U);
  EXPECT_EQ(due_of(schedule, 10), 10);
  schedule.observe_layer(1e-3);
  EXPECT_EQ(schedule.interval(), 100U);
  EXPECT_EQ(due_of(schedule, 1000), 10);
}

TEST(StrictSchedule, ChecksEveryNthCall) {
  StrictSchedule schedule;
  schedule.observe_strict(5e-3);
  observe_layers(schedule, 8, 100e-3);
  ASSERT_EQ(schedule.interval(), 5U);
  for (int call = 0; call < 50; ++call) EXPECT_EQ(schedule.due(), call % 5 == 0) << call;
}

TEST(StrictSchedule, ADemandIsForTheNextCallAlone) {
  StrictSchedule schedule;
  schedule.observe_strict(1e-3);
  observe_layers(schedule, 8, 1e-3);
  EXPECT_TRUE(schedule.due());
  EXPECT_FALSE(schedule.due());
  schedule.demand();
  EXPECT_TRUE(schedule.due());
  EXPECT_EQ(due_of(schedule, 99), 0);
  EXPECT_TRUE(schedule.due());
}

TEST(StrictSchedule, MovesByHalfOrNotAtAll) {
  StrictSchedule schedule;
  schedule.observe_strict(10e-3);
  observe_layers(schedule, 8, 100e-3);
  ASSERT_EQ(schedule.interval(), 10U);
  schedule.observe_strict(14e-3);
  schedule.observe_layer(100e-3);
  EXPECT_EQ(schedule.interval(), 10U);
  schedule.observe_strict(15e-3);
  schedule.observe_layer(100e-3);
  EXPECT_EQ(schedule.interval(), 15U);
  schedule.observe_strict(8e-3);
  schedule.observe_layer(100e-3);
  EXPECT_EQ(schedule.interval(), 15U);
  schedule.observe_strict(7e-3);
  schedule.observe_layer(100e-3);
  EXPECT_EQ(schedule.interval(), 7U);
}

TEST(StrictSchedule, TakesTheMedianOfTheLastCalls) {
  StrictSchedule schedule;
  schedule.observe_strict(1e-3);
  observe_layers(schedule, 8, 1e-3);
  observe_layers(schedule, 7, 1.0);  // a few slow ones
  EXPECT_EQ(schedule.interval(), 100U);
  observe_layers(schedule, 63, 1.0);  // the earlier ones have left the window
  EXPECT_EQ(schedule.interval(), 1U);
}

TEST(StrictSchedule, AShorterIntervalHoldsAtOnce) {
  StrictSchedule schedule;
  schedule.observe_strict(1e-3);
  observe_layers(schedule, 8, 1e-4);
  EXPECT_TRUE(schedule.due());  // and then 999 calls that are not
  observe_layers(schedule, 63, 50e-3);
  ASSERT_EQ(schedule.interval(), 2U);
  EXPECT_FALSE(schedule.due());
  EXPECT_TRUE(schedule.due());
}

}  // namespace
}  // namespace tensorkey
