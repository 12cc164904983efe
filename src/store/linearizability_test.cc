// Each key of the cache behaves as if every operation happened at one instant. Threads record what
// they asked and were told, and a checker looks for an order that explains it: once with room for
// everything, where nothing may get lost, and once where an entry may go at any time.
#include <tensorkey/cache.h>

#include <gtest/gtest.h>

#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "store/cache_test_entries.h"
#include "store/history.h"

namespace tensorkey::test {
namespace {

TEST(Linearizability, TheCheckerTellsGoodHistoriesFromBad) {
  const Event insert{Kind::kInsert, 7, 7, 0, 1};
  EXPECT_TRUE(linearizable({}));
  EXPECT_TRUE(linearizable({insert, {Kind::kFind, 0, 7, 2, 3}}));
  EXPECT_FALSE(linearizable({insert, {Kind::kFind, 0, 0, 2, 3}}));  // lost
  EXPECT_FALSE(linearizable({insert, {Kind::kFind, 0, 8, 2, 3}}));  // out of thin air
  EXPECT_TRUE(linearizable({insert, {Kind::kFind, 0, 0, 0, 3}}));   // at the same time
  EXPECT_FALSE(
      linearizable({{Kind::kFind, 0, 7, 0, 1}, {Kind::kInsert, 7, 7, 2, 3}}));  // too early
  EXPECT_TRUE(linearizable({insert, {Kind::kInsert, 8, 7, 2, 3}}));
  EXPECT_FALSE(linearizable({insert, {Kind::kInsert, 8, 8, 2, 3}}));  // replaced
  EXPECT_FALSE(linearizable({insert, {Kind::kRemove, 0, 0, 2, 3}}));
  const Event remove{Kind::kRemove, 0, 1, 2, 3};
  EXPECT_FALSE(linearizable({insert, remove, {Kind::kFind, 0, 7, 4, 5}}));    // back from the dead
  EXPECT_FALSE(linearizable({insert, remove, {Kind::kRemove, 0, 1, 2, 4}}));  // removed twice
  EXPECT_FALSE(linearizable({insert, {Kind::kClear, 0, 0, 2, 3}, {Kind::kFind, 0, 7, 4, 5}}));
  // Two readers that disagree about the order of what they saw.
  EXPECT_FALSE(linearizable(
      {{Kind::kInsert, 7, 7, 0, 9}, {Kind::kFind, 0, 7, 1, 2}, {Kind::kFind, 0, 0, 3, 4}}));
}

TEST(Linearizability, WhereEntriesAreEvictedTheyMayGoButNeitherComeBackNorChange) {
  const auto explained = [](const std::vector<Event>& events) {
    return linearizable(events, Room::kForSome);
  };
  const Event insert{Kind::kInsert, 7, 7, 0, 1};
  const Event found{Kind::kFind, 0, 7, 4, 5};
  EXPECT_TRUE(explained({insert, found}));
  EXPECT_TRUE(explained({insert, {Kind::kFind, 0, 0, 2, 3}}));
  EXPECT_TRUE(explained({insert, {Kind::kInsert, 8, 8, 2, 3}}));
  EXPECT_TRUE(explained({insert, {Kind::kRemove, 0, 0, 2, 3}}));
  EXPECT_TRUE(explained({{Kind::kInsert, 7, 0, 0, 1}, {Kind::kFind, 0, 0, 2, 3}}));
  EXPECT_FALSE(explained({{Kind::kInsert, 7, 0, 0, 1}, found}));  // refused, yet there
  EXPECT_FALSE(explained({insert, {Kind::kFind, 0, 0, 2, 3}, found}));
  EXPECT_FALSE(explained({insert, {Kind::kRemove, 0, 1, 2, 3}, found}));
  EXPECT_FALSE(explained({insert, {Kind::kRemove, 0, 0, 2, 3}, found}));
  EXPECT_FALSE(explained({insert, {Kind::kClear, 0, 0, 2, 3}, found}));
  EXPECT_FALSE(explained({insert, {Kind::kInsert, 8, 8, 2, 3}, found}));
  EXPECT_FALSE(explained({insert, {Kind::kFind, 0, 8, 2, 3}}));
}

constexpr std::size_t kKeys = 2;
constexpr std::size_t kThreads = 4;

// A moment in which others may come between. Not a yield: on a busy machine that takes
// milliseconds.
void pause() {
  for (std::atomic<int> i = 0; i < 200;) ++i;
}

// All words of a value are its version.
std::uint32_t version_of(std::span<const std::byte> data) {
  std::vector<std::uint32_t> words(data.size() / sizeof(std::uint32_t));
  std::memcpy(words.data(), data.data(), data.size());
  EXPECT_TRUE(std::ranges::all_of(words, [&](std::uint32_t word) { return word == words[0]; }));
  return words[0];
}

std::uint32_t version_of(const EntryPtr& entry) {
  return entry ? version_of(entry->tensor(0).data) : kAbsent;
}

// An entry of some version and size, borrowed.
class Value {
 public:
  Value(std::size_t key, std::uint32_t version, std::size_t words, double seconds = 0.001)
      : words_(words, version), shape_{static_cast<std::int64_t>(words)} {
    tensor_ = {.dtype = DType::kUInt32, .shape = shape_, .data = std::as_bytes(std::span(words_))};
    parts_ = {.key = key_of(key), .seconds = seconds, .tensors = {&tensor_, 1}};
  }
  Value(const Value&) = delete;
  Value& operator=(const Value&) = delete;

  [[nodiscard]] const EntryParts& parts() const { return parts_; }

  [[nodiscard]] EntryPtr slowly() const {
    pause();
    return make_entry(parts_);
  }

