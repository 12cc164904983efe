// The part of XLA's typed FFI, version 0.x of its C API, that is used, in our own words: how a
// compiled program calls a function of another library. The reference is xla/ffi/api/c_api.h in
// openxla/xla; python/tests/test_xla_ffi_abi.py compares every size, offset and number with the
// header that jaxlib ships. Structs begin with their size, and minor versions add to the end of
// them, so a struct here may be shorter than the runtime's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tensorkey::python::xla {

inline constexpr int kMajor = 0;
inline constexpr int kMinor = 3;
inline constexpr int kOldestMinor = 1;  // that has all of this but what says otherwise

enum class ExtensionType : std::uint32_t { kMetadata = 1 };

struct Extension {
  std::size_t struct_size;
  ExtensionType type;
  Extension* next;
};

struct ApiVersion {
  std::size_t struct_size;
  Extension* extensions;
  int major;
  int minor;
};

struct Failure;  // XLA's own; whoever gets one destroys it

// Those of absl::Status that are used.
enum class FailureCode : std::uint32_t {
  kInvalidArgument = 3,
  kResourceExhausted = 8,
  kUnimplemented = 12,
  kInternal = 13,
};

struct FailureArgs {
  std::size_t struct_size;
  Extension* extensions;
  const char* message;  // copied
  FailureCode code;
};

// Those whose elements take whole bytes.
enum class ElementType : std::uint32_t {
  kBool = 1,
  kInt8 = 2,
  kInt16 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kUInt8 = 6,
  kUInt16 = 7,
  kUInt32 = 8,
  kUInt64 = 9,
  kFloat16 = 10,
  kFloat32 = 11,
  kFloat64 = 12,
  kComplex64 = 15,
  kBFloat16 = 16,
  kComplex128 = 18,
  kFloat8E5M2 = 19,
  kFloat8E4M3FN = 20,
  kFloat8E4M3B11FNUZ = 23,
  kFloat8E5M2FNUZ = 24,
  kFloat8E4M3FNUZ = 25,
  kFloat8E4M3 = 28,
  kFloat8E3M4 = 29,
  kFloat8E8M0FNU = 33,
};

// Of a rank and dims, elements in C order as our calls ask for them.
struct Buffer {
  std::size_t struct_size;
  Extension* extensions;
  ElementType dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};

// What an argument, a result and an attribute can be; of each the one kind that we ask for.
enum class ArgType : std::uint32_t { kBuffer = 1 };
enum class RetType : std::uint32_t { kBuffer = 1 };
enum class AttrType : std::uint32_t { kScalar = 3 };

struct ByteSpan {
  const char* data;
  std::size_t size;
};

struct Scalar {
  ElementType dtype;
  void* value;
};

struct Args {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  ArgType* types;
  void** args;
};

struct Rets {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  RetType* types;
  void** rets;
};

struct Attrs {
  std::size_t struct_size;
  Extension* extensions;
  std::int64_t size;
  AttrType* types;
  ByteSpan** names;
  void** attrs;
};

enum class Stage : std::uint32_t { kExecute = 3 };

// Functions of the runtime; more follow.
struct Api {
  std::size_t struct_size;
  Extension* extensions;
  ApiVersion version;
  const void* internal;
  Failure* (*create_failure)(FailureArgs* args);
};

// One call; more follows.
struct CallFrame {
  std::size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  Stage stage;
  Args args;
  Rets rets;
  Attrs attrs;
};

// Null for success.
using Handler = Failure*(CallFrame* frame);

// What the runtime asks a handler for when it is registered, by an extension of the call frame.
struct Metadata {
  std::size_t struct_size;
  ApiVersion version;
  std::uint32_t traits;
  std::int64_t state_type;  // from 0.3 on; not within struct_size
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

static_assert(sizeof(Extension) == 24 && offsetof(Extension, type) == 8 &&
              offsetof(Extension, next) == 16);
static_assert(sizeof(ApiVersion) == 24 && offsetof(ApiVersion, major) == 16 &&
              offsetof(ApiVersion, minor) == 20);
static_assert(sizeof(FailureArgs) == 32 && offsetof(FailureArgs, message) == 16 &&
              offsetof(FailureArgs, code) == 24);
static_assert(sizeof(Buffer) == 48 && offsetof(Buffer, dtype) == 16 &&
              offsetof(Buffer, data) == 24 && offsetof(Buffer, rank) == 32 &&
              offsetof(Buffer, dims) == 40);
static_assert(sizeof(Scalar) == 16 && offsetof(Scalar, value) == 8);
static_assert(sizeof(Args) == 40 && sizeof(Rets) == 40 && sizeof(Attrs) == 48 &&
              offsetof(Args, types) == 24 && offsetof(Args, args) == 32 &&
              offsetof(Rets, types) == 24 && offsetof(Rets, rets) == 32 &&
              offsetof(Attrs, types) == 24 && offsetof(Attrs, names) == 32 &&
              offsetof(Attrs, attrs) == 40);
static_assert(offsetof(Api, version) == 16 && offsetof(Api, create_failure) == 48);
static_assert(offsetof(CallFrame, api) == 16 && offsetof(CallFrame, stage) == 32 &&
              offsetof(CallFrame, args) == 40 && offsetof(CallFrame, rets) == 80 &&
              offsetof(CallFrame, attrs) == 120);
static_assert(offsetof(Metadata, version) == 8 && offsetof(Metadata, traits) == 32 &&
              offsetof(Metadata, state_type) == 40 && offsetof(MetadataExtension, metadata) == 24);

}  // namespace tensorkey::python::xla
