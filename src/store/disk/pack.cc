#include "store/disk/pack.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string_view>
#include <system_error>

#include <tensorkey/error.h>

#include "base/bytes.h"
#include "digest/xxh3.h"
#include "store/entry_layout.h"

namespace tensorkey::internal {

namespace {

constexpr std::string_view kMagic = "TKPK";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kChecksum = 16;  // behind the index
constexpr std::size_t kBuffer = std::size_t{1} << 20;
constexpr std::uint64_t kLeastEntry = rounded_up(kHeadBytes + seal_bytes(false), kUnit);
constexpr std::uint64_t kLeastRecord = kRecordHead + kLeastEntry;

struct PackHead {
  std::uint64_t entries = 0;
  std::uint64_t index = 0;   // offset
  std::uint64_t length = 0;  // of the file
  SegmentMark mark{};
};

void write_head(const PackHead& head, std::span<std::byte, kPackHead> out) noexcept {
  std::ranges::fill(out, std::byte{0});
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  store(out.data() + 4, kVersion);
  store(out.data() + 8, head.entries);
  store(out.data() + 16, head.index);
  store(out.data() + 24, head.length);
  store(out.data() + 32, head.mark);
  store(out.data() + 56, head_checksum(out.first(56)));
}

std::array<std::byte, kChecksum> index_checksum(std::span<const PackRow> index) noexcept {
  const Hash128 hash = xxh3_checksum(std::as_bytes(index));
  std::array<std::byte, kChecksum> bytes;
  store(bytes.data(), hash.low);
  store(bytes.data() + 8, hash.high);
  return bytes;
}

SegmentMark random_mark() {
  std::random_device random;
  std::array<std::uint32_t, 4> words;
  std::ranges::generate(words, std::ref(random));
  return std::bit_cast<SegmentMark>(words);
}

std::string temporary_name(const std::string& path) {
  std::random_device random;
  return path + "." + std::to_string(random()) + std::to_string(random()) + ".tmp";
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

PackWriter::PackWriter(const std::string& path, unsigned mode)
    : path_(path),
      temporary_(temporary_name(path)),
      mark_(random_mark()),
      buffer_(kPackHead),
      file_(
          ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)) {
  if (!file_) fail("cannot be made", errno);
  if (::fchmod(file_.get(), mode) != 0) {
    const int number = errno;
    ::unlink(temporary_.c_str());
    fail("cannot be given its permissions", number);
  }
}

PackWriter::~PackWriter() {
  if (file_) ::unlink(temporary_.c_str());
}

void PackWriter::fail(const std::string& what, int number) const {
  throw write_error("[PackWriter] " + path_ + " " + what, number);
}

void PackWriter::flush() {
  if (!write_at(file_.get(), written_, buffer_)) fail("cannot be written", errno);
  written_ += buffer_.size();
  buffer_.clear();
}

bool PackWriter::add(const Key& key, std::uint64_t scope, std::int64_t stored,
                     std::span<const std::byte> entry) {
  if (entry.size() < kLeastEntry || entry.size() % kUnit != 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "[PackWriter] " + std::to_string(entry.size()) +
                    " bytes are no entry; expected a multiple of 16, at least " +
                    std::to_string(kLeastEntry));
  }
  if (keys_.contains(key)) return false;
  const std::size_t length = kRecordHead + entry.size();
  if (!buffer_.empty() && buffer_.size() + length > kBuffer) flush();
  // Everything that can fail comes before the first change.
  buffer_.reserve(buffer_.size() + length);
  index_.push_back({.key = key, .offset = written_ + buffer_.size(), .length = length});
  try {
    keys_.insert(key);
  } catch (...) {
    index_.pop_back();
    throw;
  }
  std::array<std::byte, kRecordHead> head;
  write_record_head({.key = key,
                     .scope = scope,
                     .stored = stored,
                     .length = entry.size(),
                     .offset = index_.back().offset,
                     .mark = mark_},
                    head);
  buffer_.insert(buffer_.end(), head.begin(), head.end());
  buffer_.insert(buffer_.end(), entry.begin(), entry.end());
  return true;
}

void PackWriter::finish() {
  flush();
  std::ranges::sort(index_, {}, &PackRow::key);
  const auto rows = std::as_bytes(std::span(index_));
  const auto checksum = index_checksum(index_);
  std::array<std::byte, kPackHead> head;
  write_head({.entries = index_.size(),
              .index = written_,
              .length = written_ + rows.size() + kChecksum,
              .mark = mark_},
             head);
  if (!write_at(file_.get(), written_, rows) ||
      !write_at(file_.get(), written_ + rows.size(), checksum) || !write_at(file_.get(), 0, head) ||
      ::fsync(file_.get()) != 0) {
    fail("cannot be written", errno);
  }
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be named", errno);
  file_.reset();
  // So that the name outlives a power failure too; some file systems do not know how.
  const Descriptor folder(::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder) static_cast<void>(::fsync(folder.get()));
}

PackReader::PackReader(const std::string& path)
    : path_(path), file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  const auto refuse = [&](ErrorCode code, const std::string& message) {
    throw Error(code, "[PackReader] " + path_ + " " + message);
  };
  const auto unreadable = [&](int number) {
    refuse(ErrorCode::kUnavailable, "cannot be read: " + std::generic_category().message(number) +
                                        "; expected a pack that cache.pack() wrote");
  };
  const auto corrupt = [&](const std::string& message) {
    refuse(ErrorCode::kCorruption, message + "; expected a pack as it was written");
  };
  struct stat status {};
  if (!file_ || ::fstat(file_.get(), &status) != 0) unreadable(errno);
  if (S_ISDIR(status.st_mode)) unreadable(EISDIR);
  if (!S_ISREG(status.st_mode)) unreadable(EINVAL);
  const auto size = static_cast<std::uint64_t>(status.st_size);
  const auto read = [&](std::uint64_t at, std::span<std::byte> out) {
    if (read_at(file_.get(), at, out)) return;
    if (errno != 0) unreadable(errno);
    corrupt("ends too early");
  };

