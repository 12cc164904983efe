#include <tensorkey/dtype.h>

#include <algorithm>
#include <array>

namespace tensorkey {
namespace {

constexpr std::array kTable = std::to_array<DTypeInfo>({
    {DType::kBool, "bool", 1, 1},
    {DType::kInt8, "int8", 1, 1},
    {DType::kInt16, "int16", 2, 2},
    {DType::kInt32, "int32", 4, 4},
    {DType::kInt64, "int64", 8, 8},
    {DType::kUInt8, "uint8", 1, 1},
    {DType::kUInt16, "uint16", 2, 2},
    {DType::kUInt32, "uint32", 4, 4},
    {DType::kUInt64, "uint64", 8, 8},
    {DType::kFloat16, "float16", 2, 2},
    {DType::kFloat32, "float32", 4, 4},
    {DType::kFloat64, "float64", 8, 8},
    {DType::kBFloat16, "bfloat16", 2, 2},
    {DType::kComplex32, "complex32", 4, 2},
    {DType::kComplex64, "complex64", 8, 4},
    {DType::kComplex128, "complex128", 16, 8},
    {DType::kFloat8E3M4, "float8_e3m4", 1, 1},
    {DType::kFloat8E4M3, "float8_e4m3", 1, 1},
    {DType::kFloat8E4M3B11FNUZ, "float8_e4m3b11fnuz", 1, 1},
    {DType::kFloat8E4M3FN, "float8_e4m3fn", 1, 1},
    {DType::kFloat8E4M3FNUZ, "float8_e4m3fnuz", 1, 1},
    {DType::kFloat8E5M2, "float8_e5m2", 1, 1},
    {DType::kFloat8E5M2FNUZ, "float8_e5m2fnuz", 1, 1},
    {DType::kFloat8E8M0FNU, "float8_e8m0fnu", 1, 1},
    {DType::kFloat6E2M3FN, "float6_e2m3fn", 1, 1},
    {DType::kFloat6E3M2FN, "float6_e3m2fn", 1, 1},
    {DType::kFloat4E2M1FN, "float4_e2m1fn", 1, 1},
    {DType::kFloat4E2M1FNx2, "float4_e2m1fn_x2", 1, 1},
    {DType::kInt1, "int1", 1, 1},
    {DType::kInt2, "int2", 1, 1},
    {DType::kInt3, "int3", 1, 1},
    {DType::kInt4, "int4", 1, 1},
    {DType::kInt5, "int5", 1, 1},
    {DType::kInt6, "int6", 1, 1},
    {DType::kInt7, "int7", 1, 1},
    {DType::kUInt1, "uint1", 1, 1},
    {DType::kUInt2, "uint2", 1, 1},
    {DType::kUInt3, "uint3", 1, 1},
    {DType::kUInt4, "uint4", 1, 1},
    {DType::kUInt5, "uint5", 1, 1},
    {DType::kUInt6, "uint6", 1, 1},
    {DType::kUInt7, "uint7", 1, 1},
    {DType::kDateTime64, "datetime64", 8, 8},
    {DType::kTimeDelta64, "timedelta64", 8, 8},
});

// Row of the table by id; 0xFF where there is none.
constexpr std::size_t kIds = 1 + static_cast<std::size_t>(DType::kTimeDelta64);
constexpr std::array<std::uint8_t, kIds> kRowOf = [] {
  std::array<std::uint8_t, kIds> rows{};
  rows.fill(0xFF);
  for (std::size_t i = 0; i < kTable.size(); ++i) {
    rows[static_cast<std::size_t>(kTable[i].dtype)] = static_cast<std::uint8_t>(i);
  }
  return rows;
}();

// DLPack's type codes (the DLPack specification, DLDataTypeCode).
enum DlpackCode : std::uint8_t {
  kDlInt = 0,
  kDlUInt = 1,
  kDlFloat = 2,
  kDlBfloat = 4,
  kDlComplex = 5,
  kDlBool = 6,
  kDlFloat8First = 7,  // the eight 8-bit floats follow each other in the order of DType
  kDlFloat8Last = 14,
  kDlFloat6E2M3FN = 15,
  kDlFloat6E3M2FN = 16,
  kDlFloat4E2M1FN = 17,
};

constexpr DType offset(DType first, unsigned by) {
  return static_cast<DType>(static_cast<unsigned>(first) + by);
}

std::optional<DType> dlpack_integer(unsigned bits, DType whole, DType sub_byte) {
  if (bits >= 1 && bits <= 7) return offset(sub_byte, bits - 1);
  switch (bits) {
    case 8: return whole;
    case 16: return offset(whole, 1);
    case 32: return offset(whole, 2);
    case 64: return offset(whole, 3);
    default: return std::nullopt;
  }
}

}  // namespace

const DTypeInfo* find_dtype(DType dtype) noexcept {
  const auto id = static_cast<std::size_t>(dtype);
  if (id >= kIds || kRowOf[id] == 0xFF) return nullptr;
  return &kTable[kRowOf[id]];
}

std::size_t item_size(DType dtype) noexcept {
  const DTypeInfo* info = find_dtype(dtype);
  return info == nullptr ? 0 : info->item_size;
}

std::string_view to_string(DType dtype) noexcept {
  const DTypeInfo* info = find_dtype(dtype);
  return info == nullptr ? "unknown" : info->name;
}

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  const auto* row = std::ranges::find(kTable, name, &DTypeInfo::name);
  if (row == kTable.end()) return std::nullopt;
  return row->dtype;
}

std::optional<DType> dtype_from_dlpack(std::uint8_t code, std::uint8_t bits,
                                       std::uint16_t lanes) noexcept {
  if (code == kDlFloat4E2M1FN && bits == 4 && lanes == 2) return DType::kFloat4E2M1FNx2;
  if (lanes != 1) return std::nullopt;
  switch (code) {
    case kDlInt: return dlpack_integer(bits, DType::kInt8, DType::kInt1);
    case kDlUInt: return dlpack_integer(bits, DType::kUInt8, DType::kUInt1);
    case kDlFloat:
      if (bits == 16) return DType::kFloat16;
      if (bits == 32) return DType::kFloat32;
      if (bits == 64) return DType::kFloat64;
      return std::nullopt;
    case kDlBfloat: return bits == 16 ? std::optional(DType::kBFloat16) : std::nullopt;
    case kDlComplex:
      if (bits == 32) return DType::kComplex32;
      if (bits == 64) return DType::kComplex64;
      if (bits == 128) return DType::kComplex128;
      return std::nullopt;
    case kDlBool: return bits == 8 ? std::optional(DType::kBool) : std::nullopt;
    case kDlFloat6E2M3FN: return bits == 6 ? std::optional(DType::kFloat6E2M3FN) : std::nullopt;
    case kDlFloat6E3M2FN: return bits == 6 ? std::optional(DType::kFloat6E3M2FN) : std::nullopt;
    case kDlFloat4E2M1FN: return bits == 4 ? std::optional(DType::kFloat4E2M1FN) : std::nullopt;
    default: break;
  }
  if (code >= kDlFloat8First && code <= kDlFloat8Last && bits == 8) {
    return offset(DType::kFloat8E3M4, static_cast<unsigned>(code - kDlFloat8First));
  }
  return std::nullopt;
}

}  // namespace tensorkey
