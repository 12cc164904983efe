// The strong guarantee: values whose constructor throws, and memory that runs out at any point.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <vector>

#include <tensorkey/map.h>

namespace {
// While not negative, counts down with each allocation; the one that finds 0 fails.
long allocations_left = -1;

// Not inlined: GCC would see free() where it expects operator delete, and warn.
[[gnu::noinline]] void release(void* block) { std::free(block); }

[[gnu::noinline]] void* allocate(std::size_t size, std::size_t align) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  const std::size_t rounded = (size + align - 1) / align * align;
  void* const block = std::aligned_alloc(align, rounded == 0 ? align : rounded);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
}  // namespace

void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new[](std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t align) {
  return allocate(size, static_cast<std::size_t>(align));
}
void operator delete(void* block) noexcept { release(block); }
void operator delete[](void* block) noexcept { release(block); }
void operator delete(void* block, std::size_t) noexcept { release(block); }
void operator delete[](void* block, std::size_t) noexcept { release(block); }
void operator delete(void* block, std::align_val_t) noexcept { release(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { release(block); }

namespace tensorkey {
namespace {

constexpr std::int64_t kShape[] = {1};

TensorView key_of(const int& number) { return view(&number, kShape); }

struct Fragile {
  static inline int countdown = -1;
  static inline int alive = 0;
  int number;
  explicit Fragile(int n) : number(n) { begin(); }
  Fragile(const Fragile& other) : number(other.number) { begin(); }
  Fragile& operator=(const Fragile&) = default;
  ~Fragile() { --alive; }
  friend bool operator==(const Fragile& a, const Fragile& b) { return a.number == b.number; }

 private:
  static void begin() {
    if (countdown == 0) throw std::runtime_error("fragile");
    if (countdown > 0) --countdown;
    ++alive;
  }
};

TEST(MapExceptions, AValueThatThrowsLeavesNothingBehind) {
  {
    TensorKeyMap<Fragile> map;
    for (int i = 0; i < 200; ++i) {
      const TensorKeyMap<Fragile> before = map;
      const Fragile value(i);
      Fragile::countdown = 0;
      EXPECT_THROW(map.try_emplace(key_of(i), i), std::runtime_error);
      EXPECT_THROW(map.insert_or_assign(key_of(i), value), std::runtime_error);
      Fragile::countdown = -1;
      EXPECT_EQ(map, before);
      EXPECT_FALSE(map.contains(key_of(i)));
      EXPECT_TRUE(map.try_emplace(key_of(i), i).second);
    }
    Fragile::countdown = 100;
    EXPECT_THROW(TensorKeyMap<Fragile>{map}, std::runtime_error);
    Fragile::countdown = 100;
    TensorKeyMap<Fragile> target;
    EXPECT_THROW(target = map, std::runtime_error);
    Fragile::countdown = -1;
    EXPECT_TRUE(target.empty());
    EXPECT_EQ(map.size(), 200u);
    EXPECT_EQ(Fragile::alive, 200);
  }
  EXPECT_EQ(Fragile::alive, 0);
}

TEST(MapExceptions, MemoryThatRunsOutAnywhereChangesNothing) {
  TensorKeyMap<std::vector<int>> map;
  const std::vector<int> value{1, 2, 3};
  int failures = 0;
  for (int i = 0; i < 300; ++i) {
    const std::size_t size = map.size();
    for (long allowed = 0;; ++allowed) {
      allocations_left = allowed;
      bool done = false;
      try {
        map.insert_or_assign(key_of(i), value);
        done = true;
      } catch (const std::bad_alloc&) {
        ++failures;
      }
      allocations_left = -1;
      if (done) break;
      ASSERT_EQ(map.size(), size);
      ASSERT_FALSE(map.contains(key_of(i)));
      ASSERT_TRUE(i == 0 || map.at(key_of(i - 1)) == value);
    }
    ASSERT_EQ(map.size(), size + 1);
  }
  EXPECT_GE(failures, 600) << "each insertion allocates the node and the value's elements";

  for (long allowed = 0; allowed < 400; ++allowed) {
    allocations_left = allowed;
    bool copied = false;
    try {
      const auto copy = map;
      copied = copy.size() == 300;
    } catch (const std::bad_alloc&) {
      copied = false;
    }
    allocations_left = -1;
    ASSERT_FALSE(copied);
  }
  ASSERT_EQ(map.size(), 300u);
  allocations_left = 0;
  const bool threw = [&] {
    try {
      map.reserve(100000);
      return false;
    } catch (const std::bad_alloc&) {
      return true;
    }
  }();
  allocations_left = -1;
  EXPECT_TRUE(threw);
  for (int i = 0; i < 300; ++i) ASSERT_EQ(map.at(key_of(i)), value);
}

TEST(MapExceptions, AnImpossibleReserveIsBadAlloc) {
  TensorKeySet set;
  EXPECT_THROW(set.reserve(SIZE_MAX), std::bad_alloc);
  EXPECT_TRUE(set.empty());
}

}  // namespace
}  // namespace tensorkey
