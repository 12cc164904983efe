#include <tensorkey/key.h>

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

using Shape = std::vector<std::int64_t>;
const Shape kScalar;  // views borrow their shape: those that outlive a statement need a name
const Shape kThree{3};
const Shape kFour{4};
const Shape kSquare{2, 2};

const std::array<std::uint8_t, 32> kSecret = [] {
  std::array<std::uint8_t, 32> secret{};
  std::iota(secret.begin(), secret.end(), std::uint8_t{0});
  return secret;
}();

std::vector<float> ramp(std::size_t count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 1.0F);
  return values;
}

ErrorCode code_of(const auto& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("expected"), std::string::npos) << error.what();
    return error.code();
  }
  ADD_FAILURE() << "no Error was thrown";
  return ErrorCode::kInternal;
}

TEST(Key, HexRoundTripsAndRefusesOtherText) {
  const auto values = ramp(4);
  const Key k = key(view(values.data(), Shape{4}));
  EXPECT_EQ(k.hex().size(), 64U);
  EXPECT_EQ(Key::from_hex(k.hex()), k);
  std::string upper = k.hex();
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  EXPECT_EQ(Key::from_hex(upper), k);
  EXPECT_EQ(Key::from_hex(k.hex().substr(1)), std::nullopt);
  EXPECT_EQ(Key::from_hex(k.hex() + "0"), std::nullopt);
  std::string bad = k.hex();
  bad[7] = 'g';
  EXPECT_EQ(Key::from_hex(bad), std::nullopt);
}

TEST(Key, DtypeShapeScopeSecretAndFlagsAllCount) {
  const std::array<std::uint8_t, 8> bytes{1, 2, 3, 4, 5, 6, 7, 8};
  std::set<Key> seen;
  std::size_t made = 0;
  const auto add = [&](const TensorView& v, const KeyOptions& options = {}) {
    seen.insert(key(v, options));
    ++made;
  };
  // NOLINTNEXTLINE(readability-magic-numbers)
  for (const DType dtype :
       {DType::kUInt8, DType::kInt8, DType::kFloat8E4M3FN, DType::kFloat8E5M2}) {
    for (const Shape& shape : {Shape{8}, Shape{2, 4}, Shape{4, 2}, Shape{1, 8}, Shape{8, 1}}) {
      add({.data = bytes.data(), .dtype = dtype, .shape = shape});
    }
  }
  const Shape two{2};
  for (const DType dtype : {DType::kFloat32, DType::kInt32, DType::kUInt32}) {
    add({.data = bytes.data(), .dtype = dtype, .shape = two});
  }
  const Shape empties[] = {{0}, {0, 3}, {3, 0}, {0, 0}};
  for (const Shape& shape : empties) {
    add({.data = nullptr, .dtype = DType::kUInt8, .shape = shape});
  }
  add({.data = bytes.data(), .dtype = DType::kUInt8, .shape = {}});
  const Shape one{1};
  add({.data = bytes.data(), .dtype = DType::kUInt8, .shape = one});
  for (const std::string_view unit : {"ns", "us", "25s"}) {
    add({.data = bytes.data(), .dtype = DType::kDateTime64, .shape = one, .dtype_params = unit});
    add({.data = bytes.data(), .dtype = DType::kTimeDelta64, .shape = one, .dtype_params = unit});
  }
  const TensorView base{.data = bytes.data(), .dtype = DType::kUInt8, .shape = two};
  add(base, {.scope = "a"});
  add(base, {.scope = "b"});
  add(base, {.scope = std::string_view("a\0", 2)});
  add(base, {.secret = kSecret});
  add(base, {.scope = "a", .secret = kSecret});
  add(base, {.canonical = true});
  seen.insert(structure_key(base));
  ++made;
  const TupleMember member{"x", base};
  seen.insert(tuple_key({&member, 1}));
  ++made;
  EXPECT_EQ(seen.size(), made);
}

TEST(Key, ViewsEqualTheirCopies) {
  const auto values = ramp(6);
  const std::array<float, 6> transposed{1, 4, 2, 5, 3, 6};
  const Shape shape{3, 2};
  const Shape strides{4, 12};
  const TensorView walked{
      .data = values.data(), .dtype = DType::kFloat32, .shape = shape, .strides = strides};
  EXPECT_EQ(key(walked), key(view(transposed.data(), shape)));

  const Shape units{1, 3};  // the same in items, as DLPack has it
  TensorView dlpack = walked;
  dlpack.strides = units;
  dlpack.stride_unit = 4;
  EXPECT_EQ(key(dlpack), key(walked));

  const std::array<float, 6> ones{7, 7, 7, 7, 7, 7};
  const Shape zero{0, 0};
  const TensorView broadcast{
      .data = ones.data(), .dtype = DType::kFloat32, .shape = shape, .strides = zero};
  EXPECT_EQ(key(broadcast), key(view(ones.data(), shape)));
}

TEST(Key, CanonicalJoinsZerosAndNaNs) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::array<float, 2> a{0.0F, nan};
  const std::array<float, 2> b{-0.0F, -nan};
  const Shape shape{2};
  EXPECT_NE(key(view(a.data(), shape)), key(view(b.data(), shape)));
  EXPECT_EQ(key(view(a.data(), shape), {.canonical = true}),
            key(view(b.data(), shape), {.canonical = true}));
}

