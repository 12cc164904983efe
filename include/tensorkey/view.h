// A view: a borrowed description of a tensor in host memory. It owns nothing: data, shape, strides
// and dtype_params must outlive every call that is given the view. It is small and passed by value;
// reading a view from several threads is safe as long as nobody writes the tensor.
//
//   const float data[6] = {1, 2, 3, 4, 5, 6};
//   const std::int64_t shape[] = {2, 3};
//   tensorkey::Key k = tensorkey::key(tensorkey::view(data, shape));
//
// A DLPack tensor is viewed with from_dlpack(dl), which works with the DLTensor of any DLPack 0.x
// or 1.x header. Nothing is checked when a view is made: the functions that read it check it first
// (check_view) and throw Error.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include <tensorkey/dtype.h>
#include <tensorkey/export.h>

namespace tensorkey {

struct TensorView {
  const void* data = nullptr;  // the first logical element; may be null if there are no elements
  DType dtype = DType::kUInt8;
  std::span<const std::int64_t> shape = {};    // empty: a scalar
  std::span<const std::int64_t> strides = {};  // as many as dims; empty: C-contiguous
  std::int64_t stride_unit =
      1;                     // bytes one unit of strides stands for: 1 (NumPy), item size (DLPack)
  bool byteswapped = false;  // big-endian elements (each part of a complex number by itself)
  std::string_view dtype_params = {};  // datetime64, timedelta64: the unit, "ns" or "25s"
};

// Throws Error unless the view can be read: kUnsupported for a dtype that is not in the table,
// kInvalidArgument for negative dims, another number of strides than dims, a size or an extent
// (of strides as well) that overflows 63 bits, null data with elements, dtype_params where the
// dtype has none (or none where it needs them). `where` is the function named in the message.
TENSORKEY_EXPORT void check_view(const TensorView& view, std::string_view where);

// Product of the dims: 1 for a scalar, 0 if any dim is 0. REQUIRES: a checked view.
TENSORKEY_EXPORT std::int64_t element_count(const TensorView& view) noexcept;

// element_count * item_size. REQUIRES: a checked view.
TENSORKEY_EXPORT std::size_t byte_count(const TensorView& view) noexcept;

// The dtype that stands for a C++ type.
template <class T>
consteval DType dtype_of() {
  if constexpr (std::same_as<T, bool>) {
    return DType::kBool;
  } else if constexpr (std::same_as<T, float>) {
    return DType::kFloat32;
  } else if constexpr (std::same_as<T, double>) {
    return DType::kFloat64;
  } else {
    static_assert(std::integral<T> && sizeof(T) <= 8,
                  "no dtype stands for this C++ type: fill in a TensorView yourself");
    constexpr int kLog2 = std::countr_zero(sizeof(T));
    return static_cast<DType>((std::signed_integral<T> ? 2 : 6) + kLog2);
  }
}

// A C-contiguous tensor of C++ numbers. Borrows data and shape.
template <class T>
TensorView view(const T* data, std::span<const std::int64_t> shape) {
  return {.data = data, .dtype = dtype_of<std::remove_cv_t<T>>(), .shape = shape};
}

namespace internal {
struct DlpackFields {
  std::int32_t device_type;
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
  std::int32_t ndim;
  bool has_shape;
  bool padded;  // sub-byte elements lie one a byte
  std::uint64_t byte_offset;
};

// Throws kUnsupported for a (code, bits, lanes) without a dtype, for packed sub-byte elements and
// for a device type that is not host memory (kDLCPU 1, kDLCUDAHost 3, kDLROCMHost 11);
// kInvalidArgument for fields that no tensor can have.
TENSORKEY_EXPORT DType check_dlpack(const DlpackFields& fields);
}  // namespace internal

// A DLTensor (DLPack specification, dlpack.h) of any header's type. Borrows all that it points to.
// `padded`: its sub-byte elements lie one a byte (DLPACK_FLAG_BITMASK_IS_SUBBYTE_TYPE_PADDED, which
// is in the versioned struct around it); packed ones cannot be read. Throws kUnsupported for a
// dtype without an id and for memory that the host cannot read.
template <class DLTensorLike>
TensorView from_dlpack(const DLTensorLike& dl, bool padded = false) {
  const DType dtype =
      internal::check_dlpack({.device_type = static_cast<std::int32_t>(dl.device.device_type),
                              .code = dl.dtype.code,
                              .bits = dl.dtype.bits,
                              .lanes = dl.dtype.lanes,
                              .ndim = dl.ndim,
                              .has_shape = dl.shape != nullptr,
                              .padded = padded,
                              .byte_offset = dl.byte_offset});
  const auto rank = static_cast<std::size_t>(dl.ndim);
  // By integers: a hostile offset must not be undefined behaviour before check_view has seen it.
  const auto address = reinterpret_cast<std::uintptr_t>(dl.data);
  return {.data = dl.data == nullptr
                      ? nullptr
                      : reinterpret_cast<const void*>(address + std::uintptr_t{dl.byte_offset}),
          .dtype = dtype,
          .shape = {dl.shape, rank},
          .strides = {dl.strides, dl.strides == nullptr ? 0 : rank},
          .stride_unit = static_cast<std::int64_t>(item_size(dtype))};
}

}  // namespace tensorkey
