#include <tensorkey/probe.h>

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <tensorkey/error.h>

#include "memo/numbers.h"

namespace tensorkey {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Shape = std::vector<std::int64_t>;

template <class T>
Gap gap_of(const std::vector<T>& one, const std::vector<T>& other, std::int64_t rows, DType dtype) {
  const Shape shape{rows, static_cast<std::int64_t>(one.size()) / rows};
  std::vector<std::int64_t> all(static_cast<std::size_t>(rows));
  std::iota(all.begin(), all.end(), 0);
  return gap({.data = one.data(), .dtype = dtype, .shape = shape}, all,
             {.data = other.data(), .dtype = dtype, .shape = shape}, all);
}

template <class T>
Gap gap_of(const std::vector<T>& one, const std::vector<T>& other, std::int64_t rows = 1) {
  constexpr DType kDType = dtype_of<T>();
  return gap_of(one, other, rows, kDType);
}

TEST(Gap, EqualBitsAreNone) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Gap same = gap_of<float>({1, nan, -0.0F, 4}, {1, nan, -0.0F, 4}, 2);
  EXPECT_EQ(same.rows, 0U);
  EXPECT_EQ(same.ulps, 0);
  EXPECT_TRUE(same.slight());
}

TEST(Gap, IsCountedInUnitsOfTheLargestOutput) {
  const float next = std::nextafter(1.0F, 2.0F);
  const Gap alone = gap_of<float>({1, 0.5F}, {next, 0.5F});
  EXPECT_EQ(alone.rows, 1U);
  EXPECT_DOUBLE_EQ(alone.ulps, 1);
  const Gap beside = gap_of<float>({1, 1000}, {next, 1000});
  EXPECT_DOUBLE_EQ(beside.ulps, 1.0 / 512);
  EXPECT_DOUBLE_EQ(beside.absolute, static_cast<double>(next) - 1);
  // Of all rows that are compared, those that are equal too.
  EXPECT_DOUBLE_EQ(gap_of<float>({1, 1000}, {next, 1000}, 2).ulps, 1.0 / 512);
}

TEST(Gap, RowsAreTakenByTheirPlaces) {
  const std::vector<float> one{1, 2, 3, 4};
  const std::vector<float> other{3, 4, 1, 5};
  const Shape shape{2, 2};
  EXPECT_EQ(gap(view(one.data(), shape), std::array<std::int64_t, 1>{1}, view(other.data(), shape),
                std::array<std::int64_t, 1>{0})
                .rows,
            0U);
  const Gap two = gap(view(one.data(), shape), std::array<std::int64_t, 2>{1, 0},
                      view(other.data(), shape), std::array<std::int64_t, 2>{0, 1});
  EXPECT_EQ(two.rows, 1U);
  EXPECT_EQ(two.absolute, 3);
}

TEST(Gap, StridedRowsAreReadAsTheirElements) {
  const std::vector<float> columns{1, 3, 2, 4};  // of a 2 x 2 tensor
  const std::vector<float> rows{1, 2, 3, 4};
  const Shape shape{2, 2};
  const Shape strides{1, 2};
  const TensorView transposed{.data = columns.data(),
                              .dtype = DType::kFloat32,
                              .shape = shape,
                              .strides = strides,
                              .stride_unit = 4};
  const std::array<std::int64_t, 2> all{0, 1};
  EXPECT_EQ(gap(transposed, all, view(rows.data(), shape), all).rows, 0U);
}

TEST(Gap, ZerosThatDifferInSignDifferByNothing) {
  const Gap zeros = gap_of<float>({0.0F, 0}, {-0.0F, 0});
  EXPECT_EQ(zeros.rows, 1U);
  EXPECT_EQ(zeros.ulps, 0);
  EXPECT_TRUE(zeros.slight());
}

TEST(Gap, WhatIsNoRoundingIsInfinite) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(gap_of<float>({1}, {nan}).ulps, kInfinity);
  EXPECT_EQ(gap_of<float>({1}, {nan}).absolute, kInfinity);
  EXPECT_EQ(gap_of<float>({1}, {infinity}).ulps, kInfinity);
  EXPECT_EQ(gap_of<float>({0}, {1e-30F}).ulps, kInfinity);  // there is no largest output
  const Gap integers = gap_of<std::int64_t>({5, 9}, {5, 7}, 2);
  EXPECT_EQ(integers.rows, 1U);
  EXPECT_EQ(integers.ulps, kInfinity);
  EXPECT_EQ(integers.absolute, 2);
  const Gap large = gap_of<std::int64_t>({std::int64_t{1} << 60}, {(std::int64_t{1} << 60) + 1});
  EXPECT_GE(large.absolute, 1);
  const Gap bools = gap_of<std::uint8_t>({0}, {1}, 1, DType::kBool);
  EXPECT_EQ(bools.ulps, kInfinity);
  EXPECT_EQ(bools.absolute, kInfinity);
  EXPECT_EQ(gap_of<std::uint8_t>({1}, {7}, 1, DType::kBool).rows, 0U);  // both are true
}

TEST(Gap, AnotherShapeOrDtypeDiffersInAllRows) {
  const std::vector<float> values(6);
  const Shape two{2, 3};
  const Shape three{2, 2};
  const std::array<std::int64_t, 2> all{0, 1};
  const Gap shapes = gap(view(values.data(), two), all, view(values.data(), three), all);
  EXPECT_EQ(shapes.rows, 2U);
  EXPECT_EQ(shapes.ulps, kInfinity);
  TensorView integers = view(values.data(), two);
  integers.dtype = DType::kInt32;
  EXPECT_EQ(gap(view(values.data(), two), all, integers, all).rows, 2U);
}

