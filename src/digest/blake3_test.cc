// Every digest is compared with the official vectors or with blake3_reference.h, for each target
// that this CPU has.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <tensorkey/digest.h>
#include <tensorkey/error.h>

#include "digest/blake3_reference.h"
#include "digest/blake3_stream.h"
#include "digest/cpu.h"

namespace tensorkey {
namespace {

#include "digest/blake3_vectors.inc"

using Bytes = std::vector<std::byte>;

Bytes counting(std::size_t size) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i % 251);
  return bytes;
}

// The same numbers in every run (splitmix64).
class Random {
 public:
  std::uint64_t operator()() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_ = 1;
};

Bytes random_bytes(std::size_t size) {
  Random random;
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, std::min<std::size_t>(8, size - i));
  }
  return bytes;
}

std::string hex(const Digest& digest) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

const Digest& test_key() {
  static const Digest kKey = [] {
    Digest key;
    std::copy(kVectorKey.begin(), kVectorKey.end(), key.begin());
    return key;
  }();
  return kKey;
}

class Blake3 : public testing::TestWithParam<internal::Target> {
 protected:
  void SetUp() override { internal::force_target(GetParam()); }
  void TearDown() override { internal::force_target(std::nullopt); }
};

INSTANTIATE_TEST_SUITE_P(Targets, Blake3, testing::ValuesIn(internal::available_targets()),
                         [](const auto& param) {
                           return std::string(internal::target_name(param.param));
                         });

TEST_P(Blake3, OfficialVectors) {
  for (const Vector& vector : kVectors) {
    const Bytes input = counting(vector.length);
    EXPECT_EQ(hex(blake3(input)), vector.plain) << vector.length;
    EXPECT_EQ(hex(blake3(input, {.key = &test_key()})), vector.keyed) << vector.length;
    EXPECT_EQ(hex(blake3_derive_key(kVectorContext, input)), vector.derived) << vector.length;
  }
}

TEST_P(Blake3, EveryLengthTo4200) {
  const Bytes input = random_bytes(4200 + 3);
  for (std::size_t length = 0; length <= 4200; ++length) {
    const auto data = std::span(input).subspan(length % 4, length);  // any alignment
    const Digest* key = length % 2 == 0 ? nullptr : &test_key();
    ASSERT_EQ(blake3(data, {.key = key}), reference::blake3(data, key)) << length;
  }
}

