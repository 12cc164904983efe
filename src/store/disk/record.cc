// The heads of segments and records, and the search for records in a file that nobody vouches for.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "base/bytes.h"
#include "digest/xxh3.h"
#include "store/disk/segment.h"
#include "store/entry_layout.h"

namespace tensorkey::internal {

namespace {

constexpr std::string_view kSegmentMagic = "TKSG";
constexpr std::string_view kRecordMagic = "TKRD";
constexpr std::uint8_t kVersion = 1;
constexpr std::uint64_t kLeastEntry = rounded_up(kHeadBytes + seal_bytes(false), kUnit);
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 36;  // as far as a Place can tell

bool has_magic(const std::byte* bytes, std::string_view magic) noexcept {
  return std::memcmp(bytes, magic.data(), magic.size()) == 0;
}

bool all_zero(std::span<const std::byte> bytes) noexcept {
  return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

// What all heads begin with: magic, version, three zeros.
void write_beginning(std::string_view magic, std::byte* out) noexcept {
  std::memcpy(out, magic.data(), magic.size());
  store(out + 4, std::uint32_t{kVersion});
}

bool is_head(std::span<const std::byte> bytes, std::string_view magic) noexcept {
  const std::size_t before = bytes.size() - 8;
  return has_magic(bytes.data(), magic) && load<std::uint32_t>(bytes.data() + 4) == kVersion &&
         load<std::uint64_t>(bytes.data() + before) == head_checksum(bytes.first(before));
}

constexpr std::uint64_t kPage = 4096;  // what cannot be read is left out by pages

// A part of a file in memory, which is moved on. Bytes that are asked for again are not read again.
class Window {
 public:
  Window(int descriptor, std::uint64_t size) : descriptor_(descriptor), size_(size) {}

  // `wanted` bytes from `at` on; nothing if they cannot be read. REQUIRES: they are within size.
  std::optional<std::span<const std::byte>> at(std::uint64_t at, std::uint64_t wanted) {
    if (at < start_ || at + wanted > start_ + filled_) {
      const std::uint64_t page_end = std::min(rounded_up(at + wanted, kPage), size_);
      if (!fill(at, std::max(wanted, std::min(kBlock, size_ - at))) && !fill(at, page_end - at)) {
        if (errno != 0) refused_ = errno;  // else the file has been cut
        return std::nullopt;
      }
    }
    return std::span<const std::byte>(buffer_).subspan(at - start_, wanted);
  }
  [[nodiscard]] int refused() const noexcept { return refused_; }

 private:
  static constexpr std::uint64_t kBlock = std::uint64_t{1} << 20;

  bool fill(std::uint64_t at, std::uint64_t bytes) {
    std::uint64_t kept = 0;
    if (at >= start_ && at < start_ + filled_) {
      kept = std::min(start_ + filled_ - at, bytes);
      std::memmove(buffer_.data(), buffer_.data() + (at - start_), kept);
    }
    start_ = at;
    filled_ = kept;
    // It grows with what could be read, not on the word of a head.
    while (filled_ < bytes) {
      const std::uint64_t more = std::min(bytes - filled_, std::max(kBlock, filled_));
      if (buffer_.size() < filled_ + more) buffer_.resize(filled_ + more);
      if (!read_at(descriptor_, at + filled_, std::span(buffer_).subspan(filled_, more))) {
        return false;
      }
      filled_ += more;
    }
    return true;
  }

  const int descriptor_;
  const std::uint64_t size_;
  std::vector<std::byte> buffer_;
  std::uint64_t start_ = 0;
  std::uint64_t filled_ = 0;
  int refused_ = 0;
};

// Whether the first bytes of an entry are those of an entry of this length under this key.
bool is_entry_head(std::span<const std::byte> bytes, const RecordHead& head) noexcept {
  const auto flags = load<std::uint8_t>(bytes.data() + 5);
  const auto seconds = load<double>(bytes.data() + 16);
  return has_magic(bytes.data(), kEntryMagic) &&
         load<std::uint8_t>(bytes.data() + 4) == kEntryVersion &&
         (flags & ~(kFlagInput | kFlagMac)) == 0 &&
         load<std::uint64_t>(bytes.data() + 8) == head.length && std::isfinite(seconds) &&
         !std::signbit(seconds) &&
         std::memcmp(bytes.data() + 24, head.key.bytes().data(), Key::kSize) == 0;
}

// The cost of an entry; nothing for one that is not whole, as far as can be told.
std::optional<double> cost_of(std::span<const std::byte> entry, const RecordHead& head) {
  const bool with_secret = (load<std::uint8_t>(entry.data() + 5) & kFlagMac) != 0;
  if (with_secret) {
    // A torn write leaves the zeros of the preallocated file where the MAC should be.
    const std::size_t seal = seal_bytes(true);
    if (entry.size() < kHeadBytes + seal || all_zero(entry.last(seal))) return std::nullopt;
    return load<double>(entry.data() + 16);
  }
  try {
    return EncodedEntry(entry, {.key = head.key}).parts().seconds;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

std::uint64_t head_checksum(std::span<const std::byte> before) noexcept {
  return xxh3_checksum(before).low;
}

void write_segment_head(std::uint32_t id, const SegmentMark& mark,
                        std::span<std::byte, kSegmentHead> out) noexcept {
  std::ranges::fill(out, std::byte{0});
  write_beginning(kSegmentMagic, out.data());
  store(out.data() + 8, std::uint64_t{id});
  store(out.data() + 16, mark);
  store(out.data() + 56, head_checksum(out.first(56)));
}

std::optional<SegmentMark> read_segment_head(std::span<const std::byte, kSegmentHead> bytes,
                                             std::uint32_t id) noexcept {
  if (!is_head(bytes, kSegmentMagic) || load<std::uint64_t>(bytes.data() + 8) != id ||
      !all_zero(bytes.subspan(32, 24))) {
    return std::nullopt;
  }
  return load<SegmentMark>(bytes.data() + 16);
}

void write_record_head(const RecordHead& head, std::span<std::byte, kRecordHead> out) noexcept {
  write_beginning(kRecordMagic, out.data());
  store(out.data() + 8, head.offset);
  store(out.data() + 16, head.mark);
  store(out.data() + 32, head.key.bytes());
  store(out.data() + 64, head.length);
  store(out.data() + 72, head.scope);
  store(out.data() + 80, head.stored);
  store(out.data() + 88, head_checksum(out.first(88)));
}

std::optional<RecordHead> read_record_head(std::span<const std::byte, kRecordHead> bytes) noexcept {
  if (!is_head(bytes, kRecordMagic)) return std::nullopt;
  return RecordHead{.key = Key(load<Digest>(bytes.data() + 32)),
                    .scope = load<std::uint64_t>(bytes.data() + 72),
                    .stored = load<std::int64_t>(bytes.data() + 80),
                    .length = load<std::uint64_t>(bytes.data() + 64),
                    .offset = load<std::uint64_t>(bytes.data() + 8),
                    .mark = load<SegmentMark>(bytes.data() + 16)};
}

std::optional<RecordHead> check_record(std::span<const std::byte> record, const Key& key,
                                       const Place& place, const SegmentMark& mark) noexcept {
  // What is too short for an entry, somebody made up; a pack would refuse to take it over.
  if (record.size() < kRecordHead + kLeastEntry || record.size() % kUnit != 0 ||
      record.size() != place.length) {
    return std::nullopt;
  }
  const std::optional<RecordHead> head = read_record_head(record.first<kRecordHead>());
  if (!head || head->key != key || head->offset != place.offset || head->mark != mark ||
      head->length != record.size() - kRecordHead) {
    return std::nullopt;
  }
  return head;
}

bool void_record(const Directory& directory, const Place& place) noexcept {
  const Descriptor file = directory.open(segment_name(place.segment), O_RDWR);
  if (!file) return errno == ENOENT;
  std::array<std::byte, kRecordHead> bytes;
  if (!read_at(file.get(), place.offset, bytes)) return errno == 0;  // behind the end is none
  const std::optional<RecordHead> head = read_record_head(bytes);
  if (!head || head->offset != place.offset) return true;
  return write_at(file.get(), place.offset, std::array<std::byte, kRecordMagic.size()>{});
}

int scan_records(const SegmentFiles::File& file,
                 const std::function<void(const RecordHead&, double)>& take) {
  struct stat status {};
  if (::fstat(file.descriptor.get(), &status) != 0) return errno;
  if (status.st_size < 0) return 0;
  const std::uint64_t size = std::min(static_cast<std::uint64_t>(status.st_size), kMostBytes);
  constexpr std::uint64_t kLeast = kRecordHead + kLeastEntry;
  Window window(file.descriptor.get(), size);
  // Behind a right head with a bad entry the search goes on within the entry, as its length may be
  // of a write that never was complete. Heads that somebody nested into each other would make that
  // quadratic: past this many bytes their lengths are believed.
  std::uint64_t in_vain = 2 * size;
  for (std::uint64_t at = kSegmentHead; at < size && size - at >= kLeast;) {
    const auto bytes = window.at(at, kLeast);
    if (!bytes) {
      at = (at / kPage + 1) * kPage;
      continue;
    }
    std::optional<RecordHead> head;
    if (has_magic(bytes->data(), kRecordMagic)) {
      head = read_record_head(bytes->first<kRecordHead>());
    }
    if (!head || head->offset != at || head->mark != file.mark || head->length % kUnit != 0 ||
        head->length < kLeastEntry || head->length > size - at - kRecordHead ||
        !is_entry_head(bytes->subspan(kRecordHead), *head)) {
      at += kUnit;
      continue;
    }
    const auto entry = window.at(at + kRecordHead, head->length);
    const std::optional<double> cost = entry ? cost_of(*entry, *head) : std::nullopt;
    if (cost) {
      take(*head, *cost);
    } else if (in_vain >= head->length) {
      in_vain -= head->length;
      at += kUnit;
      continue;
    }
    at += kRecordHead + head->length;
  }
  return window.refused();
}

}  // namespace tensorkey::internal
