// What does a hit of 64 bytes cost with the key at hand, alone and with two threads?
//
// Keys are drawn by Zipf's law (0.99) and lie ready in the order of the stream. The peer is what
// one writes first: std::unordered_map and an LRU list under a mutex. Answers are compared. Times
// are of the threads' own CPU clocks, so that a busy machine counts for less; a round of each takes
// turns. Prints one JSON object.
//
//   hit_bench [rounds]
#include <tensorkey/cache.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <list>
#include <mutex>
#include <numeric>
#include <random>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

using tensorkey::ActivationCache;
using tensorkey::Key;
using Value = std::array<std::byte, 64>;

constexpr std::size_t kRequests = 1'000'000;

Value value_of(const Key& key) {
  Value value;
  std::memcpy(value.data(), key.bytes().data(), 32);
  std::memcpy(value.data() + 32, key.bytes().data(), 32);
  return value;
}

// The peer.
class MutexLru {
 public:
  void insert(const Key& key, const Value& value) {
    order_.emplace_front(key, value);
    table_.emplace(key, order_.begin());
  }
  bool read(const Key& key, std::span<std::byte> out) {
    const std::lock_guard lock(mutex_);
    const auto found = table_.find(key);
    if (found == table_.end()) return false;
    order_.splice(order_.begin(), order_, found->second);
    std::memcpy(out.data(), found->second->second.data(), out.size());
    return true;
  }

 private:
  using Order = std::list<std::pair<Key, Value>>;
  std::mutex mutex_;
  Order order_;
  std::unordered_map<Key, Order::iterator> table_;
};

std::vector<Key> zipf_stream(std::size_t count) {
  std::vector<Key> keys(count);
  for (std::size_t i = 0; i < count; ++i) {
    keys[i] = Key(tensorkey::blake3(std::as_bytes(std::span(&i, 1))));
  }
  std::vector<double> sums(count);
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) {
    sums[i] = sum += std::pow(static_cast<double>(i + 1), -0.99);
  }
  std::mt19937_64 random(1);
  std::vector<Key> stream(kRequests);
  for (Key& key : stream) {
    const double at = std::uniform_real_distribution(0.0, sum)(random);
    key = keys[static_cast<std::size_t>(std::ranges::lower_bound(sums, at) - sums.begin())];
  }
  return stream;
}

double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Nanoseconds of CPU time a hit, beginning somewhere in the stream.
template <typename Cache>
double replay(Cache& cache, std::span<const Key> stream, std::size_t begin) {
  std::size_t right = 0;
  Value out;
  const double start = thread_seconds();
  for (const std::span part : {stream.subspan(begin), stream.first(begin)}) {
    for (const Key& key : part) {
      if (!cache.read(key, out)) std::abort();
      right += out[5] == static_cast<std::byte>(key.bytes()[5]);
    }
  }
  const double seconds = thread_seconds() - start;
  if (right != stream.size()) std::abort();
  return seconds * 1e9 / static_cast<double>(stream.size());
}

template <typename Cache>
double replay_twice(Cache& cache, std::span<const Key> stream) {
  std::array<double, 2> ns{};
  std::thread other([&] { ns[1] = replay(cache, stream, stream.size() / 2); });
  ns[0] = replay(cache, stream, 0);
  other.join();
  return (ns[0] + ns[1]) / 2;
}

double quantile(std::vector<double> values, double share) {
  std::ranges::sort(values);
  return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))];
}

void print_row(const char* separator, const char* name, const std::vector<double>& ns,
               const std::vector<double>& ratios, const char* more) {
  std::printf("%s\n  {\"name\": \"%s\", \"ns\": %.1f, \"ratio\": %.3f, ", separator, name,
              quantile(ns, 0.5), quantile(ratios, 0.5));
  std::printf("\"quartiles\": [%.3f, %.3f]%s}", quantile(ratios, 0.25), quantile(ratios, 0.75),
              more);
}

void measure(std::size_t entries, std::size_t rounds, const char* bar) {
  const std::vector<Key> stream = zipf_stream(entries);
  ActivationCache cache({.memory = entries * 1000 + (std::size_t{16} << 20)});
  MutexLru peer;
  constexpr std::array<std::int64_t, 1> kShape{sizeof(Value)};
  for (std::size_t i = 0; i < entries; ++i) {
    const Key key(tensorkey::blake3(std::as_bytes(std::span(&i, 1))));
    const Value value = value_of(key);
    const tensorkey::TensorParts tensor{.shape = kShape, .data = value};
    if (!cache.insert({.key = key, .seconds = 0.001, .tensors = {&tensor, 1}})) std::abort();
    peer.insert(key, value);
  }
  std::vector<double> one;
  std::vector<double> two;
  std::vector<double> ratios_one;
  std::vector<double> ratios_two;
  std::vector<double> scaling;
  for (std::size_t round = 0; round < rounds; ++round) {
    one.push_back(replay(cache, stream, 0));
    ratios_one.push_back(replay(peer, stream, 0) / one.back());
    two.push_back(replay_twice(cache, stream));
    ratios_two.push_back(replay_twice(peer, stream) / two.back());
    scaling.push_back(2 * one.back() / two.back());
  }
  std::printf("\"%zu entries, against a map and an LRU list under a mutex\": [", entries);
  print_row("", "one thread", one, ratios_one, bar);
  print_row(",", "two threads, each", two, ratios_two, "");
  print_row(",", "hits a CPU second: two threads over one", two, scaling, ", \"bar\": 1.7");
  std::printf("\n]");
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t rounds = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 11;
  std::printf(
      "{\"bench\": \"hit\", \"about\": \"What does a hit of 64 bytes cost with the key at hand, "
      "alone and with two threads?\\nKeys by Zipf's law (0.99), ready in the order of the stream; "
      "CPU time of the threads. A ratio is the time of a map and an LRU list under a mutex over "
      "ours, but for the last line of each table. Bars: 50 ns with 10,000 entries, 200 ns with a "
      "million.\", \"machine\": {\"compiler\": \"%s\", \"cpus\": %u}, \"rounds\": %zu, "
      "\"threads\": 2, \"tables\": {",
      __VERSION__, std::thread::hardware_concurrency(), rounds);
  measure(10'000, rounds, ", \"note\": \"bar: 50 ns\"");
  std::printf(",\n");
  measure(100'000, rounds, "");
  std::printf(",\n");
  measure(1'000'000, rounds, ", \"note\": \"bar: 200 ns\"");
  std::puts("}}");
  return EXIT_SUCCESS;
}