// Rows of every layout and width have the keys that they have alone.
TEST(RowKeys, EqualTheKeysOfRows) {
  for (const std::int64_t width : {0, 1, 3, 16, 100, 384, 5000, 70000}) {
    const std::int64_t rows = width > 10000 ? 3 : 37;
    const auto values = ramp(static_cast<std::size_t>(2 * rows * width + 1));
    const Shape shape{rows, width};
    const Shape row{width};
    for (const Shape& strides :
         {Shape{width, 1}, Shape{1, rows}, Shape{2 * width, 1}, Shape{width, 2}, Shape{0, 1}}) {
      TensorView batch{.data = values.data(),
                       .dtype = DType::kFloat32,
                       .shape = shape,
                       .strides = strides,
                       .stride_unit = 4};
      std::vector<Key> keys(static_cast<std::size_t>(rows));
      for (const bool canonical : {false, true}) {
        const KeyOptions options{.scope = "s", .canonical = canonical};
        row_keys(batch, keys, options);
        for (std::int64_t i = 0; i < rows; ++i) {
          const Shape row_strides{strides[1]};
          const TensorView one{.data = values.data() + i * strides[0],
                               .dtype = DType::kFloat32,
                               .shape = row,
                               .strides = row_strides,
                               .stride_unit = 4};
          ASSERT_EQ(keys[static_cast<std::size_t>(i)], key(one, options)) << width << ' ' << i;
        }
      }
    }
  }
}

TEST(RowKeys, OfAVectorAreScalars) {
  const auto values = ramp(3);
  std::vector<Key> keys(3);
  row_keys(view(values.data(), Shape{3}), keys);
  EXPECT_EQ(keys[1], key(view(values.data() + 1, Shape{})));
}

TEST(RowKeys, BadInput) {
  const auto values = ramp(4);
  std::vector<Key> keys(3);
  EXPECT_EQ(code_of([&] { row_keys(view(values.data(), Shape{}), keys); }),
            ErrorCode::kInvalidArgument);
  EXPECT_THROW(row_keys(view(values.data(), Shape{4}), keys), Error);
  std::vector<Key> none;
  row_keys(view(values.data(), Shape{0, 4}), none);
}

TEST(TupleKey, OrderOfMembersDoesNotMatterButPathsDo) {
  const auto values = ramp(6);
  const TensorView x = view(values.data(), kThree);
  const TensorView y = view(values.data() + 3, kThree);
  const std::array<TupleMember, 2> xy{{{"ids", x}, {"mask", y}}};
  const std::array<TupleMember, 2> yx{{{"mask", y}, {"ids", x}}};
  const std::array<TupleMember, 2> swapped{{{"ids", y}, {"mask", x}}};
  EXPECT_EQ(tuple_key(xy), tuple_key(yx));
  EXPECT_NE(tuple_key(xy), tuple_key(swapped));
  EXPECT_NE(tuple_key(xy), tuple_key(xy, {.scope = "s"}));
  EXPECT_NE(tuple_key(xy), tuple_key(xy, {.secret = kSecret}));

  std::vector<Key> rows(3);
  tuple_row_keys(xy, rows);
  const std::array<TupleMember, 2> second{
      {{"ids", view(values.data() + 1, kScalar)}, {"mask", view(values.data() + 4, kScalar)}}};
  EXPECT_EQ(rows[1], tuple_key(second));
}

TEST(TupleKey, BadInput) {
  const auto values = ramp(3);
  const TensorView x = view(values.data(), kThree);
  const std::array<TupleMember, 2> twice{{{"x", x}, {"x", x}}};
  EXPECT_EQ(code_of([&] { return tuple_key(twice); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { return tuple_key({}); }), ErrorCode::kInvalidArgument);
  std::vector<Key> rows(2);
  EXPECT_THROW(tuple_row_keys({twice.data(), 1}, rows), Error);
}

TEST(StructureKey, CountsFieldsAndNotElements) {
  const auto values = ramp(8);
  const TensorView a = view(values.data(), kSquare);
  const TensorView b = view(values.data() + 4, kSquare);
  EXPECT_EQ(structure_key(a), structure_key(b));
  std::set<Key> seen{structure_key(a),
                     structure_key(a, {.device = "cuda:0"}),
                     structure_key(a, {.layout = "sparse"}),
                     structure_key(a, {.pinned = true}),
                     structure_key(a, {.requires_grad = true}),
                     structure_key(view(values.data(), kFour)),
                     structure_key(a, {}, {.scope = "s"}),
                     structure_key(a, {}, {.secret = kSecret})};
  EXPECT_EQ(seen.size(), 8U);
  const Shape column{4, 8};
  TensorView strided = a;
  strided.strides = column;
  EXPECT_NE(structure_key(strided), structure_key(a));
  const Shape row{8, 4};
  strided.strides = row;
  EXPECT_EQ(structure_key(strided), structure_key(a));
  EXPECT_EQ(structure_key(a, {}, {.canonical = true}), structure_key(a));
  strided.data = nullptr;
  EXPECT_EQ(structure_key(strided), structure_key(a));
}

}  // namespace
}  // namespace tensorkey
