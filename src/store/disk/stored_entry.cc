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
                   FunctionRef<void(const EntryParts&)> take) {
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
  return encoded.size() > kHeadBytes && (std::to_integer<std::uint8_t>(encoded[5]) & kFlagMac) != 0;
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
                 std::span<std::byte> out, double& cost) noexcept {
  constexpr std::size_t kMostBefore = 1024;
  constexpr std::size_t kSeal = seal_bytes(false);
  // Below this a read in three parts costs more than a copy (bench/disk, November 2026).
  constexpr std::size_t kCopied = std::size_t{16} << 10;
  const std::size_t padding = rounded_up(out.size(), kUnit) - out.size();
  const std::size_t around = kRecordHead + kHeadBytes + kRecordBytes + padding + kSeal;
  if (place.length < around || place.length - around < out.size()) return false;
  const std::size_t before = place.length - out.size() - padding - kSeal;
  if (before > kMostBefore) return false;

  std::array<std::byte, kMostBefore + kUnit + kSeal> around_values;
  std::array<std::byte, kCopied> whole;
  const bool copied = place.length <= kCopied;
  std::span<std::byte> head = std::span(around_values).first(before);
  std::span<std::byte> tail = std::span(around_values).subspan(before, padding + kSeal);
  std::span<const std::byte> values = out;
  if (copied) {
    const std::span record = std::span(whole).first(place.length);
    if (!read_at(file.descriptor.get(), place.offset, record)) return false;
    head = record.first(before);
    tail = record.last(padding + kSeal);
    values = record.subspan(before, out.size());
  } else {
    const std::array<iovec, 3> parts{iovec{head.data(), head.size()}, iovec{out.data(), out.size()},
                                     iovec{tail.data(), tail.size()}};
    const ssize_t got = ::preadv(file.descriptor.get(), parts.data(),
                                 static_cast<int>(parts.size()), static_cast<off_t>(place.offset));
    if (got < 0 || static_cast<std::uint64_t>(got) != place.length) return false;
  }
  const std::optional<RecordHead> record = read_record_head(head.first<kRecordHead>());
  if (!record || record->key != key || record->offset != place.offset ||
      record->length != place.length - kRecordHead || record->mark != file.mark) {
    return false;
  }
  const std::span entry = head.subspan(kRecordHead);
  Hash128 hash;
  if (copied) {
    hash = xxh3_checksum({entry.data(), place.length - kRecordHead - kSeal});
  } else {
    Xxh3Stream sum(Xxh3Stream::kChecksum);
    sum.update(entry);
    sum.update(values);
    sum.update(tail.first(padding));
    hash = sum.finalize();
  }
  if (std::memcmp(tail.data() + padding, &hash, sizeof hash) != 0) return false;

  // They are the bytes that were written, but were they this entry, in this form?
  const auto field = [&](std::size_t at, auto value) {
    return std::memcmp(entry.data() + at, &value, sizeof value) == 0;
  };
  std::memcpy(&cost, entry.data() + 16, sizeof cost);
  const bool right = std::isfinite(cost) && cost >= 0 &&
                     std::memcmp(entry.data(), kEntryMagic.data(), kEntryMagic.size()) == 0 &&
                     field(4, kEntryVersion) && field(5, std::uint8_t{0}) &&
                     field(6, std::uint16_t{1}) && field(8, record->length) &&
                     field(24, key.bytes()) && field(kHeadBytes, std::uint64_t{out.size()}) &&
                     field(kHeadBytes + 10, Codec::kRaw);
  if (right && copied && !out.empty()) std::memcpy(out.data(), values.data(), out.size());
  return right;
}

}  // namespace tensorkey::internal