TEST(Gap, SixteenBitFloatsHaveAShorterLimit) {
  const auto half = [](std::uint16_t bits) { return std::vector<std::uint16_t>{bits}; };
  const Gap four = gap_of(half(0x3C00), half(0x3C04), 1, DType::kFloat16);  // of 1.0
  EXPECT_DOUBLE_EQ(four.ulps, 4);
  EXPECT_TRUE(four.slight());
  EXPECT_FALSE(gap_of(half(0x3C00), half(0x3C05), 1, DType::kFloat16).slight());
  EXPECT_TRUE(gap_of(half(0x3F80), half(0x3F84), 1, DType::kBFloat16).slight());
  EXPECT_FALSE(gap_of(half(0x3F80), half(0x3F85), 1, DType::kBFloat16).slight());
  EXPECT_TRUE(gap_of<float>({1}, {std::bit_cast<float>(0x3F800000U + 64)}).slight());
  EXPECT_FALSE(gap_of<float>({1}, {std::bit_cast<float>(0x3F800000U + 65)}).slight());
}

TEST(Gap, ComplexNumbersAreTheirParts) {
  const std::vector<double> one{1, 8};
  const std::vector<double> other{1, std::nextafter(8.0, 9.0)};
  const Shape shape{1, 1};
  const std::array<std::int64_t, 1> all{0};
  const Gap parts = gap({.data = one.data(), .dtype = DType::kComplex128, .shape = shape}, all,
                        {.data = other.data(), .dtype = DType::kComplex128, .shape = shape}, all);
  EXPECT_DOUBLE_EQ(parts.ulps, 1);
  EXPECT_EQ(parts.limit, 64);
}

TEST(Gap, RefusesAViewThatCannotBeRead) {
  const Shape shape{1, 1};
  const std::array<std::int64_t, 1> all{0};
  const TensorView nothing{.dtype = DType::kFloat32, .shape = shape};
  EXPECT_THROW(static_cast<void>(gap(nothing, all, nothing, all)), Error);
}

struct Value {
  DType dtype;
  std::uint16_t bits;
  double value;
};

// From the definitions of the formats (IEEE 754, OCP FP8 and Microscaling, ml_dtypes).
TEST(Numbers, OfSmallFloats) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Value values[] = {
      {DType::kFloat16, 0x0001, 0x1p-24},
      {DType::kFloat16, 0x7BFF, 65504},
      {DType::kFloat16, 0xFC00, -kInfinity},
      {DType::kFloat16, 0x7E00, nan},
      {DType::kBFloat16, 0xC000, -2},
      {DType::kBFloat16, 0x0001, 0x1p-133},
      {DType::kFloat8E3M4, 0x6F, 15.5},
      {DType::kFloat8E3M4, 0x70, kInfinity},
      {DType::kFloat8E4M3, 0x77, 240},
      {DType::kFloat8E4M3, 0x78, kInfinity},
      {DType::kFloat8E4M3FN, 0x7E, 448},
      {DType::kFloat8E4M3FN, 0x7F, nan},
      {DType::kFloat8E4M3FNUZ, 0x7F, 240},
      {DType::kFloat8E4M3FNUZ, 0x80, nan},
      {DType::kFloat8E4M3B11FNUZ, 0x7F, 30},
      {DType::kFloat8E5M2, 0x7B, 57344},
      {DType::kFloat8E5M2FNUZ, 0x7F, 57344},
      {DType::kFloat8E5M2FNUZ, 0xC0, -1},
      {DType::kFloat8E8M0FNU, 0x7F, 1},
      {DType::kFloat8E8M0FNU, 0x00, 0x1p-127},
      {DType::kFloat8E8M0FNU, 0xFF, nan},
      {DType::kFloat6E2M3FN, 0x1F, 7.5},
      {DType::kFloat6E3M2FN, 0x1F, 28},
      {DType::kFloat6E3M2FN, 0x3F, -28},
      {DType::kFloat4E2M1FN, 0x07, 6},
      {DType::kFloat4E2M1FN, 0x0F, -6},
      {DType::kInt4, 0x0F, -1},
      {DType::kInt4, 0x07, 7},
      {DType::kUInt4, 0x0F, 15},
      {DType::kInt1, 0x01, -1},
      {DType::kInt8, 0xFF, -1},
      {DType::kUInt16, 0xFFFF, 65535},
  };
  for (const Value& value : values) {
    std::vector<double> numbers;
    const auto bytes = std::as_bytes(std::span(&value.bits, 1)).first(item_size(value.dtype));
    internal::append_numbers(value.dtype, bytes, numbers);
    ASSERT_EQ(numbers.size(), 1U);
    if (std::isnan(value.value)) {
      EXPECT_TRUE(std::isnan(numbers[0])) << to_string(value.dtype);
    } else {
      EXPECT_EQ(numbers[0], value.value) << to_string(value.dtype) << " " << value.bits;
    }
  }
}

TEST(Numbers, OfAPairOfFourBitFloats) {
  const auto bits = std::byte{0xF7};
  std::vector<double> numbers;
  internal::append_numbers(DType::kFloat4E2M1FNx2, {&bits, 1}, numbers);
  EXPECT_EQ(numbers, (std::vector<double>{6, -6}));
}

}  // namespace
}  // namespace tensorkey
