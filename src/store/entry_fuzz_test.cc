// Entries damaged in every way that a seeded random generator thinks of: 300,000 that the seal must
// catch, and 200,000 whose seal the attacker made anew, where what is accepted must be a whole
// entry.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include <tensorkey/codec.h>
#include <tensorkey/entry_format.h>
#include <tensorkey/error.h>

#include "store/entry_golden.h"
#include "store/entry_layout.h"

namespace {
std::size_t largest_allocation = 0;
}

// The test's own, to see what is allocated on the word of a damaged entry. Not inlined, or GCC
// takes malloc and operator delete for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  largest_allocation = std::max(largest_allocation, bytes);
  void* const memory = std::malloc(std::max<std::size_t>(bytes, 1));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace tensorkey {
namespace {

using internal::Bytes;
using internal::GoldenEntry;

class Mutator {
 public:
  explicit Mutator(const std::vector<GoldenEntry>& corpus) : corpus_(corpus) {}

  std::size_t below(std::size_t bound) { return bound == 0 ? 0 : random_() % bound; }

  // Changes `bytes` in one to three ways.
  void mutate(Bytes& bytes) {
    for (std::size_t n = 1 + below(3); n > 0; --n) mutate_once(bytes);
  }

 private:
  void mutate_once(Bytes& bytes) {
    if (bytes.empty()) return;
    switch (below(9)) {
      case 0: bytes[below(bytes.size())] ^= static_cast<std::byte>(1U << below(8)); return;
      case 1: bytes[below(bytes.size())] = static_cast<std::byte>(random_()); return;
      case 2: bytes.resize(below(bytes.size())); return;
      case 3: bytes.resize(bytes.size() + 1 + below(64), static_cast<std::byte>(below(2))); return;
      case 4: splice(bytes); return;
      case 5: write_number(bytes); return;
      case 6: swap_words(bytes); return;
      case 7: {  // a piece is missing, or there twice
        const std::size_t at = below(bytes.size());
        const std::size_t size = std::min(bytes.size() - at, 8 * (1 + below(4)));
        const Bytes piece(bytes.begin() + place(at), bytes.begin() + place(at + size));
        if (below(2) == 0) {
          bytes.erase(bytes.begin() + place(at), bytes.begin() + place(at + size));
        } else {
          bytes.insert(bytes.begin() + place(at), piece.begin(), piece.end());
        }
        return;
      }
      default: head_field(bytes);
    }
  }

  static std::ptrdiff_t place(std::size_t at) { return static_cast<std::ptrdiff_t>(at); }

  // The beginning of one, the end of another.
  void splice(Bytes& bytes) {
    const Bytes& other = corpus_[below(corpus_.size())].file;
    const std::size_t from = below(other.size());
    bytes.resize(below(bytes.size()));
    bytes.insert(bytes.end(), other.begin() + place(from), other.end());
  }

  // A number that lengths and dims are afraid of, at a place where one may stand.
  void write_number(Bytes& bytes) {
    constexpr auto kNumbers = std::to_array<std::uint64_t>(
        {0, 1, 15, 16, 64, 65, 255, 65'535, 1ULL << 31, 1ULL << 32, (1ULL << 40) + 1, 1ULL << 61,
         1ULL << 62, (1ULL << 63) - 1, 1ULL << 63, ~0ULL, ~0ULL - 15});
    std::uint64_t number = kNumbers[below(kNumbers.size())];
    const std::size_t size = std::size_t{1} << below(4);
    const std::size_t at = below(bytes.size() / size) * size;
    if (below(4) == 0) number = bytes.size() + below(33) - 16;
    if (at + size <= bytes.size()) std::memcpy(bytes.data() + at, &number, size);
  }

  void swap_words(Bytes& bytes) {
    const std::size_t words = bytes.size() / 8;
    if (words < 2) return;
    std::byte* const a = bytes.data() + 8 * below(words);
    std::byte* const b = bytes.data() + 8 * below(words);
    std::array<std::byte, 8> kept;
    std::memcpy(kept.data(), a, 8);
    std::memmove(a, b, 8);
    std::memcpy(b, kept.data(), 8);
  }

  // Version, flags, tensors, and the small fields of the first record.
  void head_field(Bytes& bytes) {
    constexpr auto kPlaces = std::to_array<std::size_t>(
        {4, 5, 6, 7, 8, 16, 22, 23, 64, 65, 66, 67, 68, 69, 70, 71, 96, 98, 99, 100});
    const std::size_t at = kPlaces[below(kPlaces.size())];
    if (at < bytes.size()) bytes[at] = static_cast<std::byte>(below(below(2) == 0 ? 5 : 256));
  }

  const std::vector<GoldenEntry>& corpus_;
  std::mt19937_64 random_{20261123};  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same in every run
};

// Whether it is accepted. Whatever is must be encoded again to the same bytes, and its tensors must
// decode or be refused.
bool accepted(const Bytes& bytes, const Secret& secret) {
  constexpr std::size_t kLimit = std::size_t{1} << 20;
  EntryPtr entry;
  largest_allocation = 0;
  try {
    entry = decode_entry(bytes, {.secret = secret, .max_bytes = kLimit});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorruption) << error.what();
  }
  // A record is 16 bytes and becomes some 90; a message takes some hundred.
  EXPECT_LE(largest_allocation, 1024 + 8 * bytes.size());
  if (!entry) return false;
  EXPECT_EQ(encode_entry(*entry, secret), bytes);
  for (std::size_t i = 0; i < entry->tensor_count(); ++i) {
    const std::size_t size = decoded_size(entry->tensor(i));
    EXPECT_LE(size, kLimit);
    Bytes elements(size);
    try {
      decode(entry->tensor(i), elements);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruption) << error.what();
    }
  }
  return true;
}