 private:
  std::vector<std::uint32_t> words_;
  std::array<std::int64_t, 1> shape_;
  TensorParts tensor_;
  EntryParts parts_;
};

// One random operation; what it asked and was told.
Event act(ActivationCache& cache, std::size_t key, std::uint32_t version, std::size_t words,
          unsigned choice, std::atomic<std::uint64_t>& clock) {
  const Value value(key, version, words);
  const Key& name = value.parts().key;
  const std::uint64_t scope = key;
  std::vector<std::uint32_t> room(words);
  Event event{.kind = Kind::kFind, .call = clock++};
  if (choice % 2 == 0) pause();
  switch (choice) {
    case 0:
      event.kind = Kind::kRemove;
      event.result = cache.remove(name) ? 1 : 0;
      break;
    case 1:
      event.kind = Kind::kClear;
      cache.clear();
      break;
    case 2:
      event.kind = Kind::kRemove;
      event.result = static_cast<std::uint32_t>(cache.purge(scope));
      break;
    case 3: {
      const auto bytes = std::as_writable_bytes(std::span(room));
      if (cache.read(name, bytes)) event.result = version_of(bytes);
      break;
    }
    case 4:
    case 5: event.result = version_of(cache.find(name)); break;
    case 6:
    case 7:
      event.kind = Kind::kInsert;
      event.given = version;
      event.result = version_of(cache.get_or_compute(
          name, [&] { return value.slowly(); }, scope));
      break;
    default:
      event.kind = Kind::kInsert;
      event.given = version;
      event.result = version_of(cache.insert(value.parts(), scope));
  }
  event.done = clock++;
  return event;
}

// What the threads recorded in a round, by thread and key.
using Histories = std::array<std::array<std::vector<Event>, kKeys>, kThreads>;

std::size_t count_unexplained(const Histories& histories, Room room) {
  std::size_t count = 0;
  for (std::size_t key = 0; key < kKeys; ++key) {
    std::vector<Event> all;
    for (const auto& each : histories) all.insert(all.end(), each[key].begin(), each[key].end());
    if (!linearizable(all, room)) ++count;
  }
  return count;
}

// Puts the calling thread on one of the processors it may use. Left alone, short-lived threads
// often share one processor for the whole test and hardly ever meet.
void stay_on_processor(std::size_t number) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  std::size_t left = number % static_cast<std::size_t>(CPU_COUNT(&allowed));
  for (std::size_t processor = 0; processor < CPU_SETSIZE; ++processor) {
    if (!CPU_ISSET(processor, &allowed) || left-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    ::sched_setaffinity(0, sizeof one, &one);
    return;
  }
}

// Where all threads wait for each other. std::barrier yields before it sleeps: see pause().
class Meeting {
 public:
  void arrive_and_wait() {
    std::unique_lock lock(mutex_);
    const std::size_t round = round_;
    if (++arrived_ == kThreads) {
      arrived_ = 0;
      ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  std::size_t arrived_ = 0;
  std::size_t round_ = 0;
};

// Rounds of random operations of all threads, each checked; gives the number of keys whose history
// no order explains. With room for some, each thread inserts entries of its own in between.
std::size_t count_failures(ActivationCache& cache, std::size_t words, Room room, int rounds) {
  constexpr std::uint32_t kSteps = 10;
  std::atomic<std::uint64_t> clock{1};
  Histories histories;
  Meeting meet;
  std::vector<std::thread> threads;
  std::size_t failures = 0;  // of thread 0
  for (std::size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      stay_on_processor(thread);
      std::mt19937 random(static_cast<unsigned>(thread));
      std::size_t other = (thread + 1) << 32;
      for (int round = 0; round < rounds; ++round) {
        for (auto& history : histories[thread]) history.clear();
        if (thread == 0) cache.clear();
        meet.arrive_and_wait();
        for (std::uint32_t step = 1; step <= kSteps; ++step) {
          const std::size_t key = random() % kKeys;
          const std::uint32_t version = 100 * step + static_cast<std::uint32_t>(thread);
          const auto choice = static_cast<unsigned>(random() % 11);
          if (room == Room::kForSome) {
            const Value value(++other, 1, words + random() % words,
                              0.0005 * static_cast<double>(1U << random() % 8));
            cache.insert(value.parts(), other);
          }
          const Event event = act(cache, key, version, words, choice, clock);
          histories[thread][key].push_back(event);
          if (event.kind == Kind::kClear) histories[thread][1 - key].push_back(event);
        }
        meet.arrive_and_wait();
        if (thread == 0) failures += count_unexplained(histories, room);
        meet.arrive_and_wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failures;
}

TEST(LinearizabilityThreads, EveryKeyHasAnOrderThatExplainsAllAnswers) {
  ActivationCache cache({.memory = std::size_t{1} << 20});
  EXPECT_EQ(count_failures(cache, 1, Room::kForAll, 1200), 0U);
  EXPECT_EQ(cache.stats().evictions, 0U);
  EXPECT_GT(cache.stats().hits, 0U);
}

TEST(LinearizabilityThreads, SoItDoesWhereEntriesAreEvicted) {
  constexpr std::size_t kWords = 3000;  // three entries fit
  ActivationCache cache({.memory = std::size_t{96} << 10});
  EXPECT_EQ(count_failures(cache, kWords, Room::kForSome, 200), 0U);
  EXPECT_GT(cache.stats().evictions, 300U);
  EXPECT_GT(cache.stats().rejections, 100U);
  EXPECT_GT(cache.stats().hits, 300U);
}

}  // namespace
}  // namespace tensorkey::test
