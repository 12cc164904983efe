#include "store/disk/mirror.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include <tensorkey/digest.h>

namespace {
// Bytes that the program has from the heap now, and at most since `most` was set.
std::atomic<std::size_t> live{0};
std::atomic<std::size_t> most{0};
constexpr std::size_t kHead = 16;  // in front of each, as much as an allocator takes
}  // namespace

// Not inlined: GCC takes what it then sees for a mismatch of new and free.
[[gnu::noinline]] void* operator new(std::size_t size) {
  auto* const memory = static_cast<std::byte*>(std::malloc(size + kHead));
  if (memory == nullptr) throw std::bad_alloc();
  std::memcpy(memory, &size, sizeof size);
  const std::size_t now = live += size + kHead;
  if (now > most) most = now;
  return memory + kHead;
}

[[gnu::noinline]] void operator delete(void* pointer) noexcept {
  if (pointer == nullptr) return;
  auto* const memory = static_cast<std::byte*>(pointer) - kHead;
  std::size_t size = 0;
  std::memcpy(&size, memory, sizeof size);
  live -= size + kHead;
  std::free(memory);
}

void operator delete(void* pointer, std::size_t) noexcept { operator delete(pointer); }

namespace tensorkey::internal {
namespace {

constexpr std::size_t kUnbounded = std::numeric_limits<std::size_t>::max();

Key key_of(std::uint64_t id) { return Key(blake3(std::as_bytes(std::span(&id, 1)))); }

Place place_of(std::uint64_t id) {
  return {.segment = static_cast<std::uint32_t>(id % 100 + 1),
          .offset = id * 4096 % (std::uint64_t{1} << 36),
          .length = 16 * (id % 1000 + 1)};
}

Place find(const Mirror& mirror, const Key& key) {
  Place place;
  mirror.find({&key, 1}, {&place, 1});
  return place;
}

TEST(Mirror, AgreesWithAMap) {
  std::mt19937 random;  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same steps in every run
  std::vector<Key> keys(3000);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = key_of(i);
  Mirror mirror(kUnbounded);
  std::unordered_map<Key, Place> model;
  const auto agree = [&](const std::vector<Key>& some) {
    std::vector<Place> places(some.size(), Place{.segment = 99});
    mirror.find(some, places);
    for (std::size_t i = 0; i < some.size(); ++i) {
      const auto found = model.find(some[i]);
      ASSERT_EQ(places[i], found == model.end() ? Place{} : found->second);
    }
    ASSERT_EQ(mirror.entries(), model.size());
  };
  for (int step = 0; step < 100'000; ++step) {
    const Key& key = keys[random() % keys.size()];
    const Place place = place_of(random() % 100'000);
    switch (random() % 8) {
      case 0:
      case 1:
      case 2: {
        ASSERT_TRUE(mirror.insert(key, place));
        model[key] = place;
        break;
      }
      case 3:
      case 4: {
        const auto found = model.find(key);
        if (found == model.end()) break;
        if (place != found->second) mirror.erase(key, place);  // it is not there
        ASSERT_EQ(find(mirror, key), found->second);
        mirror.erase(key, found->second);
        model.erase(found);
        break;
      }
      case 5: mirror.erase(key, Place{}); break;
      default: {
        std::vector<Key> some(random() % 100);
        for (Key& each : some) each = keys[random() % keys.size()];
        agree(some);
      }
    }
    if (HasFatalFailure()) return;
    if (step % 20'000 == 19'999) {
      const auto alive = [&](std::uint32_t segment) { return segment % 7 != 3; };
      mirror.retain(alive);
      std::erase_if(model, [&](const auto& item) { return !alive(item.second.segment); });
      agree(keys);
    }
    if (step == 50'000) {
      mirror.clear();
      model.clear();
      EXPECT_EQ(mirror.bytes(), sizeof(Mirror));
    }
  }
  agree(keys);
}

TEST(Mirror, KnowsNothingAtFirst) {
  Mirror mirror(kUnbounded);
  EXPECT_EQ(find(mirror, key_of(1)), Place{});
  mirror.erase(key_of(1), place_of(1));
  mirror.retain([](std::uint32_t) { return false; });
  mirror.find({}, {});
  EXPECT_EQ(mirror.entries(), 0U);
  EXPECT_EQ(mirror.bytes(), sizeof(Mirror));
}

TEST(Mirror, PlacesThatAreNoneAreRefused) {
  Mirror mirror(kUnbounded);
  constexpr std::uint64_t kEnd = std::uint64_t{1} << 36;
  const Key key = key_of(1);
  for (const Place& place : {Place{.segment = 0, .offset = 16, .length = 16},
                             Place{.segment = 1, .offset = 8, .length = 16},
                             Place{.segment = 1, .offset = 16, .length = 17},
                             Place{.segment = 1, .offset = kEnd, .length = 16},
                             Place{.segment = 1, .offset = 16, .length = kEnd},
                             Place{.segment = 1, .offset = ~std::uint64_t{15}, .length = 16}}) {
    EXPECT_FALSE(mirror.insert(key, place));
    EXPECT_EQ(mirror.entries(), 0U);
  }
  const Place last{.segment = 0xffffffff, .offset = kEnd - 16, .length = kEnd - 16};
  EXPECT_TRUE(mirror.insert(key, last));
  EXPECT_EQ(find(mirror, key), last);
  EXPECT_FALSE(mirror.insert(key, Place{.segment = 1, .offset = 8, .length = 16}));
  EXPECT_EQ(find(mirror, key), last);
  mirror.erase(key,
               Place{.segment = last.segment, .offset = last.offset + kEnd, .length = last.length});
  EXPECT_EQ(mirror.entries(), 1U);
}

// Also while a shard has two arrays, and with what an allocator takes for each.
TEST(Mirror, AnEntryTakesAtMost48Bytes) {
  constexpr std::size_t kFrom = 10'000;
  constexpr std::size_t kTo = 1'000'000;
  std::vector<Key> keys(kTo);
  for (std::size_t i = 0; i < kTo; ++i) keys[i] = key_of(i);
  const std::size_t before = live;
  Mirror mirror(kUnbounded);
  std::size_t worst = 0;
  for (std::size_t i = 0; i < kTo; ++i) {
    most = live.load();
    ASSERT_TRUE(mirror.insert(keys[i], place_of(i)));
    const std::size_t bytes = most - before + sizeof(Mirror);
    ASSERT_GE(bytes, mirror.bytes());
    if (i + 1 >= kFrom) worst = std::max(worst, (bytes + i) / (i + 1));
    if (i + 1 == kFrom || i + 1 == 100'000 || i + 1 == kTo) {
      EXPECT_LE(mirror.bytes(), 46 * (i + 1));
      EXPECT_EQ(mirror.entries(), i + 1);
    }
  }
  EXPECT_LE(worst, 48U);
  // And as it becomes empty.
  worst = 0;
  for (std::size_t i = kTo; i-- > kFrom;) {
    mirror.erase(keys[i], place_of(i));
    worst = std::max(worst, (live - before + sizeof(Mirror) + i - 1) / i);
  }
  EXPECT_LE(worst, 48U);
  EXPECT_EQ(mirror.entries(), kFrom);
  std::vector<Place> places(kFrom);
  mirror.find(std::span(keys).first(kFrom), places);
  for (std::size_t i = 0; i < kFrom; ++i) ASSERT_EQ(places[i], place_of(i));
}

TEST(Mirror, ALimitIsALimit) {
  Mirror none(0);
  EXPECT_FALSE(none.insert(key_of(1), place_of(1)));
  EXPECT_EQ(none.entries(), 0U);

  constexpr std::size_t kLimit = 256 << 10;
  const std::size_t before = live;
  Mirror mirror(kLimit);
  std::vector<std::uint64_t> known;
  for (std::uint64_t id = 0; id < 20'000; ++id) {
    most = live.load();
    if (mirror.insert(key_of(id), place_of(id))) known.push_back(id);
    ASSERT_LE(mirror.bytes(), kLimit);
    // Both arrays of a growing shard count; what an allocator takes for each does not.
    ASSERT_LE(most - before + sizeof(Mirror),
              kLimit + 258 * kHead + (8U << 10) + known.capacity() * sizeof(std::uint64_t) * 2);
  }
  EXPECT_GE(known.size(), kLimit / 48);
  EXPECT_LT(known.size(), 20'000U);
  EXPECT_EQ(mirror.entries(), known.size());
  for (const std::uint64_t id : known) ASSERT_EQ(find(mirror, key_of(id)), place_of(id));
  for (const std::uint64_t id : known) ASSERT_TRUE(mirror.insert(key_of(id), place_of(id + 1)));
  for (const std::uint64_t id : known) ASSERT_EQ(find(mirror, key_of(id)), place_of(id + 1));
  // What is forgotten makes room.
  for (const std::uint64_t id : known) mirror.erase(key_of(id), place_of(id + 1));
  EXPECT_EQ(mirror.entries(), 0U);
  EXPECT_TRUE(mirror.insert(key_of(50'000), place_of(1)));
}

TEST(Mirror, RetainsWhatIsAlive) {
  Mirror mirror(kUnbounded);
  for (std::uint64_t id = 0; id < 50'000; ++id) mirror.insert(key_of(id), place_of(id));
  const std::size_t full = mirror.bytes();
  mirror.retain([](std::uint32_t segment) { return segment <= 10; });
  EXPECT_EQ(mirror.entries(), 5000U);
  EXPECT_LT(mirror.bytes(), full / 5);
  for (std::uint64_t id = 0; id < 50'000; ++id) {
    ASSERT_EQ(find(mirror, key_of(id)), id % 100 < 10 ? place_of(id) : Place{});
  }
  mirror.retain([](std::uint32_t) { return false; });
  EXPECT_EQ(mirror.entries(), 0U);
}

// Keys that somebody made up: counters, and such as share a half.
TEST(Mirror, MadeUpKeysAreToldApart) {
  for (const std::size_t at : {0U, 4U, 8U, 12U, 16U, 24U, 28U}) {
    Mirror mirror(kUnbounded);
    const auto made_up = [&](std::uint32_t id) {
      Digest bytes;
      bytes.fill(0xab);
      std::memcpy(bytes.data() + at, &id, sizeof id);
      return Key(bytes);
    };
    for (std::uint32_t id = 0; id < 20'000; ++id) mirror.insert(made_up(id), place_of(id));
    ASSERT_EQ(mirror.entries(), 20'000U) << at;
    EXPECT_LE(mirror.bytes(), 48U * 20'000) << at;
    for (std::uint32_t id = 0; id < 20'000; ++id) {
      ASSERT_EQ(find(mirror, made_up(id)), place_of(id)) << at;
    }
  }
}

// Whoever makes two keys alike to the table loses one of them, and nothing else.
TEST(Mirror, KeysWithTheSameTagReplaceEachOther) {
  Mirror mirror(kUnbounded);
  Digest bytes = key_of(1).bytes();
  const Key one(bytes);
  bytes[3] ^= 0x55;
  bytes[19] ^= 0x55;
  const Key other(bytes);
  for (std::uint64_t id = 2; id < 100; ++id) mirror.insert(key_of(id), place_of(id));
  mirror.insert(one, place_of(1));
  mirror.insert(other, place_of(7));
  EXPECT_EQ(find(mirror, one), place_of(7));
  EXPECT_EQ(mirror.entries(), 99U);
  mirror.erase(one, place_of(1));
  EXPECT_EQ(find(mirror, other), place_of(7));
  for (std::uint64_t id = 2; id < 100; ++id) ASSERT_EQ(find(mirror, key_of(id)), place_of(id));
}

TEST(Mirror, Threads) {
  Mirror mirror(1 << 20);
  std::vector<Key> keys(1000);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = key_of(i);
  std::atomic<bool> wrong{false};
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      std::vector<Place> places(64);
      for (int step = 0; step < 3000; ++step) {
        const std::uint64_t id = random() % keys.size();
        switch (random() % 4) {
          case 0: mirror.insert(keys[id], place_of(id)); break;
          case 1: mirror.erase(keys[id], place_of(id)); break;
          case 2:
            if (step % 100 == 0) {
              mirror.retain([&](std::uint32_t segment) { return segment % 5 != seed; });
            }
            if (mirror.bytes() > mirror.limit() || mirror.entries() > keys.size()) wrong = true;
            break;
          default: {
            const std::size_t begin = id % (keys.size() - places.size());
            mirror.find(std::span(keys).subspan(begin, places.size()), places);
            for (std::size_t i = 0; i < places.size(); ++i) {
              if (places[i].segment != 0 && places[i] != place_of(begin + i)) wrong = true;
            }
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(wrong);
}

}  // namespace
}  // namespace tensorkey::internal
