// Each peer against a second one, written here as plainly as its paper puts it, on random streams.
// A peer made weak would be a lie.
#include <gtest/gtest.h>
#include <tensorkey/error.h>
#include <tensorkey/simulate.h>

#include <algorithm>
#include <bit>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace tensorkey {
namespace {

using Stream = std::vector<Access>;
using Reference = std::function<bool(const Access&)>;

// Half of the requests go to a tenth of the keys.
Stream random_stream(unsigned seed, std::size_t requests, std::uint64_t keys, bool sizes) {
  std::mt19937_64 random(seed);
  Stream stream;
  for (std::size_t i = 0; i < requests; ++i) {
    const std::uint64_t key =
        random() % (random() % 2 == 0 ? keys : std::max<std::uint64_t>(1, keys / 10));
    const std::uint64_t size = sizes ? 1 + key * 7919 % 13 : 1;
    stream.push_back(
        {.key = key, .size = size, .cost = sizes ? 1.0 + static_cast<double>(key * 31 % 5) : 1.0});
  }
  return stream;
}

void expect_same(const std::string& policy, bool sizes,
                 const std::function<Reference(std::uint64_t)>& make) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const std::uint64_t capacity = 1 + seed * 5 % 60;
    const Stream stream = random_stream(seed, 2000, 20 + seed * 3, sizes);
    const Reference reference = make(capacity);
    const auto hits = std::ranges::count_if(stream, reference);
    EXPECT_EQ(simulate(policy, stream, capacity).hits, static_cast<std::uint64_t>(hits))
        << policy << ", seed " << seed << ", capacity " << capacity;
  }
}

struct Held {
  std::uint64_t key;
  std::uint64_t size;
  int count = 0;
};
using Queue = std::list<Held>;  // the front is the newest

auto find(Queue& queue, std::uint64_t key) { return std::ranges::find(queue, key, &Held::key); }

std::uint64_t bytes(const Queue& queue) {
  std::uint64_t sum = 0;
  for (const Held& held : queue) sum += held.size;
  return sum;
}

TEST(Peers, Lru) {
  for (const bool sizes : {false, true}) {
    expect_same("lru", sizes, [](std::uint64_t capacity) -> Reference {
      return [capacity, queue = Queue()](const Access& access) mutable {
        if (const auto found = find(queue, access.key); found != queue.end()) {
          queue.splice(queue.begin(), queue, found);
          return true;
        }
        if (access.size > capacity) return false;
        while (bytes(queue) + access.size > capacity) queue.pop_back();
        queue.push_front({access.key, access.size});
        return false;
      };
    });
  }
}

TEST(Peers, NeverEvict) {
  const Stream stream = {{1}, {2}, {3}, {1}, {2}, {3}, {3}};
  EXPECT_EQ(simulate("never-evict", stream, 2).hits, 2u);
  EXPECT_EQ(simulate("never-evict", stream, 2).evictions, 0u);
  EXPECT_EQ(simulate("never-evict", stream, 2).rejections, 3u);
}

TEST(Peers, Sieve) {
  for (const bool sizes : {false, true}) {
    expect_same("sieve", sizes, [](std::uint64_t capacity) -> Reference {
      // The queue as an array, the oldest first; the hand is a position.
      return [capacity, queue = std::vector<Held>(),
              hand = std::size_t{0}](const Access& access) mutable {
        const auto found = std::ranges::find(queue, access.key, &Held::key);
        if (found != queue.end()) {
          found->count = 1;
          return true;
        }
        if (access.size > capacity) return false;
        const auto held = [&] {
          std::uint64_t sum = 0;
          for (const Held& each : queue) sum += each.size;
          return sum;
        };
        while (held() + access.size > capacity) {
          if (hand >= queue.size()) hand = 0;
          while (queue[hand].count != 0) {
            queue[hand].count = 0;
            hand = (hand + 1) % queue.size();
          }
          queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(hand));
          // The hand at the head starts again at the tail, even if newcomers follow.
          if (hand == queue.size()) hand = 0;
        }
        queue.push_back({access.key, access.size});
        return false;
      };
    });
  }
}

