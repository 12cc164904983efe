#include <tensorkey/view.h>

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();

using Dims = std::vector<std::int64_t>;

struct Device {
  int device_type;
  std::int32_t device_id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

// The fields of a DLTensor in the order of the specification.
struct DlTensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

void expect_error(const TensorView& view, ErrorCode code, const std::string& part) {
  try {
    check_view(view, "test");
    ADD_FAILURE() << "no error with " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    EXPECT_EQ(std::string(error.what()).rfind("[test] ", 0), 0U) << error.what();
  }
}

void expect_refused(const DlTensor& dl, ErrorCode code, bool padded = false) {
  try {
    from_dlpack(dl, padded);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
  }
}

TEST(DTypeTable, NamesAndIdsAreUniqueAndFindEachOther) {
  std::set<std::string_view> names;
  int rows = 0;
  for (unsigned id = 0; id < 70000; ++id) {
    const auto dtype = static_cast<DType>(static_cast<std::uint16_t>(id & 0xFFFF));
    const DTypeInfo* info = id <= 0xFFFF ? find_dtype(dtype) : nullptr;
    if (info == nullptr) continue;
    ++rows;
    EXPECT_EQ(info->dtype, dtype);
    EXPECT_TRUE(names.insert(info->name).second) << info->name;
    EXPECT_EQ(dtype_from_name(info->name), dtype);
    EXPECT_EQ(to_string(dtype), info->name);
    EXPECT_EQ(item_size(dtype), info->item_size);
    const bool is_complex = info->name.substr(0, 7) == "complex";
    EXPECT_EQ(info->swap_size * (is_complex ? 2 : 1), info->item_size) << info->name;
  }
  EXPECT_EQ(rows, 44);
  EXPECT_EQ(find_dtype(static_cast<DType>(0)), nullptr);
  EXPECT_EQ(item_size(static_cast<DType>(999)), 0U);
  EXPECT_EQ(to_string(static_cast<DType>(999)), "unknown");
  EXPECT_EQ(dtype_from_name("float128"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(DTypeTable, CppTypes) {
  EXPECT_EQ(dtype_of<bool>(), DType::kBool);
  EXPECT_EQ(dtype_of<float>(), DType::kFloat32);
  EXPECT_EQ(dtype_of<double>(), DType::kFloat64);
  EXPECT_EQ(dtype_of<std::int8_t>(), DType::kInt8);
  EXPECT_EQ(dtype_of<std::int64_t>(), DType::kInt64);
  EXPECT_EQ(dtype_of<std::uint8_t>(), DType::kUInt8);
  EXPECT_EQ(dtype_of<std::uint16_t>(), DType::kUInt16);
  EXPECT_EQ(dtype_of<std::uint64_t>(), DType::kUInt64);
}

TEST(DTypeTable, Dlpack) {
  struct Row {
    std::uint8_t code;
    std::uint8_t bits;
    std::string_view name;
  };
  const std::vector<Row> rows = {
      {0, 8, "int8"},
      {0, 64, "int64"},
      {1, 8, "uint8"},
      {1, 64, "uint64"},
      {0, 4, "int4"},
      {1, 1, "uint1"},
      {1, 7, "uint7"},
      {2, 16, "float16"},
      {2, 32, "float32"},
      {2, 64, "float64"},
      {4, 16, "bfloat16"},
      {5, 32, "complex32"},
      {5, 64, "complex64"},
      {5, 128, "complex128"},
      {6, 8, "bool"},
      {7, 8, "float8_e3m4"},
      {8, 8, "float8_e4m3"},
      {9, 8, "float8_e4m3b11fnuz"},
      {10, 8, "float8_e4m3fn"},
      {11, 8, "float8_e4m3fnuz"},
      {12, 8, "float8_e5m2"},
      {13, 8, "float8_e5m2fnuz"},
      {14, 8, "float8_e8m0fnu"},
      {15, 6, "float6_e2m3fn"},
      {16, 6, "float6_e3m2fn"},
      {17, 4, "float4_e2m1fn"},
  };
  std::set<std::pair<unsigned, unsigned>> known;
  for (const Row& row : rows) {
    known.insert({row.code, row.bits});
    const std::optional<DType> dtype = dtype_from_dlpack(row.code, row.bits, 1);
    ASSERT_TRUE(dtype) << row.name;
    EXPECT_EQ(to_string(*dtype), row.name);
    const bool pair = row.code == 17;
    EXPECT_EQ(dtype_from_dlpack(row.code, row.bits, 2).has_value(), pair) << row.name;
  }
  EXPECT_EQ(dtype_from_dlpack(17, 4, 2), DType::kFloat4E2M1FNx2);
  EXPECT_EQ(dtype_from_dlpack(3, 64, 1), std::nullopt);   // an opaque handle
  EXPECT_EQ(dtype_from_dlpack(2, 128, 1), std::nullopt);  // long double
  EXPECT_EQ(dtype_from_dlpack(2, 80, 1), std::nullopt);
  EXPECT_EQ(dtype_from_dlpack(15, 8, 1), std::nullopt);
  EXPECT_EQ(dtype_from_dlpack(18, 8, 1), std::nullopt);
  for (unsigned code = 2; code < 256; ++code) {
    for (unsigned bits = 0; bits < 256; ++bits) {
      EXPECT_EQ(
          dtype_from_dlpack(static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1)
              .has_value(),
          known.contains({code, bits}))
          << code << " " << bits;
    }
  }
}

TEST(CheckView, Accepts) {
  const std::array<float, 6> data{};
  const Dims shape = {2, 3};
  EXPECT_NO_THROW(check_view(view(data.data(), shape), "test"));
  EXPECT_NO_THROW(check_view(view(data.data(), {}), "test"));
  const Dims none = {0, 3};
  EXPECT_NO_THROW(check_view(view<float>(nullptr, none), "test"));
  // Where nothing is read strides may be anything that can be said in bytes.
  const Dims wild = {kMax, kMin};
  EXPECT_NO_THROW(check_view({.shape = none, .strides = wild}, "test"));
  const Dims one = {1, 1};
  EXPECT_NO_THROW(check_view({.data = data.data(), .shape = one, .strides = wild}, "test"));
  const Dims huge = {std::int64_t{1} << 40, std::int64_t{1} << 20};
  const Dims zero = {0, 0};
  EXPECT_NO_THROW(check_view({.data = data.data(), .shape = huge, .strides = zero}, "test"));
  EXPECT_NO_THROW(check_view(
      {.data = data.data(), .dtype = DType::kDateTime64, .dtype_params = "25s"}, "test"));
}

TEST(CheckView, Refuses) {
  const std::array<std::uint64_t, 6> data{};
  const Dims shape = {2, 3};
  TensorView good = view(data.data(), shape);

  TensorView bad = good;
  bad.dtype = static_cast<DType>(0);
  expect_error(bad, ErrorCode::kUnsupported, "dtype 0 is unknown");
  bad.dtype = static_cast<DType>(0xFFFF);
  expect_error(bad, ErrorCode::kUnsupported, "dtype 65535 is unknown");

  const Dims negative = {2, -1};
  expect_error(view(data.data(), negative), ErrorCode::kInvalidArgument, "dimension 1");
  const Dims lowest = {0, kMin};
  expect_error(view(data.data(), lowest), ErrorCode::kInvalidArgument, "dimension 1");

  bad = good;
  const Dims three = {1, 1, 1};
  bad.strides = three;
  expect_error(bad, ErrorCode::kInvalidArgument, "3 strides and 2 dimensions");
  bad.strides = shape;
  bad.stride_unit = 0;
  expect_error(bad, ErrorCode::kInvalidArgument, "stride_unit is 0");
  bad.stride_unit = -8;
  expect_error(bad, ErrorCode::kInvalidArgument, "stride_unit is -8");

  bad = good;
  bad.data = nullptr;
  expect_error(bad, ErrorCode::kInvalidArgument, "6 elements and no data");
  bad.shape = {};
  expect_error(bad, ErrorCode::kInvalidArgument, "1 elements and no data");
  bad.shape = {static_cast<const std::int64_t*>(nullptr), 2};
  expect_error(bad, ErrorCode::kInvalidArgument, "shape is a null pointer");

  bad = good;
  bad.dtype_params = "ns";
  expect_error(bad, ErrorCode::kInvalidArgument, "expected none");
  bad.dtype = DType::kTimeDelta64;
  EXPECT_NO_THROW(check_view(bad, "test"));
  bad.dtype_params = {};
  expect_error(bad, ErrorCode::kInvalidArgument, "timedelta64 has no unit");

  const Dims many(65536, 1);
  expect_error(view(data.data(), many), ErrorCode::kInvalidArgument, "rank 65536");
  EXPECT_NO_THROW(check_view(view(data.data(), std::span(many).first(65535)), "test"));
}

TEST(CheckView, RefusesSizesThatOverflow) {
  const std::uint64_t data = 0;
  for (const Dims& shape : {Dims{kMax}, Dims{kMax, 2}, Dims{std::int64_t{1} << 60},
                            Dims{std::int64_t{1} << 32, std::int64_t{1} << 32}, Dims{0, kMax, kMax},
                            Dims{kMax, kMax, 0}, Dims{3037000500, 3037000500}}) {
    expect_error(view(&data, shape), ErrorCode::kInvalidArgument, "overflows 63 bits");
  }
  const Dims zero = {0, 0};
  const Dims large = {std::int64_t{1} << 30, std::int64_t{1} << 30};
  EXPECT_NO_THROW(check_view({.data = &data, .shape = large, .strides = zero}, "test"));
}

TEST(CheckView, RefusesImpossibleStrides) {
  const std::uint64_t data = 0;
  const Dims shape = {3, 2};
  const auto check = [&](const Dims& strides, std::int64_t unit, const std::string& part) {
    expect_error({.data = &data,
                  .dtype = DType::kUInt64,
                  .shape = shape,
                  .strides = strides,
                  .stride_unit = unit},
                 ErrorCode::kInvalidArgument, part);
  };
  check({kMax, 0}, 1, "overflow 63 bits");
  check({kMax, 0}, 8, "overflow 63 bits");
  check({kMin, 0}, 1, "overflow 63 bits");
  check({0, kMin}, 8, "overflow 63 bits");
  check({kMax / 2, kMax / 2}, 1, "overflow 63 bits");
  check({kMin / 2, kMin / 2}, 1, "overflow 63 bits");
  check({kMin / 4, 0}, 1, "address space");
  check({0, kMin + 1}, 1, "address space");
  // The last byte of the address space is the last that can be read.
  const auto high = std::numeric_limits<std::uintptr_t>::max() - 7;
  const TensorView last = {.data = reinterpret_cast<const void*>(high), .dtype = DType::kUInt64};
  EXPECT_THROW(check_view(last, "test"), Error);
  const TensorView before = {.data = reinterpret_cast<const void*>(high - 8),
                             .dtype = DType::kUInt64};
  EXPECT_NO_THROW(check_view(before, "test"));
  const Dims large = {std::int64_t{1} << 59};
  EXPECT_THROW(check_view(view(reinterpret_cast<const std::uint64_t*>(high - 8), large), "test"),
               Error);
}

TEST(FromDlpack, ViewsAnyHeadersStruct) {
  std::array<float, 8> data{};
  Dims shape = {2, 3};
  Dims strides = {1, 2};
  const DlTensor dl = {data.data(), {1, 0}, 2, {2, 32, 1}, shape.data(), strides.data(), 8};
  const TensorView v = from_dlpack(dl);
  EXPECT_EQ(v.data, data.data() + 2);
  EXPECT_EQ(v.dtype, DType::kFloat32);
  EXPECT_EQ(v.shape.size(), 2U);
  EXPECT_EQ(v.strides.data(), strides.data());
  EXPECT_EQ(v.stride_unit, 4);
  EXPECT_NO_THROW(check_view(v, "test"));

  DlTensor scalar = {data.data(), {3, 0}, 0, {2, 32, 1}, nullptr, nullptr, 0};
  EXPECT_NO_THROW(check_view(from_dlpack(scalar), "test"));
  scalar.device.device_type = 11;
  EXPECT_NO_THROW(check_view(from_dlpack(scalar), "test"));
  DlTensor compact = dl;
  compact.strides = nullptr;
  EXPECT_TRUE(from_dlpack(compact).strides.empty());
  // A null pointer stays one, whatever the offset.
  compact.data = nullptr;
  EXPECT_EQ(from_dlpack(compact).data, nullptr);
  EXPECT_THROW(check_view(from_dlpack(compact), "test"), Error);
}

TEST(FromDlpack, RefusesHostileFields) {
  std::array<std::uint8_t, 8> data{};
  Dims shape = {2, 3};
  const DlTensor good = {data.data(), {1, 0}, 2, {1, 8, 1}, shape.data(), nullptr, 0};
  for (const int device : {2, 0, -1, 4, 7, 8, 10, 12, 13, 14, 1000}) {
    DlTensor bad = good;
    bad.device.device_type = device;
    expect_refused(bad, ErrorCode::kUnsupported);
  }
  DlTensor bad = good;
  bad.dtype = {1, 8, 4};
  expect_refused(bad, ErrorCode::kUnsupported);
  bad.dtype = {1, 8, 0};
  expect_refused(bad, ErrorCode::kUnsupported);
  bad.dtype = {99, 8, 1};
  expect_refused(bad, ErrorCode::kUnsupported);
  bad.dtype = {0, 4, 1};
  expect_refused(bad, ErrorCode::kUnsupported);
  EXPECT_EQ(from_dlpack(bad, true).dtype, DType::kInt4);
  bad.dtype = {17, 4, 1};
  expect_refused(bad, ErrorCode::kUnsupported);
  bad.dtype = {17, 4, 2};
  EXPECT_EQ(from_dlpack(bad).dtype, DType::kFloat4E2M1FNx2);

  bad = good;
  bad.ndim = -1;
  expect_refused(bad, ErrorCode::kInvalidArgument);
  bad.ndim = std::numeric_limits<std::int32_t>::min();
  expect_refused(bad, ErrorCode::kInvalidArgument);
  bad = good;
  bad.shape = nullptr;
  expect_refused(bad, ErrorCode::kInvalidArgument);
  bad = good;
  bad.byte_offset = std::numeric_limits<std::uint64_t>::max();
  expect_refused(bad, ErrorCode::kInvalidArgument);
  bad.byte_offset = static_cast<std::uint64_t>(kMax);
  shape = {std::int64_t{1} << 62, 1};
  EXPECT_NO_THROW(from_dlpack(bad));
  // A rank that no tensor has is refused before its dims are read.
  bad = good;
  bad.ndim = std::numeric_limits<std::int32_t>::max();
  EXPECT_THROW(check_view(from_dlpack(bad), "test"), Error);
}

TEST(Counts, ElementsAndBytes) {
  const Dims shape = {2, 3};
  EXPECT_EQ(element_count({.shape = shape}), 6);
  EXPECT_EQ(byte_count({.dtype = DType::kComplex128, .shape = shape}), 96U);
  EXPECT_EQ(element_count({}), 1);
  const Dims empty = {std::int64_t{1} << 40, 0, 5};
  EXPECT_EQ(element_count({.shape = empty}), 0);
}

}  // namespace
}  // namespace tensorkey
