// Entries: what a cache stores under a key. An entry is immutable, one block of memory, and shared:
// whoever holds an EntryPtr may read it for as long as he likes, also after its eviction.
//
//   const std::array tensors{TensorParts{.dtype = DType::kFloat32, .shape = dims, .data = bytes}};
//   EntryPtr entry = make_entry({.key = key, .seconds = 0.004, .tensors = tensors});
//   std::span<const std::byte> values = entry->tensor(0).data;
//
// All calls are thread-safe. The bytes that leave the process are those of docs/entry_format.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include <tensorkey/dtype.h>
#include <tensorkey/export.h>
#include <tensorkey/key.h>

namespace tensorkey {

// How the values of a tensor are kept. Stable ids, part of the entry format.
enum class Codec : std::uint8_t {
  kRaw = 0,       // the bytes as they are
  kLossless = 1,  // the bytes of each element shuffled apart, then zstd
  kFloat16 = 2,   // floats rounded to IEEE half precision: lossy
  kBFloat16 = 3,  // floats rounded to bfloat16: lossy
};

// In which order the layer had the elements in memory. The stored order is always C order.
enum class Strides : std::uint8_t {
  kRowMajor = 0,
  kFirstDimFastest = 1,  // a row of a channels-last batch
};

// One tensor of an entry, borrowed. `data` is what the codec made of the elements in C order,
// little-endian; for kRaw the elements themselves.
struct TensorParts {
  std::string_view name = {};  // UTF-8; empty for an only tensor
  DType dtype = DType::kUInt8;
  std::span<const std::int64_t> shape = {};
  Strides strides = Strides::kRowMajor;
  Codec codec = Codec::kRaw;
  std::span<const std::byte> data = {};
};

// What an entry is made of, borrowed.
struct EntryParts {
  Key key;
  std::optional<Key> input = std::nullopt;  // content key of the input, beside a caller's own key
  double seconds = 0;                       // of computation that a hit saves: finite, not negative
  std::span<const TensorParts> tensors = {};
};

class TENSORKEY_EXPORT Entry {
 public:
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

  [[nodiscard]] const Key& key() const noexcept;
  [[nodiscard]] std::optional<Key> input() const noexcept;
  [[nodiscard]] double seconds() const noexcept;
  [[nodiscard]] std::size_t tensor_count() const noexcept;

  // Borrowed from the entry; `data` is aligned to 16 bytes. REQUIRES: i < tensor_count().
  [[nodiscard]] TensorParts tensor(std::size_t i) const noexcept;

  // Bytes of memory it takes, metadata and the allocator's rounding included.
  [[nodiscard]] std::size_t footprint() const noexcept;

 protected:
  Entry() = default;
  ~Entry() = default;
};

// A counted reference to an entry, or null.
class TENSORKEY_EXPORT EntryPtr {
 public:
  EntryPtr() = default;
  EntryPtr(std::nullptr_t) {}
  // Takes over a reference that the caller has.
  explicit EntryPtr(const Entry* entry) noexcept : entry_(entry) {}
  EntryPtr(const EntryPtr& other) noexcept;
  EntryPtr(EntryPtr&& other) noexcept : entry_(std::exchange(other.entry_, nullptr)) {}
  EntryPtr& operator=(EntryPtr other) noexcept {
    std::swap(entry_, other.entry_);
    return *this;
  }
  ~EntryPtr();

  [[nodiscard]] const Entry* get() const noexcept { return entry_; }
  const Entry* operator->() const noexcept { return entry_; }
  const Entry& operator*() const noexcept { return *entry_; }
  explicit operator bool() const noexcept { return entry_ != nullptr; }
  friend bool operator==(const EntryPtr&, const EntryPtr&) = default;

 private:
  const Entry* entry_ = nullptr;
};

// Copies the parts. Throws kInvalidArgument unless seconds is finite and not negative, the dims are
// not negative, the sizes do not overflow, the rank is at most 64, and the data of a raw tensor has
// exactly the bytes of its elements.
TENSORKEY_EXPORT EntryPtr make_entry(const EntryParts& parts);

}  // namespace tensorkey