// What an attacker without a secret can do: the length and the seal made right again.
void seal_again(Bytes& bytes, bool keep_length, const Secret& secret = std::nullopt) {
  const std::size_t seal = internal::seal_bytes(secret.has_value());
  if (bytes.size() < 16 + seal) return;
  if (!keep_length) {
    bytes.resize(internal::rounded_up(bytes.size(), internal::kUnit));
    const std::uint64_t length = bytes.size();
    std::memcpy(bytes.data() + 8, &length, sizeof length);
  }
  const std::size_t body = bytes.size() - seal;
  const Digest right = internal::seal(std::span(bytes).first(body), secret);
  std::memcpy(bytes.data() + body, right.data(), seal);
}

TEST(EntryFuzz, NoDamageIsAccepted) {
  const auto corpus = internal::golden_entries(TENSORKEY_GOLDEN);
  ASSERT_FALSE(corpus.empty());
  Mutator mutator(corpus);
  std::size_t tried = 0;
  while (tried < 300'000) {
    const GoldenEntry& golden = corpus[tried % corpus.size()];
    Bytes bytes = golden.file;
    mutator.mutate(bytes);
    // Another whole entry of the corpus may come out of a splice; that is no damage.
    if (std::ranges::any_of(corpus, [&](const auto& other) { return other.file == bytes; })) {
      continue;
    }
    ++tried;
    ASSERT_FALSE(accepted(bytes, golden.secret_span())) << golden.name << ", mutation " << tried;
  }
}

TEST(EntryFuzz, WithoutASecretTheStructureIsStillChecked) {
  const auto corpus = internal::golden_entries(TENSORKEY_GOLDEN);
  Mutator mutator(corpus);
  std::size_t whole = 0;
  for (std::size_t i = 0; i < 200'000; ++i) {
    Bytes bytes = corpus[i % corpus.size()].file;
    mutator.mutate(bytes);
    if (bytes.size() > 5) bytes[5] &= std::byte{0xFD};  // "written without a secret"
    seal_again(bytes, i % 7 == 0);
    if (accepted(bytes, std::nullopt)) ++whole;
    if (HasFailure()) FAIL() << "mutation " << i;
  }
  // Values, keys and names may be changed; so the checks behind the seal were really reached.
  EXPECT_GT(whole, 10'000U);
  EXPECT_LT(whole, 150'000U);
}

TEST(EntryFuzz, WithASecretNoOtherSealIsAccepted) {
  const auto corpus = internal::golden_entries(TENSORKEY_GOLDEN);
  Mutator mutator(corpus);
  const std::array<std::uint8_t, 32> guess{};
  for (std::size_t i = 0; i < 50'000; ++i) {
    const GoldenEntry& golden = corpus[i % corpus.size()];
    if (golden.secret.empty()) continue;
    Bytes bytes = golden.file;
    if (i % 3 != 0) mutator.mutate(bytes);
    if (i % 2 == 0) {
      seal_again(bytes, false, Secret(std::span(guess)));
    } else {
      if (bytes.size() > 5) bytes[5] &= std::byte{0xFD};
      seal_again(bytes, false);
    }
    ASSERT_FALSE(accepted(bytes, golden.secret_span())) << golden.name << ", mutation " << i;
  }
}

}  // namespace
}  // namespace tensorkey