TEST_P(Blake3, LongerMessages) {
  const Bytes input = random_bytes(std::size_t{3} << 20);
  Random random;
  std::vector<std::size_t> lengths = {524'287, 524'288, 524'289, 1'049'600, input.size()};
  for (int i = 0; i < 30; ++i) lengths.push_back(random() % 200'000);
  for (const std::size_t length : lengths) {
    const auto data = std::span(input).first(length);
    ASSERT_EQ(blake3(data), reference::blake3(data)) << length;
  }
}

TEST_P(Blake3, ThreadsDoNotMatter) {
  const Bytes input = random_bytes((std::size_t{17} << 20) + 12345);
  for (const std::size_t length : {input.size(), (std::size_t{8} << 20) + 1}) {
    const auto data = std::span(input).first(length);
    const Digest expected = blake3(data, {.threads = 1});
    for (const unsigned threads : {2U, 3U, 8U}) {
      EXPECT_EQ(blake3(data, {.threads = threads}), expected) << length << ' ' << threads;
    }
    internal::Blake3Stream stream;
    stream.update(data);
    EXPECT_EQ(stream.finalize(), expected);
  }
  const auto data = std::span(input).first(std::size_t{8} << 20);
  EXPECT_EQ(hex(blake3(data, {.threads = 2})),  // b3sum 1.2.0
            "ea5beee7e82dda2559febd1d12b67eab68a32a2c8a3d0ab271fb4638bcb508fb");
}

struct RowCase {
  std::size_t count;
  std::size_t bytes;
  std::ptrdiff_t stride;
};

void check_rows(std::span<const std::byte> memory, std::size_t first, const RowCase& c,
                const Digest* key) {
  const RowSpan rows{
      .data = memory.data() + first, .count = c.count, .bytes = c.bytes, .stride = c.stride};
  std::vector<Digest> out(c.count);
  blake3_rows(rows, out, {.key = key});
  for (std::size_t i = 0; i < c.count; ++i) {
    const std::span row(rows.data + static_cast<std::ptrdiff_t>(i) * c.stride, c.bytes);
    ASSERT_EQ(out[i], reference::blake3(row, key))
        << c.count << " x " << c.bytes << " stride " << c.stride << " row " << i;
  }
}

TEST_P(Blake3, RowsOfEveryLength) {
  const Bytes memory = random_bytes(172'000);
  for (std::size_t bytes = 0; bytes <= 4200; bytes += bytes < 200 ? 1 : 61) {
    const std::size_t count = 1 + bytes % 35;
    check_rows(memory, bytes % 5, {count, bytes, static_cast<std::ptrdiff_t>(bytes)},
               bytes % 2 == 0 ? nullptr : &test_key());
  }
  for (const std::size_t bytes : {1024UL, 1025UL, 2048UL, 3072UL, 4096UL}) {
    for (std::size_t count = 1; count <= 33; count += 4) {
      check_rows(memory, 0, {count, bytes, static_cast<std::ptrdiff_t>(bytes)}, nullptr);
    }
  }
}

TEST_P(Blake3, RowsOfManyChunks) {
  const Bytes memory = random_bytes(std::size_t{3} << 20);
  for (const std::size_t bytes : {5000UL, 7168UL, 9 * 1024UL, 31 * 1024UL + 1, 63 * 1024UL,
                                  64 * 1024UL, 65 * 1024UL + 7, 600 * 1024UL}) {
    const std::size_t count = std::min<std::size_t>(memory.size() / bytes, 40);
    check_rows(memory, 0, {count, bytes, static_cast<std::ptrdiff_t>(bytes)}, nullptr);
  }
}

TEST_P(Blake3, RowsOfAnyStride) {
  const Bytes memory = random_bytes(200'000);
  const std::size_t middle = memory.size() / 2;
  for (const std::size_t bytes : {0UL, 1UL, 64UL, 100UL, 1024UL, 1500UL, 3000UL}) {
    for (const std::ptrdiff_t stride : {0L, 1L, -1L, 64L, -64L, 999L, -2999L, 4096L}) {
      check_rows(memory, middle, {21, bytes, stride}, &test_key());
    }
  }
  // One row, or none, has no stride to speak of.
  check_rows(memory, 0, {1, 2000, PTRDIFF_MAX}, nullptr);
  check_rows(memory, 0, {1, 64, PTRDIFF_MIN}, nullptr);
  check_rows(memory, 0, {0, 64, 64}, nullptr);
  check_rows({}, 0, {5, 0, 8}, nullptr);
}

TEST_P(Blake3, RowsInThreads) {
  const Bytes memory = random_bytes(std::size_t{17} << 20);
  for (const std::size_t bytes : {1500UL, 70'000UL, 8'500'000UL}) {
    const std::size_t count = memory.size() / bytes;
    const RowSpan rows{.data = memory.data(),
                       .count = count,
                       .bytes = bytes,
                       .stride = static_cast<std::ptrdiff_t>(bytes)};
    std::vector<Digest> expected(count);
    blake3_rows(rows, expected, {.threads = 1});
    for (const unsigned threads : {0U, 3U}) {
      std::vector<Digest> out(count);
      blake3_rows(rows, out, {.threads = threads});
      EXPECT_EQ(out, expected) << bytes << ' ' << threads;
    }
    const auto row = std::span(memory).subspan(count / 2 * bytes, bytes);
    EXPECT_EQ(expected[count / 2], blake3(row, {.threads = 1}));
  }
}

TEST_P(Blake3, PiecesOfAnySize) {
  const Bytes input = random_bytes(700'000);
  Random random;
  for (const std::size_t most : {1UL, 70UL, 1024UL, 5000UL, 16384UL, 40'000UL, 300'000UL}) {
    const std::size_t length = most == 1 ? 35'000 : input.size() - random() % 100'000;
    for (const Digest* key : {static_cast<const Digest*>(nullptr), &test_key()}) {
      internal::Blake3Stream stream(key);
      for (std::size_t at = 0; at < length;) {
        const std::size_t size = std::min(1 + random() % most, length - at);
        stream.update(std::span(input).subspan(at, size));
        stream.update({});
        at += size;
      }
      EXPECT_EQ(stream.finalize(), blake3(std::span(input).first(length), {.key = key})) << most;
    }
  }
  for (std::size_t length = 0; length < 70'000; length += 1024) {
    for (const std::size_t end : {length, length + 1}) {
      internal::Blake3Stream stream;
      stream.update(std::span(input).first(end / 2));
      stream.update(std::span(input).subspan(end / 2, end - end / 2));
      ASSERT_EQ(stream.finalize(), blake3(std::span(input).first(end))) << end;
    }
  }
  EXPECT_EQ(internal::Blake3Stream().finalize(), blake3({}));
}

// Memory whose next byte is not readable.
class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t pages)
      : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))), size_(pages * page_) {
    void* const base =
        mmap(nullptr, size_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return;
    begin_ = static_cast<std::byte*>(base);
    mprotect(begin_ + size_, page_, PROT_NONE);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() {
    if (begin_ != nullptr) munmap(begin_, size_ + page_);
  }
  [[nodiscard]] std::span<std::byte> last(std::size_t bytes) const {
    return {begin_ + size_ - bytes, bytes};
  }
  [[nodiscard]] bool mapped() const { return begin_ != nullptr; }

 private:
  std::size_t page_;
  std::size_t size_;
  std::byte* begin_ = nullptr;
};

TEST_P(Blake3, ReadsNothingBehindTheInput) {
  const GuardedMemory memory(33);
  ASSERT_TRUE(memory.mapped());
  const Bytes content = random_bytes(130'000);
  for (std::size_t length = 0; length <= 70'000; length += length < 2100 ? 1 : 1009) {
    const auto data = memory.last(length);
    std::copy_n(content.begin(), length, data.begin());
    ASSERT_EQ(blake3(data), blake3(std::span(content).first(length))) << length;
  }
  for (std::size_t bytes = 1; bytes <= 3100; bytes += bytes < 130 ? 1 : 97) {
    const std::size_t count = 1 + bytes % 37;
    const auto data = memory.last(count * bytes);
    std::copy_n(content.begin(), data.size(), data.begin());
    std::vector<Digest> out(count);
    blake3_rows({.data = data.data(),
                 .count = count,
                 .bytes = bytes,
                 .stride = static_cast<std::ptrdiff_t>(bytes)},
                out);
    ASSERT_EQ(out.back(),
              reference::blake3(std::span(content).subspan((count - 1) * bytes, bytes)));
  }
}

TEST(Blake3Rows, WantRoomForEachDigest) {
  std::vector<Digest> out(2);
  const Bytes memory(192);
  try {
    blake3_rows({.data = memory.data(), .count = 3, .bytes = 64, .stride = 64}, out);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string_view(error.what()).find("[blake3_rows]"), std::string_view::npos);
  }
}

TEST(Targets, EndWithPortable) {
  const auto targets = internal::available_targets();
  ASSERT_FALSE(targets.empty());
  EXPECT_EQ(targets.back(), internal::Target::kPortable);
  EXPECT_EQ(targets.front(), internal::chosen_target());
}

}  // namespace
}  // namespace tensorkey
