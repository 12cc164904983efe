#include "store/disk/stored_entry.h"

#include <tensorkey/error.h>

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <ctime>
#include <optional>
#include <vector>

#include "digest/xxh3.h"
#include "store/entry_layout.h"

namespace tensorkey::internal {
namespace {

// A larger record's memory is given back at the next smaller one.
constexpr std::size_t kKeptScratch = std::size_t{4} << 20;

}  // namespace

std::span<std::byte> scratch(std::size_t bytes) {
  static thread_local std::vector<std::byte> buffer;
  if (buffer.size() > kKeptScratch && bytes <= kKeptScratch) {
    buffer.resize(kKeptScratch);
    buffer.shrink_to_fit();
  }
  if (buffer.size() < bytes) buffer.resize(bytes);
  return std::span(buffer).first(bytes);
}

bool decode_stored(const Key& key, std::span<const std::byte> encoded, const Secret& secret,
                   const std::function<void(const EntryParts&)>& take) {
  std::optional<EncodedEntry> entry;
  try {
    entry.emplace(encoded, DecodeOptions{.secret = secret, .key = key});
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCorruption) throw;
    return false;
  }
  take(entry->parts());
  return true;
}

bool is_keyed(std::span<const std::byte> encoded) noexcept {
  return encoded.size() > kHeadBytes &&
         (std::to_integer<std::uint8_t>(encoded[5]) & kFlagMac) != 0;
}

bool copy_values(const EntryParts& parts, std::span<std::byte> out) noexcept {
  if (parts.tensors.empty()) return false;
  const TensorParts& tensor = parts.tensors[0];
  if (tensor.codec != Codec::kRaw || tensor.data.size() != out.size()) return false;
  if (!out.empty()) std::memcpy(out.data(), tensor.data.data(), out.size());
  return true;
}

std::int64_t whole_ttl(const CacheOptions& options) noexcept {
  return std::llround(std::ceil(std::min(options.ttl, 1e12)));
}

bool is_expired(const RecordHead& head, std::int64_t ttl) noexcept {
  if (ttl == 0) return false;
  const std::int64_t now = std::time(nullptr);
  return head.stored > now || head.stored <= now - ttl;
}

bool read_values(const SegmentFiles::File& file, const Key& key, const Place& place,
                 std::span<std::byte> out) noexcept {
  constexpr std::size_t kMostBefore = 1024;
  constexpr std::size_t kSeal = seal_bytes(false);
  const std::size_t padding = rounded_up(out.size(), kUnit) - out.size();
  const std::size_t around = kRecordHead + kHeadBytes + kRecordBytes + padding + kSeal;
  if (place.length < around || place.length - around < out.size()) return false;
  const std::size_t before = place.length - out.size() - padding - kSeal;
  if (before > kMostBefore) return false;
  std::array<std::byte, kMostBefore> memory;
  std::array<std::byte, kUnit + kSeal> behind;
  const std::span head = std::span(memory).first(before);
  const std::span tail = std::span(behind).first(padding + kSeal);
  const std::array<iovec, 3> parts{iovec{head.data(), head.size()}, iovec{out.data(), out.size()},
                                   iovec{tail.data(), tail.size()}};
  const ssize_t got = ::preadv(file.descriptor.get(), parts.data(), static_cast<int>(parts.size()),
                               static_cast<off_t>(place.offset));
  if (got < 0 || static_cast<std::uint64_t>(got) != place.length) return false;
  const std::optional<RecordHead> record = read_record_head(head.first<kRecordHead>());
  if (!record || record->key != key || record->offset != place.offset ||
      record->length != place.length - kRecordHead || record->mark != file.mark) {
    return false;
  }
  const std::span entry = head.subspan(kRecordHead);
  Xxh3Stream sum(Xxh3Stream::kChecksum);
  sum.update(entry);
  sum.update(out);
  sum.update(tail.first(padding));
  const Hash128 hash = sum.finalize();
  if (std::memcmp(tail.data() + padding, &hash, sizeof hash) != 0) return false;

  // They are the bytes that were written, but were they this entry, in this form?
  const auto field = [&](std::size_t at, auto value) {
    return std::memcmp(entry.data() + at, &value, sizeof value) == 0;
  };
  return std::memcmp(entry.data(), kEntryMagic.data(), kEntryMagic.size()) == 0 &&
         field(4, kEntryVersion) && field(5, std::uint8_t{0}) && field(6, std::uint16_t{1}) &&
         field(8, record->length) && field(24, key.bytes()) &&
         field(kHeadBytes, std::uint64_t{out.size()}) && field(kHeadBytes + 10, Codec::kRaw);
}

}  // namespace tensorkey::internal