TEST(Peers, S3Fifo) {
  for (const bool sizes : {false, true}) {
    expect_same("s3-fifo", sizes, [](std::uint64_t capacity) -> Reference {
      return [capacity, small = Queue(), main = Queue(),
              ghost = Queue()](const Access& access) mutable {
        for (Queue* queue : {&small, &main}) {
          if (const auto found = find(*queue, access.key); found != queue->end()) {
            found->count = std::min(3, found->count + 1);
            return true;
          }
        }
        if (access.size > capacity) return false;
        const std::uint64_t share = std::max<std::uint64_t>(1, capacity / 10);
        while (bytes(small) + bytes(main) + access.size > capacity) {
          if (bytes(small) >= share || main.empty()) {
            bool evicted = false;
            while (!evicted && !small.empty()) {
              Held last = small.back();
              small.pop_back();
              if (last.count > 1) {
                main.push_front({last.key, last.size});
              } else {
                ghost.push_front(last);
                while (bytes(ghost) > capacity - share && ghost.size() > 1) ghost.pop_back();
                evicted = true;
              }
            }
          } else {
            while (main.back().count > 0) {
              Held last = main.back();
              main.pop_back();
              main.push_front({last.key, last.size, last.count - 1});
            }
            main.pop_back();
          }
        }
        const auto remembered = find(ghost, access.key);
        if (remembered != ghost.end()) ghost.erase(remembered);
        (remembered != ghost.end() ? main : small).push_front({access.key, access.size});
        return false;
      };
    });
  }
}

// Figure 4 of the paper, for pages of one size.
TEST(Peers, Arc) {
  expect_same("arc", false, [](std::uint64_t capacity) -> Reference {
    return [c = static_cast<double>(capacity), p = 0.0, t1 = Queue(), t2 = Queue(), b1 = Queue(),
            b2 = Queue()](const Access& access) mutable {
      const auto size = [](const Queue& queue) { return static_cast<double>(queue.size()); };
      const auto replace = [&](bool in_b2) {
        if (!t1.empty() && (size(t1) > p || (in_b2 && size(t1) == p))) {
          b1.splice(b1.begin(), t1, std::prev(t1.end()));
        } else if (!t2.empty()) {
          b2.splice(b2.begin(), t2, std::prev(t2.end()));
        } else {
          b1.splice(b1.begin(), t1, std::prev(t1.end()));
        }
      };
      for (Queue* queue : {&t1, &t2}) {
        if (const auto found = find(*queue, access.key); found != queue->end()) {
          t2.splice(t2.begin(), *queue, found);
          return true;
        }
      }
      const bool in_b1 = find(b1, access.key) != b1.end();
      const bool in_b2 = find(b2, access.key) != b2.end();
      if (in_b1 || in_b2) {
        const double ratio = in_b1 ? size(b2) / size(b1) : size(b1) / size(b2);
        p = std::clamp(p + (in_b1 ? 1 : -1) * std::max(1.0, ratio), 0.0, c);
        Queue moved;
        Queue& from = in_b1 ? b1 : b2;
        moved.splice(moved.begin(), from, find(from, access.key));
        if (size(t1) + size(t2) >= c) replace(in_b2);
        t2.splice(t2.begin(), moved);
        return false;
      }
      if (size(t1) + size(b1) == c) {
        if (size(t1) < c) {
          b1.pop_back();
          if (size(t1) + size(t2) >= c) replace(false);
        } else {
          t1.pop_back();
        }
      } else if (size(t1) + size(t2) + size(b1) + size(b2) >= c) {
        if (size(t1) + size(t2) + size(b1) + size(b2) == 2 * c) b2.pop_back();
        if (size(t1) + size(t2) >= c) replace(false);
      }
      t1.push_front({access.key, 1});
      return false;
    };
  });
}

