#include <tensorkey/entry_format.h>

#include <algorithm>
#include <cstring>
#include <string>

#include <tensorkey/error.h>

#include "base/utf8.h"
#include "digest/xxh3.h"
#include "store/entry_layout.h"
#include "store/stored.h"

namespace tensorkey {

using internal::kHeadBytes;
using internal::kRecordBytes;
using internal::kUnit;
using internal::rounded_up;

namespace {

constexpr std::size_t kMostTensors = std::numeric_limits<std::uint16_t>::max();
constexpr std::size_t kLongestName = std::numeric_limits<std::uint16_t>::max();

[[noreturn]] void refuse(ErrorCode code, const std::string& message) {
  throw Error(code, "[encode_entry] " + message);
}

// Writes forward into bytes that are known to suffice.
class Cursor {
 public:
  explicit Cursor(std::span<std::byte> out) noexcept : begin_(out.data()), at_(out.data()) {}

  template <class T>
  void put(T value) noexcept {
    put(&value, sizeof value);
  }
  void put(const void* data, std::size_t bytes) noexcept {
    if (bytes != 0) std::memcpy(at_, data, bytes);
    at_ += bytes;
  }
  void pad_to(std::size_t unit) noexcept {
    const std::size_t zeros = rounded_up(done(), unit) - done();
    std::memset(at_, 0, zeros);
    at_ += zeros;
  }
  [[nodiscard]] std::size_t done() const noexcept { return static_cast<std::size_t>(at_ - begin_); }

 private:
  std::byte* begin_;
  std::byte* at_;
};

void check(std::span<const TensorParts> tensors) {
  for (const TensorParts& tensor : tensors) {
    if (internal::has_unit(tensor.dtype)) {
      refuse(ErrorCode::kUnsupported, "a tensor of " + std::string(to_string(tensor.dtype)) +
                                          ", whose unit an entry cannot hold; expected int64");
    }
    if (tensor.name.size() > kLongestName || !internal::is_utf8(tensor.name)) {
      refuse(ErrorCode::kInvalidArgument,
             "the name of a tensor; expected at most 65535 bytes of UTF-8");
    }
    const internal::Stored stored = internal::check_stored(tensor);
    if (!stored.problem.empty()) refuse(ErrorCode::kInvalidArgument, stored.problem);
  }
  if (internal::has_twins(tensors)) {
    refuse(ErrorCode::kInvalidArgument, "two tensors of one name; expected unique names");
  }
}

std::vector<TensorParts> tensors_of(const Entry& entry) {
  if (entry.tensor_count() > kMostTensors) {
    refuse(ErrorCode::kInvalidArgument,
           std::to_string(entry.tensor_count()) + " tensors; expected at most 65535");
  }
  std::vector<TensorParts> tensors(entry.tensor_count());
  for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i] = entry.tensor(i);
  return tensors;
}

}  // namespace

namespace internal {

Digest seal(std::span<const std::byte> bytes, const Secret& secret) {
  if (secret) {
    const Digest subkey = blake3_derive_key("tensorkey v1 entry mac", std::as_bytes(*secret));
    return blake3(bytes, {.key = &subkey});
  }
  const Hash128 hash = xxh3_checksum(bytes);
  Digest result{};
  std::memcpy(result.data(), &hash.low, sizeof hash.low);
  std::memcpy(result.data() + sizeof hash.low, &hash.high, sizeof hash.high);
  return result;
}

bool has_twins(std::span<const TensorParts> tensors) {
  if (tensors.size() < 2) return false;
  std::vector<std::string_view> names(tensors.size());
  std::ranges::transform(tensors, names.begin(), &TensorParts::name);
  std::ranges::sort(names);
  return std::ranges::adjacent_find(names) != names.end();
}

}  // namespace internal

std::size_t encoded_size(const Entry& entry, bool with_secret) {
  // No sum overflows: the entry lies in memory with more metadata than this.
  std::size_t size = kHeadBytes + (entry.input() ? Key::kSize : 0);
  std::size_t data = 0;
  for (std::size_t i = 0; i < entry.tensor_count(); ++i) {
    const TensorParts tensor = entry.tensor(i);
    size += kRecordBytes + tensor.shape.size_bytes() + rounded_up(tensor.name.size(), 8);
    data += rounded_up(tensor.data.size(), kUnit);
  }
  return rounded_up(size, kUnit) + data + internal::seal_bytes(with_secret);
}

void encode_entry(const Entry& entry, std::span<std::byte> out, const Secret& secret) {
  const std::vector<TensorParts> tensors = tensors_of(entry);
  check(tensors);
  const std::size_t size = encoded_size(entry, secret.has_value());
  if (out.size() != size) {
    refuse(ErrorCode::kInvalidArgument, "there is room for " + std::to_string(out.size()) +
                                            " bytes; expected " + std::to_string(size));
  }
  const std::optional<Key> input = entry.input();
  Cursor to(out);
  to.put(internal::kEntryMagic.data(), internal::kEntryMagic.size());
  to.put(internal::kEntryVersion);
  to.put(static_cast<std::uint8_t>((input ? internal::kFlagInput : 0) |
                                   (secret ? internal::kFlagMac : 0)));
  to.put(static_cast<std::uint16_t>(tensors.size()));
  to.put(std::uint64_t{size});
  to.put(entry.seconds() + 0.0);  // -0.0 becomes 0.0: one entry, one encoding
  to.put(entry.key().bytes());
  if (input) to.put(input->bytes());
  for (const TensorParts& tensor : tensors) {
    to.put(std::uint64_t{tensor.data.size()});
    to.put(tensor.dtype);
    to.put(tensor.codec);
    to.put(tensor.strides);
    to.put(static_cast<std::uint8_t>(tensor.shape.size()));
    to.put(std::uint8_t{0});
    to.put(static_cast<std::uint16_t>(tensor.name.size()));
    to.put(tensor.shape.data(), tensor.shape.size_bytes());
    to.put(tensor.name.data(), tensor.name.size());
    to.pad_to(8);
  }
  to.pad_to(kUnit);
  for (const TensorParts& tensor : tensors) {
    to.put(tensor.data.data(), tensor.data.size());
    to.pad_to(kUnit);
  }
  const Digest sealed = internal::seal(out.first(to.done()), secret);
  to.put(sealed.data(), internal::seal_bytes(secret.has_value()));
}

std::vector<std::byte> encode_entry(const Entry& entry, const Secret& secret) {
  std::vector<std::byte> out(encoded_size(entry, secret.has_value()));
  encode_entry(entry, out, secret);
  return out;
}

}  // namespace tensorkey