  std::array<std::byte, kPackHead> head;
  read(0, head);
  if (std::memcmp(head.data(), kMagic.data(), kMagic.size()) != 0) corrupt("is no pack");
  if (load<std::uint64_t>(head.data() + 56) != head_checksum(std::span(head).first(56))) {
    corrupt("has a damaged head");
  }
  if (const auto version = load<std::uint32_t>(head.data() + 4); version != kVersion) {
    refuse(ErrorCode::kUnavailable,
           "has version " + std::to_string(version) + "; expected 1: a newer release reads it");
  }
  const auto entries = load<std::uint64_t>(head.data() + 8);
  const auto end = load<std::uint64_t>(head.data() + 16);  // of the records
  mark_ = load<SegmentMark>(head.data() + 32);
  if (load<std::uint64_t>(head.data() + 24) != size) corrupt("has another length than it declares");
  if (load<std::uint64_t>(head.data() + 48) != 0 || end < kPackHead || end > size ||
      size - end < kChecksum || (size - end - kChecksum) / sizeof(PackRow) != entries ||
      (size - end - kChecksum) % sizeof(PackRow) != 0) {
    corrupt("has a head that contradicts itself");
  }

  // In pieces, each checked before there is memory for the next: a file that is mostly a hole
  // declares any number of rows.
  while (index_.size() < entries) {
    const std::size_t first = index_.size();
    const std::uint64_t most = std::max(kBuffer / sizeof(PackRow), first);
    index_.resize(first + std::min<std::uint64_t>(entries - first, most));
    read(end + first * sizeof(PackRow), std::as_writable_bytes(std::span(index_).subspan(first)));
    for (std::size_t i = first; i < index_.size(); ++i) {
      const PackRow& row = index_[i];
      if (row.offset < kPackHead || row.offset > end || row.offset % kUnit != 0 ||
          row.length < kLeastRecord || row.length > end - row.offset || row.length % kUnit != 0) {
        corrupt("has a row for a record that is not in it");
      }
      if (i > 0 && index_[i - 1].key >= row.key) corrupt("has an index that is not sorted");
    }
  }
  std::array<std::byte, kChecksum> checksum;
  read(size - kChecksum, checksum);
  if (checksum != index_checksum(index_)) corrupt("has a damaged index");
}

std::optional<Place> PackReader::find(const Key& key) const noexcept {
  const auto row = std::ranges::lower_bound(index_, key, {}, &PackRow::key);
  if (row == index_.end() || row->key != key) return std::nullopt;
  return Place{.segment = 1, .offset = row->offset, .length = row->length};
}

bool PackReader::read(const Key& key, const Place& place,
                      std::span<std::byte> record) const noexcept {
  return record.size() == place.length && read_at(file_.get(), place.offset, record) &&
         check_record(record, key, place, mark_).has_value();
}

bool PackReader::read(const Key& key, std::vector<std::byte>& record) const {
  const std::optional<Place> place = find(key);
  if (!place) return false;
  record.resize(place->length);
  return read(key, *place, record);
}

}  // namespace tensorkey::internal
