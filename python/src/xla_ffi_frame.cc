#include "xla_ffi_frame.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <optional>
#include <string>

namespace tensorkey::python::xla {
namespace {

std::atomic<std::int64_t> asked_by{-1};

std::optional<DType> dtype_of(ElementType type) noexcept {
  switch (type) {
    case ElementType::kBool: return DType::kBool;
    case ElementType::kInt8: return DType::kInt8;
    case ElementType::kInt16: return DType::kInt16;
    case ElementType::kInt32: return DType::kInt32;
    case ElementType::kInt64: return DType::kInt64;
    case ElementType::kUInt8: return DType::kUInt8;
    case ElementType::kUInt16: return DType::kUInt16;
    case ElementType::kUInt32: return DType::kUInt32;
    case ElementType::kUInt64: return DType::kUInt64;
    case ElementType::kFloat16: return DType::kFloat16;
    case ElementType::kFloat32: return DType::kFloat32;
    case ElementType::kFloat64: return DType::kFloat64;
    case ElementType::kComplex64: return DType::kComplex64;
    case ElementType::kBFloat16: return DType::kBFloat16;
    case ElementType::kComplex128: return DType::kComplex128;
    case ElementType::kFloat8E5M2: return DType::kFloat8E5M2;
    case ElementType::kFloat8E4M3FN: return DType::kFloat8E4M3FN;
    case ElementType::kFloat8E4M3B11FNUZ: return DType::kFloat8E4M3B11FNUZ;
    case ElementType::kFloat8E5M2FNUZ: return DType::kFloat8E5M2FNUZ;
    case ElementType::kFloat8E4M3FNUZ: return DType::kFloat8E4M3FNUZ;
    case ElementType::kFloat8E4M3: return DType::kFloat8E4M3;
    case ElementType::kFloat8E3M4: return DType::kFloat8E3M4;
    case ElementType::kFloat8E8M0FNU: return DType::kFloat8E8M0FNU;
  }
  return std::nullopt;
}

[[noreturn]] void invalid(const std::string& what) {
  throw Error(ErrorCode::kInvalidArgument, "[tensorkey] a call of XLA's without " + what);
}

TensorView view_of(const Buffer& buffer) {
  const std::optional<DType> dtype = dtype_of(buffer.dtype);
  if (!dtype) {
    throw Error(ErrorCode::kUnsupported,
                "[tensorkey] an array of XLA's element type " +
                    std::to_string(static_cast<std::uint32_t>(buffer.dtype)));
  }
  return {.data = buffer.data,
          .dtype = *dtype,
          .shape = {buffer.dims, static_cast<std::size_t>(buffer.rank)}};
}

FailureCode code_of(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument: return FailureCode::kInvalidArgument;
    case ErrorCode::kUnsupported: return FailureCode::kUnimplemented;
    default: return FailureCode::kInternal;
  }
}

}  // namespace

TensorView Frame::argument(std::size_t index) const {
  const Args& args = frame_->args;
  if (index >= arguments() || args.types[index] != ArgType::kBuffer) {
    invalid("argument " + std::to_string(index));
  }
  return view_of(*static_cast<const Buffer*>(args.args[index]));
}

TensorView Frame::result(std::size_t index) const {
  const Rets& rets = frame_->rets;
  if (index >= results() || rets.types[index] != RetType::kBuffer) {
    invalid("result " + std::to_string(index));
  }
  return view_of(*static_cast<const Buffer*>(rets.rets[index]));
}

std::span<std::byte> Frame::memory(std::size_t index) const {
  const TensorView view = result(index);
  check_view(view, "tensorkey");
  // Results are the handler's to write.
  return {const_cast<std::byte*>(static_cast<const std::byte*>(view.data)), byte_count(view)};
}

std::int32_t Frame::number(std::size_t index) const {
  const TensorView view = argument(index);
  if (view.dtype != DType::kInt32 || !view.shape.empty() || view.data == nullptr) {
    invalid("a number as argument " + std::to_string(index));
  }
  std::int32_t value;
  std::memcpy(&value, view.data, sizeof value);
  return value;
}

std::int64_t Frame::attribute(std::string_view name) const {
  const Attrs& attrs = frame_->attrs;
  for (std::int64_t i = 0; i < attrs.size; ++i) {
    if (std::string_view(attrs.names[i]->data, attrs.names[i]->size) != name) continue;
    if (attrs.types[i] != AttrType::kScalar) break;
    const auto& scalar = *static_cast<const Scalar*>(attrs.attrs[i]);
    if (scalar.dtype != ElementType::kInt64) break;
    std::int64_t value;
    std::memcpy(&value, scalar.value, sizeof value);
    return value;
  }
  invalid("attribute " + std::string(name));
}

bool described(const CallFrame& frame) noexcept {
  Extension* extension = frame.extensions;
  if (extension == nullptr || extension->type != ExtensionType::kMetadata) return false;
  Metadata& metadata = *reinterpret_cast<MetadataExtension*>(extension)->metadata;
  // A minor version has all that an older one has, and takes no newer handlers than itself. Another
  // major version is told what we are, and refuses. Before 0.3 they may not say what they are.
  int minor = kOldestMinor;
  if (frame.api != nullptr) {
    const ApiVersion& runtime = frame.api->version;
    asked_by = std::int64_t{runtime.major} << 32 | runtime.minor;
    if (runtime.major == kMajor) minor = std::min(runtime.minor, kMinor);
  }
  metadata.version = {
      .struct_size = sizeof(ApiVersion), .extensions = nullptr, .major = kMajor, .minor = minor};
  metadata.traits = 0;
  if (minor == kMinor) metadata.state_type = 0;
  return true;
}

std::int64_t runtime_version() noexcept { return asked_by; }

Failure* failure_of(const CallFrame& frame) noexcept {
  const auto made = [&](FailureCode code, const char* message) {
    FailureArgs args{.struct_size = offsetof(FailureArgs, code) + sizeof code,
                     .extensions = nullptr,
                     .message = message,
                     .code = code};
    return frame.api->create_failure(&args);
  };
  try {
    throw;
  } catch (const Error& error) {
    return made(code_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return made(FailureCode::kResourceExhausted, "[tensorkey] out of memory");
  } catch (const std::exception& error) {
    return made(FailureCode::kInternal, error.what());
  }
}

}  // namespace tensorkey::python::xla
