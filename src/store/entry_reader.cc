// Bytes to an entry. Order matters: what makes the length known, then the checksum or MAC over
// every byte, and only then the rest. Whatever passes is encoded again to the same bytes.
#include <tensorkey/entry_format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include <tensorkey/error.h>

#include "base/bytes.h"
#include "base/utf8.h"
#include "store/entry_layout.h"
#include "store/stored.h"

namespace tensorkey {

using internal::kHeadBytes;
using internal::kRecordBytes;
using internal::kUnit;
using internal::load;

namespace {

[[noreturn]] void corrupt(const std::string& message) {
  throw Error(ErrorCode::kCorruption, "[decode_entry] " + message);
}

// What the message says of a tensor: its place, because its name may be anything.
[[noreturn]] void corrupt(std::size_t tensor, const std::string& message) {
  corrupt("tensor " + std::to_string(tensor) + ": " + message);
}

// Takes bytes off the front of the body.
class Body {
 public:
  explicit Body(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

  [[nodiscard]] std::size_t left() const noexcept { return bytes_.size() - at_; }

  const std::byte* take(std::size_t bytes) {
    if (bytes > left()) {
      corrupt("it ends within what it declares: " + std::to_string(left()) +
              " bytes are left; expected " + std::to_string(bytes));
    }
    at_ += bytes;
    return bytes_.data() + at_ - bytes;
  }

  // Goes on to a multiple of `unit` bytes from the beginning, over zeros.
  void skip_padding(std::size_t unit) {
    const std::size_t bytes = internal::rounded_up(at_, unit) - at_;
    const std::byte* const padding = take(bytes);
    if (std::any_of(padding, padding + bytes, [](std::byte b) { return b != std::byte{0}; })) {
      corrupt("the padding before byte " + std::to_string(at_) + " is not zero; expected zeros");
    }
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
};

// Compares without telling by its time where the first difference is.
bool equal_in_constant_time(const std::byte* a, const std::uint8_t* b, std::size_t bytes) noexcept {
  unsigned difference = 0;
  for (std::size_t i = 0; i < bytes; ++i) {
    difference |= std::to_integer<unsigned>(a[i]) ^ b[i];
    asm volatile("" : "+r"(difference));  // the compiler must not leave the loop early
  }
  return difference == 0;
}

// The flags, after what must be right before any byte behind the head is believed.
std::uint8_t check_whole(std::span<const std::byte> bytes, const Secret& secret) {
  const std::size_t least = kHeadBytes + internal::seal_bytes(false);
  if (bytes.size() < least) {
    corrupt(std::to_string(bytes.size()) + " bytes; expected at least " + std::to_string(least));
  }
  if (std::memcmp(bytes.data(), internal::kEntryMagic.data(), internal::kEntryMagic.size()) != 0) {
    corrupt("the first bytes are others; expected TKEN");
  }
  const auto version = load<std::uint8_t>(bytes.data() + 4);
  if (version != internal::kEntryVersion) {
    corrupt("version " + std::to_string(version) + "; expected 1");
  }
  const auto flags = load<std::uint8_t>(bytes.data() + 5);
  if ((flags & ~(internal::kFlagInput | internal::kFlagMac)) != 0) {
    corrupt("flags " + std::to_string(flags) + "; expected bits 0 and 1 alone");
  }
  const bool with_secret = (flags & internal::kFlagMac) != 0;
  if (with_secret && !secret) corrupt("it was written with a secret; expected none");
  if (!with_secret && secret) corrupt("it was written without a secret; expected a MAC");
  const auto length = load<std::uint64_t>(bytes.data() + 8);
  const std::size_t seal = internal::seal_bytes(with_secret);
  if (length != bytes.size() || length % kUnit != 0 || length < kHeadBytes + seal) {
    corrupt(std::to_string(bytes.size()) + " bytes; expected the " + std::to_string(length) +
            " that it declares");
  }
  const std::size_t sealed = bytes.size() - seal;
  const Digest right = internal::seal(bytes.first(sealed), secret);
  if (!equal_in_constant_time(bytes.data() + sealed, right.data(), seal)) {
    corrupt(with_secret ? "the MAC is wrong; expected that of a holder of the secret"
                        : "the checksum is wrong; expected that of the bytes");
  }
  return flags;
}

Key take_key(Body& body) {
  Digest bytes;
  std::memcpy(bytes.data(), body.take(Key::kSize), Key::kSize);
  return Key(bytes);
}

}  // namespace

EncodedEntry::EncodedEntry(std::span<const std::byte> bytes, const DecodeOptions& options) {
  if (bytes.size() > options.max_bytes) {
    corrupt(std::to_string(bytes.size()) + " bytes; expected at most " +
            std::to_string(options.max_bytes));
  }
  const std::uint8_t flags = check_whole(bytes, options.secret);
  Body body(bytes.first(bytes.size() - internal::seal_bytes(options.secret.has_value())));
  const std::byte* const head = body.take(kHeadBytes - Key::kSize);
  const std::size_t count = load<std::uint16_t>(head + 6);
  parts_.seconds = load<double>(head + 16);
  if (!std::isfinite(parts_.seconds) || std::signbit(parts_.seconds)) {
    corrupt("the cost is negative or not finite; expected seconds");
  }
  parts_.key = take_key(body);
  if (options.key && parts_.key != *options.key) {
    corrupt("it has the key " + parts_.key.hex() + "; expected " + options.key->hex());
  }
  if ((flags & internal::kFlagInput) != 0) parts_.input = take_key(body);

  // The records say how long everything is; each is there before anything is made for it.
  if (count > body.left() / kRecordBytes) {
    corrupt(std::to_string(count) + " tensors; expected at most " +
            std::to_string(body.left() / kRecordBytes));
  }
  tensors_.resize(count);
  struct Extent {
    std::uint64_t bytes;
    std::size_t rank;
  };
  std::array<Extent, 4> few;  // so that usual entries need no memory for it
  std::vector<Extent> many(count > few.size() ? count : 0);
  const std::span<Extent> extents = many.empty() ? std::span(few).first(count) : std::span(many);
  for (std::size_t i = 0; i < count; ++i) {
    TensorParts& tensor = tensors_[i];
    const std::byte* const record = body.take(kRecordBytes);
    extents[i].bytes = load<std::uint64_t>(record);
    tensor.dtype = load<DType>(record + 8);
    tensor.codec = load<Codec>(record + 10);
    tensor.strides = load<Strides>(record + 11);
    const std::size_t rank = load<std::uint8_t>(record + 12);
    extents[i].rank = rank;
    if (rank > internal::kMaxRank) {
      corrupt(i, "rank " + std::to_string(rank) + "; expected at most 64");
    }
    if (record[13] != std::byte{0}) corrupt(i, "a reserved byte is not zero; expected zero");
    const std::byte* const dims = body.take(rank * sizeof(std::int64_t));
    for (std::size_t d = 0; d < rank; ++d) {
      dims_.push_back(load<std::int64_t>(dims + d * sizeof(std::int64_t)));
    }
    const std::size_t name_bytes = load<std::uint16_t>(record + 14);
    tensor.name = {reinterpret_cast<const char*>(body.take(name_bytes)), name_bytes};
    if (!internal::is_utf8(tensor.name)) corrupt(i, "a name of other bytes; expected UTF-8");
    body.skip_padding(8);
  }
  if (internal::has_twins(tensors_)) corrupt("two tensors of one name; expected unique names");
  body.skip_padding(kUnit);

  std::size_t first_dim = 0;
  std::size_t elements = 0;
  for (std::size_t i = 0; i < count; ++i) {
    TensorParts& tensor = tensors_[i];
    tensor.shape = std::span(dims_).subspan(first_dim, extents[i].rank);
    first_dim += extents[i].rank;
    tensor.data = {body.take(extents[i].bytes), extents[i].bytes};
    body.skip_padding(kUnit);
    const internal::Stored stored = internal::check_stored(tensor);
    if (!stored.problem.empty()) corrupt(i, stored.problem);
    if (internal::has_unit(tensor.dtype)) corrupt(i, "a date; expected a dtype without a unit");
    if (__builtin_add_overflow(elements, stored.bytes, &elements) || elements > options.max_bytes) {
      corrupt(i, "more elements than fit; expected at most " + std::to_string(options.max_bytes) +
                     " bytes of all tensors");
    }
  }
  if (body.left() != 0) {
    corrupt(std::to_string(body.left()) + " bytes after the last tensor; expected none");
  }
  parts_.tensors = tensors_;
}

EntryPtr decode_entry(std::span<const std::byte> bytes, const DecodeOptions& options) {
  return make_entry(EncodedEntry(bytes, options).parts());
}

}  // namespace tensorkey
