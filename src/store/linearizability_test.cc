// Each key of the cache behaves as if every operation happened at one instant between its call and
// its return (M. Herlihy, J. Wing, "Linearizability", TOPLAS 1990). Threads record what they asked
// and were told, and a checker looks for an order that explains it (J. Wing, C. Gong, "Testing and
// verifying concurrent objects", JPDC 1993: a search with the states it has seen).
#include <tensorkey/cache.h>

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <barrier>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

namespace tensorkey {
namespace {

constexpr std::uint32_t kAbsent = 0;

enum class Kind : std::uint8_t { kFind, kInsert, kRemove, kClear };

struct Event {
  Kind kind;
  std::uint32_t given = kAbsent;   // the version that an insert brings
  std::uint32_t result = kAbsent;  // the version it was told; of a remove: 1 if it was there
  std::uint64_t call = 0;
  std::uint64_t done = 0;
};

// The state after the operation, if its answer fits the state before: an insert on a key that is
// there keeps and returns the old entry.
std::pair<bool, std::uint32_t> apply(const Event& event, std::uint32_t state) {
  switch (event.kind) {
    case Kind::kFind: return {event.result == state, state};
    case Kind::kInsert: {
      const std::uint32_t after = state == kAbsent ? event.given : state;
      return {event.result == after, after};
    }
    case Kind::kRemove: return {event.result == (state != kAbsent ? 1U : 0U), kAbsent};
    case Kind::kClear: return {true, kAbsent};
  }
  return {false, state};
}

class Checker {
 public:
  // REQUIRES: at most 64 events.
  explicit Checker(const std::vector<Event>& events) : events_(events) {}

  bool linearizable() { return search(0, kAbsent); }

 private:
  bool search(std::uint64_t taken, std::uint32_t state) {
    const std::uint64_t all =
        events_.size() == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << events_.size()) - 1;
    if (taken == all) return true;
    if (!seen_.insert({taken, state}).second) return false;
    std::uint64_t first_done = std::numeric_limits<std::uint64_t>::max();
    for (std::size_t i = 0; i < events_.size(); ++i) {
      if ((taken >> i & 1) == 0) first_done = std::min(first_done, events_[i].done);
    }
    for (std::size_t i = 0; i < events_.size(); ++i) {
      // What was called after another had returned cannot come before it.
      if ((taken >> i & 1) != 0 || events_[i].call > first_done) continue;
      const auto [fits, after] = apply(events_[i], state);
      if (fits && search(taken | std::uint64_t{1} << i, after)) return true;
    }
    return false;
  }

  const std::vector<Event>& events_;
  std::set<std::pair<std::uint64_t, std::uint32_t>> seen_;
};

bool linearizable(const std::vector<Event>& events) { return Checker(events).linearizable(); }

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

constexpr std::size_t kKeys = 2;
constexpr std::size_t kThreads = 4;

Key key_of(std::size_t id) { return Key(blake3(std::as_bytes(std::span(&id, 1)))); }

std::uint32_t version_of(const EntryPtr& entry) {
  std::uint32_t version = kAbsent;
  if (entry) std::memcpy(&version, entry->tensor(0).data.data(), sizeof version);
  return version;
}

EntryParts parts_of(std::size_t key, const std::uint32_t& version,
                    std::array<TensorParts, 1>& tensors) {
  static constexpr std::array<std::int64_t, 1> kShape{1};
  tensors[0] = {
      .dtype = DType::kUInt32, .shape = kShape, .data = std::as_bytes(std::span(&version, 1))};
  return {.key = key_of(key), .seconds = 0.001, .tensors = tensors};
}

// Long enough for others to come between.
EntryPtr slowly(const EntryParts& parts) {
  for (int i = 0; i < 5; ++i) std::this_thread::yield();
  return make_entry(parts);
}

// One random operation; what it asked and was told.
Event act(ActivationCache& cache, std::size_t key, std::uint32_t version, unsigned choice,
          std::atomic<std::uint64_t>& clock) {
  std::array<TensorParts, 1> tensors;
  const EntryParts parts = parts_of(key, version, tensors);
  Event event{.kind = Kind::kFind, .call = clock++};
  if (choice % 2 == 0) std::this_thread::yield();
  switch (choice) {
    case 0:
      event.kind = Kind::kRemove;
      event.result = cache.remove(parts.key) ? 1 : 0;
      break;
    case 1:
      event.kind = Kind::kClear;
      cache.clear();
      break;
    case 2: {
      std::uint32_t found = kAbsent;
      if (cache.read(parts.key, std::as_writable_bytes(std::span(&found, 1)))) event.result = found;
      break;
    }
    case 3:
    case 4: event.result = version_of(cache.find(parts.key)); break;
    case 5:
      event.kind = Kind::kInsert;
      event.given = version;
      event.result = version_of(cache.get_or_compute(parts.key, [&] { return slowly(parts); }));
      break;
    default:
      event.kind = Kind::kInsert;
      event.given = version;
      event.result = version_of(cache.insert(parts));
  }
  event.done = clock++;
  return event;
}

TEST(LinearizabilityThreads, EveryKeyHasAnOrderThatExplainsAllAnswers) {
  constexpr int kRounds = 2000;
  constexpr int kSteps = 10;
  ActivationCache cache({.memory = std::size_t{1} << 20});  // nothing is ever evicted
  std::atomic<std::uint64_t> clock{1};
  std::vector<std::array<std::vector<Event>, kKeys>> histories(kThreads);
  std::barrier begin(kThreads);
  std::barrier end(kThreads);
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (std::size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(static_cast<unsigned>(thread));
      for (int round = 0; round < kRounds; ++round) {
        for (auto& history : histories[thread]) history.clear();
        if (thread == 0) cache.clear();
        begin.arrive_and_wait();
        for (int step = 0; step < kSteps; ++step) {
          const std::size_t key = random() % kKeys;
          const auto version =
              static_cast<std::uint32_t>(100 * (step + 1)) + static_cast<std::uint32_t>(thread);
          const Event event = act(cache, key, version, static_cast<unsigned>(random() % 9), clock);
          histories[thread][key].push_back(event);
          if (event.kind == Kind::kClear) histories[thread][1 - key].push_back(event);
        }
        end.arrive_and_wait();
        if (thread == 0) {
          for (std::size_t key = 0; key < kKeys; ++key) {
            std::vector<Event> all;
            for (const auto& each : histories) {
              all.insert(all.end(), each[key].begin(), each[key].end());
            }
            if (all.size() <= 64 && !linearizable(all)) ++failures;
          }
        }
        begin.arrive_and_wait();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(cache.stats().evictions, 0U);
}

}  // namespace
}  // namespace tensorkey
