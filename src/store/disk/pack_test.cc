#include "store/disk/pack.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <thread>

#include "digest/xxh3.h"
#include "store/cache_test_entries.h"
#include "store/entry_golden.h"

namespace tensorkey::internal {
namespace {

using test::entry_of;
using test::key_of;

Bytes encoded(std::uint64_t id, std::size_t bytes) { return encode_entry(*entry_of(id, bytes)); }

class PackTest : public testing::Test {
 protected:
  PackTest() : root_(make_root()), path_(root_ + "/some.tkpack") {}
  ~PackTest() override {
    ::umount2(small_.c_str(), MNT_DETACH);  // if it was mounted
    std::filesystem::remove_all(root_);
  }

  static std::string make_root() {
    std::string path = testing::TempDir() + "/pack_XXXXXX";
    if (::mkdtemp(path.data()) == nullptr) throw std::bad_alloc();
    return path;
  }

  // Entries 0 to count - 1, with 10 * id bytes at most 3,000.
  void write(std::uint64_t count) {
    PackWriter writer(path_);
    for (std::uint64_t id = 0; id < count; ++id) {
      ASSERT_TRUE(writer.add(key_of(id), 7, 1'700'000'000, encoded(id, size_of(id))));
    }
    writer.finish();
  }

  static std::size_t size_of(std::uint64_t id) { return 10 * id % 3000; }

  [[nodiscard]] Bytes bytes() const {
    std::ifstream file(path_, std::ios::binary);
    const std::vector<char> text{std::istreambuf_iterator<char>(file), {}};
    const auto all = std::as_bytes(std::span(text));
    return {all.begin(), all.end()};
  }

  void overwrite(std::span<const std::byte> bytes) const {
    std::ofstream file(path_, std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }

  [[nodiscard]] std::size_t files() const {
    const std::filesystem::directory_iterator all(root_);
    return static_cast<std::size_t>(std::distance(begin(all), end(all)));
  }

  // The code of the refusal; nothing if the pack is taken.
  [[nodiscard]] std::optional<ErrorCode> refusal() const {
    try {
      const PackReader reader(path_);
      return std::nullopt;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("expected"), std::string::npos) << error.what();
      return error.code();
    }
  }

  // Reads every entry; what is handed out is right, or not handed out.
  [[nodiscard]] std::size_t readable(std::uint64_t count) const {
    std::size_t read = 0;
    try {
      const PackReader reader(path_);
      Bytes record;
      for (std::uint64_t id = 0; id < count; ++id) {
        if (!reader.read(key_of(id), record)) continue;
        try {
          const EntryPtr entry =
              decode_entry(std::span(record).subspan(kRecordHead), {.key = key_of(id)});
          EXPECT_EQ(entry->tensor(0).data.size(), size_of(id));
          test::expect_entry(entry, id);
          ++read;
        } catch (const Error&) {
        }
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruption) << error.what();
    }
    return read;
  }

  const std::string root_;
  const std::string path_;
  const std::string small_ = root_ + "/small";
};

template <class T>
void put(Bytes& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

template <class T>
T get(const Bytes& bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// Makes the checksums of head and index right, where there is room for them.
void seal(Bytes& pack) {
  put(pack, 56, head_checksum(std::span(pack).first(56)));
  const auto index = get<std::uint64_t>(pack, 16);
  if (index > pack.size() - 16) return;
  const Hash128 hash = xxh3_checksum(std::span(pack).subspan(index, pack.size() - 16 - index));
  put(pack, pack.size() - 16, hash.low);
  put(pack, pack.size() - 8, hash.high);
}

TEST_F(PackTest, TenThousandEntriesComeBack) {
  constexpr std::uint64_t kCount = 10'000;
  write(kCount);
  EXPECT_EQ(readable(kCount), kCount);
  const PackReader reader(path_);
  EXPECT_EQ(reader.entries(), kCount);
  EXPECT_TRUE(std::ranges::is_sorted(reader.rows(), {}, &PackRow::key));
  Bytes record;
  EXPECT_FALSE(reader.read(key_of(kCount), record));
  EXPECT_FALSE(reader.find(Key{}));
  Digest last;
  last.fill(0xff);
  EXPECT_FALSE(reader.find(Key(last)));
  const std::optional<Place> place = reader.find(key_of(1234));
  ASSERT_TRUE(place);
  EXPECT_EQ(place->segment, 1U);
  record.resize(place->length);
  EXPECT_TRUE(reader.read(key_of(1234), *place, record));
  EXPECT_FALSE(reader.read(key_of(1235), *place, record));
  const auto head = read_record_head(std::span(record).first<kRecordHead>());
  ASSERT_TRUE(head);
  EXPECT_EQ(head->scope, 7U);
  EXPECT_EQ(head->stored, 1'700'000'000);
  record.pop_back();
  EXPECT_FALSE(reader.read(key_of(1234), *place, record));
}

TEST_F(PackTest, MayBeEmptyAndHoldLargeEntries) {
  write(0);
  EXPECT_EQ(std::filesystem::file_size(path_), kPackHead + 16);
  EXPECT_EQ(PackReader(path_).entries(), 0U);
  EXPECT_FALSE(PackReader(path_).find(key_of(1)));
  PackWriter writer(path_);
  writer.add(key_of(1), 0, 0, encoded(1, 10));
  writer.add(key_of(2), 0, 0, encoded(2, 3 * test::kMiB));
  writer.add(key_of(3), 0, 0, encoded(3, 10));
  writer.finish();
  const PackReader reader(path_);
  for (const std::uint64_t id : {1U, 2U, 3U}) {
    Bytes record;
    ASSERT_TRUE(reader.read(key_of(id), record));
    test::expect_entry(decode_entry(std::span(record).subspan(kRecordHead)), id);
  }
}

TEST_F(PackTest, KeepsTheFirstOfTwoEntriesOfOneKey) {
  PackWriter writer(path_);
  EXPECT_TRUE(writer.add(key_of(1), 1, 0, encoded(1, 10)));
  EXPECT_FALSE(writer.add(key_of(1), 2, 0, encoded(1, 20)));
  EXPECT_EQ(writer.entries(), 1U);
  writer.finish();
  Bytes record;
  ASSERT_TRUE(PackReader(path_).read(key_of(1), record));
  EXPECT_EQ(read_record_head(std::span(record).first<kRecordHead>())->scope, 1U);
  EXPECT_EQ(std::filesystem::file_size(path_), kPackHead + record.size() + 48 + 16);
}

TEST_F(PackTest, HasItsNameOnlyWhenItIsWhole) {
  write(3);
  const Bytes old = bytes();
  {
    PackWriter writer(path_, 0644);
    writer.add(key_of(1), 0, 0, encoded(1, 10));
    EXPECT_EQ(files(), 2U);
    EXPECT_THROW(writer.add(key_of(2), 0, 0, Bytes(64)), Error);
    EXPECT_THROW(writer.add(key_of(2), 0, 0, Bytes(100)), Error);
    EXPECT_EQ(writer.entries(), 1U);
  }
  EXPECT_EQ(files(), 1U);
  EXPECT_EQ(bytes(), old);
  const PackReader reader(path_);
  {
    PackWriter writer(path_, 0644);
    writer.add(key_of(9), 0, 0, encoded(9, 90));
    writer.finish();
  }
  EXPECT_EQ(files(), 1U);
  struct stat status {};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0644U);
  EXPECT_EQ(readable(10), 1U);
  Bytes record;
  EXPECT_TRUE(reader.read(key_of(1), record));  // who has it open reads the old one
}

TEST_F(PackTest, SaysWhyItCannotBeWritten) {
  EXPECT_THROW(PackWriter(root_ + "/none/some.tkpack"), Error);
  {
    ASSERT_TRUE(std::filesystem::create_directory(path_));
    PackWriter writer(path_);
    EXPECT_THROW(writer.finish(), Error);
  }
  EXPECT_EQ(files(), 1U);
  std::filesystem::create_directory(small_);
  if (::mount("none", small_.c_str(), "tmpfs", 0, "size=128k") != 0) {
    GTEST_SKIP() << "a tmpfs cannot be mounted";
  }
  try {
    PackWriter writer(small_ + "/some.tkpack");
    for (std::uint64_t id = 0; id < 1000; ++id) writer.add(key_of(id), 0, 0, encoded(id, 3000));
    writer.finish();
    ADD_FAILURE() << "it fits";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kExhausted);
  }
  EXPECT_TRUE(std::filesystem::is_empty(small_));
}

TEST_F(PackTest, WhatIsNoPackIsRefused) {
  EXPECT_EQ(refusal(), ErrorCode::kUnavailable);
  std::filesystem::create_directory(path_);
  EXPECT_EQ(refusal(), ErrorCode::kUnavailable);
  std::filesystem::remove(path_);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(refusal(), ErrorCode::kUnavailable);
  std::filesystem::remove(path_);
  for (const std::size_t size : {0U, 1U, 63U, 64U, 80U, 5000U}) {
    overwrite(Bytes(size));
    EXPECT_EQ(refusal(), ErrorCode::kCorruption);
  }
  std::filesystem::remove(path_);
  write(5);
  EXPECT_EQ(refusal(), std::nullopt);
  Bytes pack = bytes();
  pack[4] = std::byte{2};
  overwrite(pack);
  EXPECT_EQ(refusal(), ErrorCode::kCorruption);
  seal(pack);
  overwrite(pack);
  EXPECT_EQ(refusal(), ErrorCode::kUnavailable);
}

TEST_F(PackTest, EveryFlipInHeadAndIndexIsRefused) {
  write(4);
  const Bytes good = bytes();
  const auto index = get<std::uint64_t>(good, 16);
  for (std::size_t at = 0; at < good.size(); ++at) {
    if (at >= kPackHead && at < index) continue;
    for (int bit = 0; bit < 8; ++bit) {
      Bytes bad = good;
      bad[at] ^= std::byte{1} << bit;
      overwrite(bad);
      ASSERT_EQ(refusal(), ErrorCode::kCorruption) << at;
    }
  }
}

TEST_F(PackTest, HostileSizesAreRefused) {
  write(4);
  const Bytes good = bytes();
  const auto index = get<std::uint64_t>(good, 16);
  std::vector<std::uint64_t> values{0, 1, 15, 16, 48, 64, 0x7fff'ffff'ffff'fff0, 1ULL << 63};
  for (const std::uint64_t near : {std::uint64_t{0}, index, std::uint64_t{good.size()}}) {
    for (const std::uint64_t by : {1U, 16U, 48U, 64U}) {
      values.insert(values.end(), {near + by, near - by});
    }
  }
  for (const std::size_t field : {8U, 16U, 24U, 48U}) {
    for (const std::uint64_t value : values) {
      Bytes bad = good;
      if (get<std::uint64_t>(bad, field) == value) continue;
      put(bad, field, value);
      seal(bad);
      overwrite(bad);
      ASSERT_EQ(refusal(), ErrorCode::kCorruption) << field << ' ' << value;
    }
  }
  for (const std::size_t field : {32U, 40U}) {  // of the second row
    const std::size_t at = index + 48 + field;
    for (const std::uint64_t value : values) {
      Bytes bad = good;
      if (get<std::uint64_t>(bad, at) == value) continue;
      put(bad, at, value);
      seal(bad);
      overwrite(bad);
      // A place within the records may be taken, but nothing is read from it.
      const PackRow row = get<PackRow>(bad, index + 48);
      Bytes record;
      if (!refusal()) {
        ASSERT_FALSE(PackReader(path_).read(row.key, record)) << field << ' ' << value;
      }
    }
  }
  Bytes bad = good;  // rows in another order, and one of them twice
  std::swap_ranges(&bad[index], &bad[index + 48], &bad[index + 48]);
  seal(bad);
  overwrite(bad);
  EXPECT_EQ(refusal(), ErrorCode::kCorruption);
  std::copy_n(&bad[index], 48, &bad[index + 48]);
  seal(bad);
  overwrite(bad);
  EXPECT_EQ(refusal(), ErrorCode::kCorruption);
}

TEST_F(PackTest, AHoleOfAnySizeIsRefusedAtOnce) {
  write(4);
  Bytes pack = bytes();
  constexpr std::uint64_t kEntries = std::uint64_t{1} << 36;
  put(pack, 8, kEntries);
  put(pack, 16, std::uint64_t{4096});
  put(pack, 24, 4096 + 48 * kEntries + 16);
  put(pack, 56, head_checksum(std::span(pack).first(56)));
  overwrite(pack);
  if (::truncate(path_.c_str(), static_cast<off_t>(4096 + 48 * kEntries + 16)) != 0) {
    GTEST_SKIP() << "the file system has no files of that length";
  }
  EXPECT_EQ(refusal(), ErrorCode::kCorruption);
}

TEST_F(PackTest, RandomDamageIsNeverAWrongValue) {
  constexpr std::uint64_t kCount = 40;
  write(kCount);
  const Bytes good = bytes();
  std::mt19937_64 random(20261123);
  const auto index = get<std::uint64_t>(good, 16);
  for (int round = 0; round < 2000; ++round) {
    Bytes bad = good;
    for (std::uint64_t n = 1 + random() % 4; n > 0; --n) {
      // Mostly within the records: the rest is refused as a whole.
      const std::size_t at = random() % (n > 1 ? index : good.size());
      bad[at] ^= std::byte{1} << random() % 8;
    }
    if (round % 2 == 0) seal(bad);
    overwrite(bad);
    ASSERT_LT(readable(kCount), kCount);
  }
  for (int round = 0; round < 300; ++round) {
    overwrite(std::span(good).first(random() % good.size()));
    ASSERT_EQ(refusal(), ErrorCode::kCorruption);
  }
  // Two records that changed places.
  Bytes bad = good;
  const PackRow first = get<PackRow>(bad, index);
  const PackRow second = get<PackRow>(bad, index + 48);
  put(bad, index, PackRow{first.key, second.offset, second.length});
  put(bad, index + 48, PackRow{second.key, first.offset, first.length});
  seal(bad);
  overwrite(bad);
  EXPECT_EQ(readable(kCount), kCount - 2);
}

TEST_F(PackTest, WhatIsCutWhileItIsOpenIsAMiss) {
  write(40);
  const PackReader reader(path_);
  std::filesystem::resize_file(path_, 1000);
  std::size_t left = 0;
  Bytes record;
  for (std::uint64_t id = 0; id < 40; ++id) left += reader.read(key_of(id), record) ? 1U : 0U;
  EXPECT_GT(left, 0U);
  EXPECT_LT(left, 10U);
}

TEST_F(PackTest, IsForAllThreads) {
  write(500);
  const PackReader reader(path_);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      Bytes record;
      for (std::uint64_t n = 0; n < 2000; ++n) {
        const std::uint64_t id = (n * 7 + seed) % 500;
        if (!reader.read(key_of(id), record) ||
            decode_entry(std::span(record).subspan(kRecordHead))->key() != key_of(id)) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace tensorkey::internal
