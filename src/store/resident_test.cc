// The resident set of the process stays within 10 % of the bound. The figure means nothing under a
// sanitizer, which keeps memory of its own: only builds without one have this test.
#include <gtest/gtest.h>

#include "store/resident_set.h"

namespace tensorkey::resident {
namespace {

TEST(Resident, SixteenWritersStayWithinTheBound) {
  constexpr std::size_t kBound = 64 * kMiB;
  for (Mix mix : kMixes) {
    mix.steps /= 4;
    mix.keys /= 4;
    const Peak peak = measure(mix, kBound);
    EXPECT_LE(peak.counted, kBound) << mix.name;
    EXPECT_LE(peak.resident, kBound + kBound / 10) << mix.name;
    EXPECT_GT(peak.resident, kBound / 2) << mix.name;
    EXPECT_GT(peak.last.evictions, 0U) << mix.name;
  }
}

}  // namespace
}  // namespace tensorkey::resident
