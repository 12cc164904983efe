#include <tensorkey/view.h>

#include <limits>
#include <string>

#include <tensorkey/error.h>

namespace tensorkey {
namespace {

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

// A key's header holds the rank in 16 bits (docs/key_format.md).
constexpr std::size_t kMaxRank = 65535;

[[noreturn]] void fail(ErrorCode code, std::string_view where, const std::string& text) {
  throw Error(code, "[" + std::string(where) + "] " + text);
}

[[noreturn]] void invalid(std::string_view where, const std::string& text) {
  fail(ErrorCode::kInvalidArgument, where, text);
}

bool takes_params(DType dtype) {
  return dtype == DType::kDateTime64 || dtype == DType::kTimeDelta64;
}

// The bytes that a view without elements stands for must not overflow either, so that a row of it
// can be described: dims of 0 count as 1.
void check_size(const TensorView& view, std::size_t item, std::string_view where) {
  std::int64_t bytes = static_cast<std::int64_t>(item);
  for (std::size_t d = 0; d < view.shape.size(); ++d) {
    const std::int64_t dim = view.shape[d];
    if (dim < 0) {
      invalid(where, "dimension " + std::to_string(d) + " of the tensor is " + std::to_string(dim) +
                         "; expected 0 or more");
    }
    if (__builtin_mul_overflow(bytes, dim == 0 ? 1 : dim, &bytes)) {
      invalid(where, "the tensor's size overflows 63 bits at dimension " + std::to_string(d) +
                         "; expected a size in bytes below 2^63");
    }
  }
}

// Every element must lie between address 0 and the end of the address space.
void check_extent(const TensorView& view, std::size_t item, std::string_view where) {
  const bool empty = element_count(view) == 0;
  std::int64_t below = 0;
  std::int64_t above = static_cast<std::int64_t>(item);
  for (std::size_t d = 0; d < view.strides.size(); ++d) {
    std::int64_t step;
    std::int64_t reach = 0;
    bool overflow = __builtin_mul_overflow(view.strides[d], view.stride_unit, &step);
    if (!overflow && !empty) {
      std::int64_t& side = step < 0 ? below : above;
      overflow = __builtin_mul_overflow(view.shape[d] - 1, step, &reach) ||
                 (step < 0 ? __builtin_sub_overflow(side, reach, &side)
                           : __builtin_add_overflow(side, reach, &side));
    }
    if (overflow) {
      invalid(where, "stride " + std::to_string(view.strides[d]) + " of dimension " +
                         std::to_string(d) +
                         " makes the tensor's extent overflow 63 bits; expected strides of memory "
                         "that exists");
    }
  }
  if (empty) return;
  if (view.strides.empty()) above = static_cast<std::int64_t>(byte_count(view));
  const auto first = reinterpret_cast<std::uintptr_t>(view.data);
  if (static_cast<std::uintptr_t>(below) > first ||
      static_cast<std::uintptr_t>(above) > std::numeric_limits<std::uintptr_t>::max() - first) {
    invalid(where,
            "the tensor's strides reach past the end of the address space; expected strides of "
            "memory that exists");
  }
}

}  // namespace

void check_view(const TensorView& view, std::string_view where) {
  const DTypeInfo* info = find_dtype(view.dtype);
  if (info == nullptr) {
    fail(ErrorCode::kUnsupported, where,
         "dtype " + std::to_string(static_cast<unsigned>(view.dtype)) +
             " is unknown; expected one of tensorkey/dtype.h");
  }
  if (view.shape.size() > kMaxRank) {
    invalid(where, "the tensor has rank " + std::to_string(view.shape.size()) +
                       "; expected at most " + std::to_string(kMaxRank));
  }
  if (!view.shape.empty() && view.shape.data() == nullptr) {
    invalid(where, "the tensor's shape is a null pointer; expected " +
                       std::to_string(view.shape.size()) + " dimensions");
  }
  if (!view.strides.empty() && view.strides.size() != view.shape.size()) {
    invalid(where, "the tensor has " + std::to_string(view.strides.size()) + " strides and " +
                       std::to_string(view.shape.size()) + " dimensions; expected as many");
  }
  if (view.stride_unit < 1) {
    invalid(where, "stride_unit is " + std::to_string(view.stride_unit) + "; expected 1 or more");
  }
  check_size(view, info->item_size, where);
  if (view.data == nullptr && element_count(view) != 0) {
    invalid(where, "the tensor has " + std::to_string(element_count(view)) +
                       " elements and no data (a null pointer); expected memory that holds them");
  }
  check_extent(view, info->item_size, where);
  if (takes_params(view.dtype) == view.dtype_params.empty()) {
    const std::string name(info->name);
    invalid(where, view.dtype_params.empty()
                       ? name + " has no unit; expected dtype_params such as \"ns\""
                       : name + " has dtype_params \"" + std::string(view.dtype_params) +
                             "\"; expected none");
  }
  if (view.dtype_params.size() > std::numeric_limits<std::uint32_t>::max()) {
    invalid(where, "dtype_params are longer than 2^32 bytes; expected a unit such as \"ns\"");
  }
}

std::int64_t element_count(const TensorView& view) noexcept {
  std::int64_t count = 1;
  for (const std::int64_t dim : view.shape) {
    if (dim == 0) return 0;
    count *= dim;
  }
  return count;
}

std::size_t byte_count(const TensorView& view) noexcept {
  return static_cast<std::size_t>(element_count(view)) * item_size(view.dtype);
}

namespace internal {

DType check_dlpack(const DlpackFields& fields) {
  constexpr std::string_view kWhere = "from_dlpack";
  constexpr std::int32_t kCpu = 1;
  constexpr std::int32_t kCudaHost = 3;
  constexpr std::int32_t kRocmHost = 11;
  if (fields.device_type != kCpu && fields.device_type != kCudaHost &&
      fields.device_type != kRocmHost) {
    fail(ErrorCode::kUnsupported, kWhere,
         "the tensor lies on a device (DLPack device type " + std::to_string(fields.device_type) +
             "); expected host memory: copy it to the CPU first");
  }
  const std::optional<DType> dtype = dtype_from_dlpack(fields.code, fields.bits, fields.lanes);
  if (!dtype) {
    fail(ErrorCode::kUnsupported, kWhere,
         "no dtype stands for DLPack type code " + std::to_string(fields.code) + ", " +
             std::to_string(fields.bits) + " bits, " + std::to_string(fields.lanes) +
             " lanes; expected one of the table in docs/key_format.md");
  }
  if (fields.bits < 8 && *dtype != DType::kFloat4E2M1FNx2 && !fields.padded) {
    fail(ErrorCode::kUnsupported, kWhere,
         "the tensor's " + std::string(to_string(*dtype)) +
             " elements are packed several to a byte; expected one element a byte");
  }
  if (fields.ndim < 0 || (fields.ndim > 0 && !fields.has_shape)) {
    invalid(kWhere, "the tensor has " + std::to_string(fields.ndim) + " dimensions" +
                        (fields.ndim < 0 ? "" : " and no shape") + "; expected a valid DLTensor");
  }
  if (fields.byte_offset > static_cast<std::uint64_t>(kMax)) {
    invalid(kWhere, "byte_offset is " + std::to_string(fields.byte_offset) +
                        "; expected an offset below 2^63");
  }
  return *dtype;
}

}  // namespace internal
}  // namespace tensorkey
