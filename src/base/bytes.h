// Little-endian values in bytes, and writing them into a growing buffer.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace tensorkey::internal {

static_assert(std::endian::native == std::endian::little,
              "tensors are read as they lie in memory: a big-endian host needs a swap in src/view");

template <class T>
[[nodiscard]] T load(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void store(std::byte* to, const T& value) noexcept {
  std::memcpy(to, &value, sizeof value);
}

// The first kInline bytes need no heap. Not thread-safe; the bytes are valid until the next write.
class ByteWriter {
 public:
  static constexpr std::size_t kInline = 256;

  template <std::unsigned_integral T>
  void put(T value) {
    append(&value, sizeof value);
  }

  void put(std::string_view text) { append(text.data(), text.size()); }
  void put(std::span<const std::byte> bytes) { append(bytes.data(), bytes.size()); }

  // u32 length + bytes. REQUIRES: fewer than 2^32 bytes.
  void put_sized(std::string_view text) {
    put(static_cast<std::uint32_t>(text.size()));
    put(text);
  }

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return heap_.empty() ? std::span(inline_.data(), size_) : std::span(heap_);
  }

 private:
  void append(const void* source, std::size_t size) {
    if (size == 0) return;
    if (heap_.empty() && size_ + size <= kInline) {
      std::memcpy(inline_.data() + size_, source, size);
      size_ += size;
    } else {
      append_to_heap(source, size);
    }
  }

  void append_to_heap(const void* source, std::size_t size) {
    if (heap_.empty()) {
      heap_.reserve(std::max(2 * kInline, size_ + size));
      heap_.assign(inline_.data(), inline_.data() + size_);
    }
    const auto* from = static_cast<const std::byte*>(source);
    heap_.insert(heap_.end(), from, from + size);
  }

  std::array<std::byte, kInline> inline_;
  std::size_t size_ = 0;
  std::vector<std::byte> heap_;
};

}  // namespace tensorkey::internal
