#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include <tensorkey/map.h>

namespace tensorkey {
namespace {

// What unique_rows promises, computed by comparing every row with every row.
UniqueRows reference(const std::vector<std::vector<float>>& rows) {
  UniqueRows out;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto same = std::find_if(out.first.begin(), out.first.end(), [&](std::int64_t j) {
      const auto& other = rows[static_cast<std::size_t>(j)];
      return other.empty() ||
             std::memcmp(other.data(), rows[i].data(), other.size() * sizeof(float)) == 0;
    });
    const auto group = same - out.first.begin();
    if (same == out.first.end()) {
      out.first.push_back(static_cast<std::int64_t>(i));
      out.counts.push_back(0);
    }
    out.inverse.push_back(group);
    ++out.counts[static_cast<std::size_t>(group)];
  }
  return out;
}

void expect_equal(const UniqueRows& a, const UniqueRows& b) {
  EXPECT_EQ(a.first, b.first);
  EXPECT_EQ(a.inverse, b.inverse);
  EXPECT_EQ(a.counts, b.counts);
}

TEST(Unique, AgreesWithPairwiseComparison) {
  std::mt19937 random(11);
  // The last width makes rows larger than a tile.
  for (const std::size_t width : {0u, 1u, 2u, 3u, 17u, 400u, 70000u}) {
    const std::size_t count = width > 1000 ? 12 : 400;
    std::vector<std::vector<float>> rows(count, std::vector<float>(width));
    std::vector<float> flat, turned(count * width);
    for (std::size_t r = 0; r < count; ++r) {
      if (width != 0) rows[r][width - 1] = static_cast<float>(random() % (count / 3 + 1));
      if (width > 1) rows[r][0] = random() % 2 == 0 ? 0.0f : -0.0f;
      flat.insert(flat.end(), rows[r].begin(), rows[r].end());
      for (std::size_t c = 0; c < width; ++c) turned[c * count + r] = rows[r][c];
    }
    const std::vector<std::int64_t> shape{static_cast<std::int64_t>(count),
                                          static_cast<std::int64_t>(width)};
    const UniqueRows expected = reference(rows);
    expect_equal(unique_rows(view(flat.data(), shape)), expected);
    const std::vector<std::int64_t> strides{4, static_cast<std::int64_t>(count * 4)};
    TensorView transposed = view(turned.data(), shape);
    transposed.strides = strides;
    expect_equal(unique_rows(transposed), expected);
    if (width == 2) {
      EXPECT_LT(unique_rows(view(flat.data(), shape), {.canonical = true}).first.size(),
                expected.first.size());
    }
  }
}

TEST(Unique, NoRowsAndNoDims) {
  const std::vector<std::int64_t> none{0, 3};
  EXPECT_TRUE(unique_rows(view<float>(nullptr, none)).first.empty());
  const float one = 1;
  EXPECT_THROW(static_cast<void>(unique_rows(view(&one, {}))), Error);
  const std::vector<std::int64_t> vector{1};
  EXPECT_EQ(unique_rows(view(&one, vector)).counts, (std::vector<std::int64_t>{1}));
}

}  // namespace
}  // namespace tensorkey
