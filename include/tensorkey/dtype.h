// Element types. An id is stable for ever: it is written into keys (docs/key_format.md holds the
// same table). Ids are never reused; a dtype with the same bytes but another meaning has another
// id.
//
// Sub-byte kinds (int1..int7, uint1..uint7, the 4- and 6-bit floats) lie one element a byte, in the
// low bits. All functions are pure and thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <tensorkey/export.h>

namespace tensorkey {

// 0 is no dtype: the header of a tuple key has it.
enum class DType : std::uint16_t {
  kBool = 1,

  kInt8 = 2,
  kInt16 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kUInt8 = 6,
  kUInt16 = 7,
  kUInt32 = 8,
  kUInt64 = 9,

  kFloat16 = 16,
  kFloat32 = 17,
  kFloat64 = 18,
  kBFloat16 = 19,
  kComplex32 = 20,  // two float16: torch.complex32
  kComplex64 = 21,
  kComplex128 = 22,

  // Names as in ml_dtypes and the ONNX specification; fn: finite, no infinities; uz: unsigned zero.
  kFloat8E3M4 = 32,
  kFloat8E4M3 = 33,
  kFloat8E4M3B11FNUZ = 34,
  kFloat8E4M3FN = 35,
  kFloat8E4M3FNUZ = 36,
  kFloat8E5M2 = 37,
  kFloat8E5M2FNUZ = 38,
  kFloat8E8M0FNU = 39,
  kFloat6E2M3FN = 40,
  kFloat6E3M2FN = 41,
  kFloat4E2M1FN = 42,
  kFloat4E2M1FNx2 = 43,  // torch.float4_e2m1fn_x2: two values packed in one byte, one element

  kInt1 = 48,
  kInt2 = 49,
  kInt3 = 50,
  kInt4 = 51,
  kInt5 = 52,
  kInt6 = 53,
  kInt7 = 54,
  kUInt1 = 56,
  kUInt2 = 57,
  kUInt3 = 58,
  kUInt4 = 59,
  kUInt5 = 60,
  kUInt6 = 61,
  kUInt7 = 62,

  kDateTime64 = 64,   // int64 with a unit, which stands in TensorView::dtype_params
  kTimeDelta64 = 65,  // likewise
};

struct DTypeInfo {
  DType dtype;
  std::string_view name;   // "float32": the name in NumPy, ml_dtypes and PyTorch where they agree
  std::uint8_t item_size;  // bytes an element takes in memory, 1 to 16
  std::uint8_t swap_size;  // bytes of one number: half of item_size for complex kinds
};

// The row of the table, or nullptr for an unknown id.
TENSORKEY_EXPORT const DTypeInfo* find_dtype(DType dtype) noexcept;

// REQUIRES: a dtype of the table; otherwise 0.
TENSORKEY_EXPORT std::size_t item_size(DType dtype) noexcept;

// "float32"; "unknown" for an id that is not in the table.
TENSORKEY_EXPORT std::string_view to_string(DType dtype) noexcept;

// The dtype of that exact name ("bfloat16", "uint4"), if any.
TENSORKEY_EXPORT std::optional<DType> dtype_from_name(std::string_view name) noexcept;

// The dtype of a DLPack (code, bits, lanes) triple, if any. A sub-byte kind is answered by its code
// and bits alone: whether its elements lie one a byte is the caller's to check.
TENSORKEY_EXPORT std::optional<DType> dtype_from_dlpack(std::uint8_t code, std::uint8_t bits,
                                                        std::uint16_t lanes) noexcept;

}  // namespace tensorkey
