#include "view/walk.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "view/element.h"

namespace tensorkey::internal {
namespace {

using Bytes = std::vector<std::byte>;
using Dims = std::vector<std::int64_t>;
using Random = std::mt19937_64;

std::int64_t uniform(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

std::vector<DType> all_dtypes() {
  std::vector<DType> dtypes;
  for (std::uint16_t id = 0; id < 100; ++id) {
    if (find_dtype(static_cast<DType>(id)) != nullptr) dtypes.push_back(static_cast<DType>(id));
  }
  return dtypes;
}

// Exponent and mantissa bits of the kinds that canonical changes, and what a NaN becomes. The
// reference below is arithmetic on these, written apart from the rules of element.cc.
struct FloatKind {
  int exponent;
  int mantissa;
  std::uint64_t nan;  // 0: no NaN
  bool has_infinity;
};

const std::map<DType, FloatKind>& float_kinds() {
  static const std::map<DType, FloatKind> kinds = {
      {DType::kFloat16, {5, 10, 0x7E00, true}},
      {DType::kComplex32, {5, 10, 0x7E00, true}},
      {DType::kBFloat16, {8, 7, 0x7FC0, true}},
      {DType::kFloat32, {8, 23, 0x7FC00000, true}},
      {DType::kComplex64, {8, 23, 0x7FC00000, true}},
      {DType::kFloat64, {11, 52, 0x7FF8000000000000, true}},
      {DType::kComplex128, {11, 52, 0x7FF8000000000000, true}},
      {DType::kFloat8E3M4, {3, 4, 0x78, true}},
      {DType::kFloat8E4M3, {4, 3, 0x7C, true}},
      {DType::kFloat8E4M3FN, {4, 3, 0x7F, false}},
      {DType::kFloat8E5M2, {5, 2, 0x7E, true}},
      {DType::kFloat6E2M3FN, {2, 3, 0, false}},
      {DType::kFloat6E3M2FN, {3, 2, 0, false}},
      {DType::kFloat4E2M1FN, {2, 1, 0, false}},
  };
  return kinds;
}

std::uint64_t reference_float(std::uint64_t bits, const FloatKind& kind) {
  const int width = kind.exponent + kind.mantissa;
  const std::uint64_t sign = (bits >> width) & 1;
  const std::uint64_t exponent =
      (bits >> kind.mantissa) & ((std::uint64_t{1} << kind.exponent) - 1);
  const std::uint64_t mantissa = bits & ((std::uint64_t{1} << kind.mantissa) - 1);
  const bool top = exponent == (std::uint64_t{1} << kind.exponent) - 1;
  const bool all_ones = mantissa == (std::uint64_t{1} << kind.mantissa) - 1;
  const bool is_nan = kind.nan != 0 && top && (kind.has_infinity ? mantissa != 0 : all_ones);
  if (is_nan) return kind.nan;
  if (exponent == 0 && mantissa == 0) return 0;
  return (sign << width) | (exponent << kind.mantissa) | mantissa;
}

std::uint64_t reference_part(std::uint64_t bits, DType dtype, bool canonical) {
  const auto id = static_cast<unsigned>(dtype);
  if (dtype == DType::kBool) return bits != 0 ? 1 : 0;
  if (id >= 48 && id <= 54) return bits % (std::uint64_t{1} << (id - 47));
  if (id >= 56 && id <= 62) return bits % (std::uint64_t{1} << (id - 55));
  if (dtype == DType::kFloat4E2M1FN) bits %= 16;
  if (dtype == DType::kFloat6E2M3FN || dtype == DType::kFloat6E3M2FN) bits %= 64;
  if (!canonical) return bits;
  if (dtype == DType::kFloat4E2M1FNx2) {
    const FloatKind nibble = {2, 1, 0, false};
    return reference_float(bits % 16, nibble) | (reference_float(bits / 16, nibble) << 4);
  }
  const auto kind = float_kinds().find(dtype);
  return kind == float_kinds().end() ? bits : reference_float(bits, kind->second);
}

// One element after the other, one byte after the other.
Bytes reference(const TensorView& view, bool canonical) {
  const DTypeInfo& info = *find_dtype(view.dtype);
  Bytes out;
  const std::int64_t count = element_count(view);
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i;
    std::int64_t offset = 0;
    std::int64_t compact = info.item_size;
    for (std::size_t d = view.shape.size(); d-- > 0;) {
      const std::int64_t index = rest % view.shape[d];
      rest /= view.shape[d];
      offset += index * (view.strides.empty() ? compact : view.strides[d] * view.stride_unit);
      compact *= view.shape[d];
    }
    const auto* element = static_cast<const std::byte*>(view.data) + offset;
    for (std::size_t part = 0; part < info.item_size; part += info.swap_size) {
      std::uint64_t bits = 0;
      for (std::size_t b = 0; b < info.swap_size; ++b) {
        const std::size_t place = view.byteswapped ? info.swap_size - 1 - b : b;
        bits |= std::to_integer<std::uint64_t>(element[part + place]) << (8 * b);
      }
      bits = reference_part(bits, view.dtype, canonical);
      for (std::size_t b = 0; b < info.swap_size; ++b) {
        out.push_back(static_cast<std::byte>((bits >> (8 * b)) & 0xFF));
      }
    }
  }
  return out;
}

Bytes walked(const TensorView& view, bool canonical, std::size_t* pieces = nullptr) {
  Bytes out;
  walk(view, canonical, [&](std::span<const std::byte> piece) {
    EXPECT_FALSE(piece.empty());
    EXPECT_EQ(piece.size() % item_size(view.dtype), 0U);
    if (pieces != nullptr) ++*pieces;
    out.insert(out.end(), piece.begin(), piece.end());
  });
  return out;
}

void check(const TensorView& view, bool canonical, Random& random, const std::string& what) {
  ASSERT_NO_THROW(check_view(view, "test")) << what;
  const Bytes expected = reference(view, canonical);
  ASSERT_EQ(walked(view, canonical), expected) << what;
  EXPECT_TRUE(equal_logical(view, canonical, expected)) << what;
  if (is_plain(view, canonical) && !expected.empty()) {
    EXPECT_EQ(std::memcmp(view.data, expected.data(), expected.size()), 0) << what;
  }
  if (expected.empty()) return;
  // Another byte anywhere is seen.
  Bytes other = expected;
  other[static_cast<std::size_t>(uniform(random, 0, std::ssize(other) - 1))] ^= std::byte{1};
  if (is_normal(view.dtype, canonical, other.data(), other.size())) {
    EXPECT_FALSE(equal_logical(view, canonical, other)) << what;
  }
  // Any piece can be read alone.
  const std::int64_t count = element_count(view);
  const auto item = static_cast<std::int64_t>(item_size(view.dtype));
  const std::int64_t begin = uniform(random, 0, count);
  const std::int64_t end = uniform(random, begin, count);
  Bytes piece(static_cast<std::size_t>((end - begin) * item));
  read_logical(view, canonical, static_cast<std::size_t>(begin * item), piece);
  EXPECT_TRUE(std::equal(piece.begin(), piece.end(), expected.begin() + begin * item)) << what;
  // Rows, one by one and in place.
  if (view.shape.empty()) return;
  const PlainRows rows = plain_rows(view, canonical);
  const std::size_t row_size = expected.size() / static_cast<std::size_t>(view.shape[0]);
  for (std::int64_t i = 0; i < view.shape[0]; ++i) {
    const std::span row =
        std::span(expected).subspan(static_cast<std::size_t>(i) * row_size, row_size);
    ASSERT_TRUE(equal_logical(row_view(view, i), canonical, row)) << what << " row " << i;
    if (rows.plain) {
      ASSERT_EQ(std::memcmp(static_cast<const std::byte*>(view.data) + i * rows.stride, row.data(),
                            row.size()),
                0)
          << what << " row " << i;
    }
  }
}

// A view of random shape and strides inside `memory`: steps may be negative, zero, overlapping or
// no multiple of the item size.
struct Made {
  Dims shape;
  Dims strides;
  TensorView view;
};

void make(Made& made, const Bytes& memory, DType dtype, Random& random) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  const std::int64_t rank = uniform(random, 0, 6);
  made.shape.clear();
  made.strides.clear();
  for (std::int64_t d = 0; d < rank; ++d) {
    made.shape.push_back(uniform(random, 0, 40) == 0 ? 0 : uniform(random, 1, rank > 3 ? 4 : 9));
  }
  made.view = {.dtype = dtype, .shape = made.shape};
  made.view.byteswapped = uniform(random, 0, 3) == 0;
  made.view.dtype_params =
      dtype == DType::kDateTime64 || dtype == DType::kTimeDelta64 ? "ns" : std::string_view();
  const std::int64_t way = uniform(random, 0, 3);
  std::int64_t low = 0;
  std::int64_t high = item;
  if (way != 0) {
    made.view.stride_unit = way == 1 ? 1 : item;
    made.strides.assign(made.shape.size(), 0);
    if (way == 3) {  // compact, in any order of the dims, some of them reversed
      std::vector<std::size_t> order(made.shape.size());
      for (std::size_t d = 0; d < order.size(); ++d) order[d] = d;
      std::shuffle(order.begin(), order.end(), random);
      std::int64_t step = 1;
      for (const std::size_t d : order) {
        made.strides[d] = uniform(random, 0, 4) == 0 ? -step : step;
        step *= std::max<std::int64_t>(made.shape[d], 1);
      }
    } else {
      for (std::int64_t& stride : made.strides) stride = uniform(random, -20, 20);
    }
    made.view.strides = made.strides;
    for (std::size_t d = 0; d < made.shape.size(); ++d) {
      const std::int64_t reach =
          std::max<std::int64_t>(made.shape[d] - 1, 0) * made.strides[d] * made.view.stride_unit;
      (reach < 0 ? low : high) += reach;
    }
  } else {
    high = static_cast<std::int64_t>(byte_count(made.view));
  }
  const std::int64_t start = uniform(random, -low, std::ssize(memory) - high);
  made.view.data = memory.data() + start;
}

Bytes random_bytes(std::size_t size, Random& random) {
  Bytes bytes(size);
  // Enough zeros, signs and all-ones that -0.0, NaN and infinities come up often.
  constexpr std::array<unsigned, 10> kLikely = {0x00, 0x00, 0x00, 0x80, 0x7F,
                                                0xFF, 0xF0, 0x7C, 0xFC, 0x01};
  for (std::byte& byte : bytes) {
    const auto pick = static_cast<std::size_t>(uniform(random, 0, 19));
    byte = static_cast<std::byte>(pick < kLikely.size() ? kLikely[pick] : random() & 0xFF);
  }
  return bytes;
}

TEST(Walk, EqualsTheReferenceOnRandomViews) {
  Random random(20240607);
  const Bytes memory = random_bytes(300000, random);
  Made made;
  for (const DType dtype : all_dtypes()) {
    for (int trial = 0; trial < 150; ++trial) {
      make(made, memory, dtype, random);
      const bool canonical = uniform(random, 0, 1) != 0;
      check(made.view, canonical, random,
            std::string(to_string(dtype)) + " trial " + std::to_string(trial));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Walk, EveryByteOfEveryOneByteKind) {
  Bytes memory(256);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i);
  Random random(1);
  const Dims shape = {256};
  for (const DType dtype : all_dtypes()) {
    if (item_size(dtype) != 1) continue;
    for (const bool canonical : {false, true}) {
      check({.data = memory.data(), .dtype = dtype, .shape = shape}, canonical, random,
            std::string(to_string(dtype)));
    }
  }
}

TEST(Walk, EveryBitPatternOfSixteenBitFloats) {
  std::vector<std::uint16_t> memory(65536);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::uint16_t>(i);
  Random random(1);
  const Dims shape = {65536};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    check({.data = memory.data(), .dtype = dtype, .shape = shape}, true, random, "16 bits");
  }
}

TEST(Walk, CanonicalOfHardware) {
  // The table's NaN is the one that C++ calls quiet_NaN, and -0.0 == 0.0.
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(std::bit_cast<std::uint32_t>(nan), 0x7FC00000U);
  EXPECT_EQ(std::bit_cast<std::uint64_t>(std::numeric_limits<double>::quiet_NaN()),
            0x7FF8000000000000U);
  const std::array<float, 5> from = {-0.0F, -nan, std::numeric_limits<float>::signaling_NaN(),
                                     -std::numeric_limits<float>::infinity(),
                                     -std::numeric_limits<float>::denorm_min()};
  const std::array<float, 5> to = {0.0F, nan, nan, from[3], from[4]};
  const Dims shape = {5};
  EXPECT_TRUE(equal_logical(view(from.data(), shape), true, std::as_bytes(std::span(to))));
  EXPECT_FALSE(equal_logical(view(from.data(), shape), false, std::as_bytes(std::span(to))));
}

TEST(Walk, TransposedTensorsLargerThanATile) {
  Random random(3);
  for (const DType dtype :
       {DType::kUInt8, DType::kFloat16, DType::kFloat32, DType::kComplex64, DType::kComplex128}) {
    const Bytes memory = random_bytes(4 << 20, random);
    const Dims shape = {37, 61, 3, 7};
    const auto item = static_cast<std::int64_t>(item_size(dtype));
    std::vector<std::size_t> order = {0, 1, 2, 3};
    do {
      Dims strides(4);
      std::int64_t step = item;
      for (const std::size_t d : order) {
        strides[d] = step;
        step *= shape[d];
      }
      const TensorView v = {
          .data = memory.data(), .dtype = dtype, .shape = shape, .strides = strides};
      ASSERT_EQ(walked(v, false), reference(v, false)) << to_string(dtype);
    } while (std::next_permutation(order.begin(), order.end()));
  }
}

TEST(Walk, PlainIsOnePieceInPlace) {
  const std::vector<float> data(1 << 20);
  const Dims shape = {1 << 20};
  std::size_t pieces = 0;
  walk(view(data.data(), shape), false, [&](std::span<const std::byte> piece) {
    ++pieces;
    EXPECT_EQ(piece.data(), reinterpret_cast<const std::byte*>(data.data()));
    EXPECT_EQ(piece.size(), data.size() * 4);
  });
  EXPECT_EQ(pieces, 1U);
}

TEST(Walk, NormalBoolsAreReadInPlace) {
  std::vector<std::uint8_t> data(100000, 1);
  const Dims shape = {100, 1000};
  TensorView v = {.data = data.data(), .dtype = DType::kBool, .shape = shape};
  EXPECT_TRUE(is_plain(v, false));
  EXPECT_TRUE(plain_rows(v, false).plain);
  data.back() = 2;
  EXPECT_FALSE(is_plain(v, false));
  EXPECT_FALSE(plain_rows(v, false).plain);
  EXPECT_TRUE(is_plain(row_view(v, 98), false));
  EXPECT_FALSE(is_plain(row_view(v, 99), false));
}

TEST(Walk, PlainRowsFollowTheStride) {
  const std::vector<float> data(600);
  const Dims shape = {10, 3, 2};
  const Dims every_other = {24, 2, 1};
  TensorView v = {.data = data.data(),
                  .dtype = DType::kFloat32,
                  .shape = shape,
                  .strides = every_other,
                  .stride_unit = 4};
  EXPECT_EQ(plain_rows(v, false).stride, 96);
  EXPECT_FALSE(is_plain(v, false));
  const Dims reversed = {-6, 2, 1};
  v.data = data.data() + 54;
  v.strides = reversed;
  EXPECT_EQ(plain_rows(v, false).stride, -24);
  const Dims broadcast = {0, 2, 1};
  v.strides = broadcast;
  EXPECT_TRUE(plain_rows(v, false).plain);
  EXPECT_EQ(plain_rows(v, false).stride, 0);
  const Dims gaps = {24, 4, 1};
  v.strides = gaps;
  EXPECT_FALSE(plain_rows(v, false).plain);
  // A row that lies in one piece whatever its dims of 1 say.
  const Dims thin = {10, 1, 6};
  const Dims any = {6, 12345, 1};
  v = {.data = data.data(),
       .dtype = DType::kFloat32,
       .shape = thin,
       .strides = any,
       .stride_unit = 4};
  EXPECT_TRUE(is_plain(v, false));
  v.byteswapped = true;
  EXPECT_FALSE(is_plain(v, false));
  EXPECT_FALSE(plain_rows(v, false).plain);
  v.dtype = DType::kUInt8;
  v.stride_unit = 1;
  EXPECT_TRUE(is_plain(v, false));
}

TEST(Walk, FourGibibytesBroadcastInOneTile) {
  const float value = 1.5F;
  const Dims shape = {1 << 15, 1 << 15};
  const Dims zero = {0, 0};
  const TensorView v = {.data = &value, .dtype = DType::kFloat32, .shape = shape, .strides = zero};
  std::size_t total = 0;
  std::size_t largest = 0;
  walk(v, false, [&](std::span<const std::byte> piece) {
    total += piece.size();
    largest = std::max(largest, piece.size());
    EXPECT_EQ(std::memcmp(piece.data(), &value, sizeof value), 0);
    EXPECT_EQ(std::memcmp(piece.data() + piece.size() - 4, &value, sizeof value), 0);
  });
  EXPECT_EQ(total, std::size_t{1} << 32);
  EXPECT_EQ(largest, kTileBytes);
}

TEST(Walk, NoElements) {
  const Dims shape = {0, 3};
  const Dims many_rows = {std::int64_t{1} << 40, 0};
  for (const Dims& dims : {shape, many_rows}) {
    const TensorView v = view<float>(nullptr, dims);
    EXPECT_TRUE(is_plain(v, true));
    EXPECT_TRUE(plain_rows(v, true).plain);
    EXPECT_TRUE(equal_logical(v, false, {}));
    EXPECT_TRUE(walked(v, false).empty());
  }
  EXPECT_EQ(row_view(view<float>(nullptr, many_rows), 12345).data, nullptr);
}

TEST(Walk, RankOfManyDims) {
  // Twelve dims of two elements whose strides never merge, among thousands of dims of one.
  Random random(4);
  Dims shape(3000, 1);
  Dims strides(3000, 77);
  for (std::size_t d = 0; d < 12; ++d) {
    shape[d * 250] = 2;
    strides[d * 250] = static_cast<std::int64_t>(d) * 3 + 1;
  }
  const Bytes memory = random_bytes(4096, random);
  check({.data = memory.data(), .dtype = DType::kUInt8, .shape = shape, .strides = strides}, false,
        random, "many dims");
}

}  // namespace
}  // namespace tensorkey::internal