TEST(Peers, Gdsf) {
  for (const bool sizes : {false, true}) {
    expect_same("gdsf", sizes, [](std::uint64_t capacity) -> Reference {
      struct Priced {
        std::uint64_t size;
        double cost;
        double frequency;
        double priority;
      };
      return [capacity, age = 0.0, held = std::map<std::uint64_t, Priced>(),
              // Ties go by arrival in the trace, as the simulator numbers its keys.
              ids = std::map<std::uint64_t, std::size_t>()](const Access& access) mutable {
        ids.try_emplace(access.key, ids.size());
        const auto price = [&](Priced& it) {
          it.priority = age + it.frequency * (it.cost / static_cast<double>(it.size));
        };
        if (const auto found = held.find(access.key); found != held.end()) {
          ++found->second.frequency;
          price(found->second);
          return true;
        }
        if (access.size > capacity) return false;
        const auto bytes_held = [&] {
          std::uint64_t sum = 0;
          for (const auto& [key, it] : held) sum += it.size;
          return sum;
        };
        while (bytes_held() + access.size > capacity) {
          const auto victim = std::ranges::min_element(held, [&](const auto& a, const auto& b) {
            return std::pair(a.second.priority, ids[a.first]) <
                   std::pair(b.second.priority, ids[b.first]);
          });
          age = victim->second.priority;
          held.erase(victim);
        }
        Priced fresh{access.size, access.cost, 1, 0};
        price(fresh);
        held.emplace(access.key, fresh);
        return false;
      };
    });
  }
}

// The best of all choices at every miss, for equal sizes: dynamic programming over sets.
TEST(Peers, BeladyIsTheOptimum) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    constexpr std::uint64_t kKeys = 7;
    const int capacity = 1 + static_cast<int>(seed % 5);
    const Stream stream = random_stream(seed, 40, kKeys, false);
    std::map<unsigned, std::uint64_t> best = {{0u, 0}};  // hits, by the set that is held
    for (const Access& access : stream) {
      const unsigned bit = 1u << access.key;
      std::map<unsigned, std::uint64_t> next;
      const auto reach = [&](unsigned set, std::uint64_t hits) {
        auto& most = next[set];
        most = std::max(most, hits);
      };
      for (const auto& [set, hits] : best) {
        if ((set & bit) != 0) {
          reach(set, hits + 1);
          continue;
        }
        reach(set, hits);
        if (std::popcount(set) < capacity) reach(set | bit, hits);
        for (unsigned other = 1; other < 1u << kKeys; other <<= 1) {
          if ((set & other) != 0) reach((set & ~other) | bit, hits);
        }
      }
      best = std::move(next);
    }
    std::uint64_t optimum = 0;
    for (const auto& [set, hits] : best) optimum = std::max(optimum, hits);
    EXPECT_EQ(simulate("belady", stream, static_cast<std::uint64_t>(capacity)).hits, optimum);
  }
}

// A window of 1, a main part of 99: what was asked for twice keeps out what was asked for once.
TEST(Peers, WTinyLfuKeepsTheFrequent) {
  for (const std::string policy : {"w-tinylfu", "w-tinylfu-climber", "w-tinylfu-cost"}) {
    Stream stream;
    for (int round = 0; round < 2; ++round) {
      for (std::uint64_t key = 0; key < 99; ++key) stream.push_back({key});
    }
    EXPECT_EQ(simulate(policy, stream, 100).hits, 99u);
    for (std::uint64_t once = 1000; once < 1300; ++once) stream.push_back({once});
    for (std::uint64_t key = 0; key < 99; ++key) stream.push_back({key});
    // Collisions in the sketch may let a few through.
    EXPECT_GE(simulate(policy, stream, 100).hits, 99u + 95u) << policy;
  }
}

TEST(Peers, WTinyLfuWeighsVictimsTogether) {
  // Ten entries of 10 bytes, asked for twice each, against one of 90, asked for four times: it is
  // worth more than any of them, less than nine.
  Stream stream;
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t key = 0; key < 10; ++key) stream.push_back({.key = key, .size = 10});
  }
  for (int i = 0; i < 4; ++i) stream.push_back({.key = 77, .size = 90});
  for (std::uint64_t key = 0; key < 9; ++key) stream.push_back({.key = key, .size = 10});
  const Replay replay = simulate("w-tinylfu", stream, 101);
  EXPECT_EQ(replay.hits, 10u + 9u);
}

TEST(Peers, NoneHoldsMoreThanTheOptimum) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    const Stream stream = random_stream(seed, 3000, 200, false);
    const std::uint64_t optimum = simulate("belady", stream, 30).hits;
    for (const std::string_view policy : simulated_policies()) {
      EXPECT_LE(simulate(policy, stream, 30).hits, optimum) << policy;
    }
  }
}

}  // namespace
}  // namespace tensorkey
