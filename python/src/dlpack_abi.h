// The part of the DLPack 1.x ABI that is used, in our own words: how tensors are passed between
// libraries inside one process. The reference is the DLPack specification
// (dmlc.github.io/dlpack/latest/c_api.html); python/tests/test_dlpack_abi.py compares every size
// and offset with the header that PyTorch ships. A minor version only adds to the end of things, so
// the major version alone is checked.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tensorkey::python::dlpack {

inline constexpr std::uint32_t kMajor = 1;
inline constexpr std::uint32_t kMinor = 3;

inline constexpr std::int32_t kCpu = 1;
inline constexpr std::int32_t kCuda = 2;
inline constexpr std::int32_t kCudaHost = 3;
inline constexpr std::int32_t kRocm = 10;
inline constexpr std::int32_t kRocmHost = 11;

// Type codes that are asked about; tensorkey::dtype_from_dlpack knows them all.
inline constexpr std::uint8_t kInt = 0;
inline constexpr std::uint8_t kUInt = 1;
inline constexpr std::uint8_t kComplex = 5;

// Bit of ManagedVersioned::flags: sub-byte elements lie one a byte.
inline constexpr std::uint64_t kFlagPadded = std::uint64_t{1} << 2;

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct Device {
  std::int32_t device_type;
  std::int32_t device_id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; before 1.2 null for a C-contiguous tensor
  std::uint64_t byte_offset;
};

// What a capsule named "dltensor" holds.
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed* self);
};

// What a capsule named "dltensor_versioned" holds. Up to `flags` it is the same in every version.
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned* self);
  std::uint64_t flags;
  Tensor tensor;
};

// What the capsule `__dlpack_c_exchange_api__` of a tensor type holds: a table of C functions. Up
// to `previous` it is the same in every version.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;  // a table of an older major version, or null
  void (*allocate)();     // the types of these three are not needed
  void (*managed_from_object)();
  void (*managed_to_object)();
  // Fills in *out, which borrows from the Python object. 0, or -1 with a Python error. May be null.
  int (*tensor_from_object)(void* object, Tensor* out);
  void (*current_stream)();
};

static_assert(sizeof(Version) == 8 && sizeof(Device) == 8 && sizeof(DataType) == 4);
static_assert(sizeof(Tensor) == 48 && offsetof(Tensor, device) == 8 &&
              offsetof(Tensor, ndim) == 16 && offsetof(Tensor, dtype) == 20 &&
              offsetof(Tensor, shape) == 24 && offsetof(Tensor, strides) == 32 &&
              offsetof(Tensor, byte_offset) == 40);
static_assert(sizeof(Managed) == 64 && offsetof(Managed, context) == 48 &&
              offsetof(Managed, deleter) == 56);
static_assert(sizeof(ManagedVersioned) == 80 && offsetof(ManagedVersioned, context) == 8 &&
              offsetof(ManagedVersioned, deleter) == 16 &&
              offsetof(ManagedVersioned, flags) == 24 && offsetof(ManagedVersioned, tensor) == 32);
static_assert(sizeof(ExchangeApi) == 56 && offsetof(ExchangeApi, previous) == 8 &&
              offsetof(ExchangeApi, allocate) == 16 &&
              offsetof(ExchangeApi, tensor_from_object) == 40 &&
              offsetof(ExchangeApi, current_stream) == 48);

}  // namespace tensorkey::python::dlpack
