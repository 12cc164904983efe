// The streams of requests that the hit-ratio bench replays. Every key is a random number, other
// ones for each seed; everything follows from the seed, by arithmetic that is the same on all
// machines.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include <tensorkey/simulate.h>

namespace bench {

using tensorkey::Access;
using Stream = std::vector<Access>;

// splitmix64
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(next() % bound); }
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double normal() {
    return std::sqrt(-2 * std::log(1 - unit())) * std::cos(2 * std::numbers::pi * unit());
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

 private:
  std::uint64_t state_;
};

inline std::vector<std::uint64_t> fresh_keys(std::size_t count, Random& random) {
  std::vector<std::uint64_t> keys(count);
  for (auto& key : keys) key = random.next();
  return keys;
}

// Draws ranks: rank r with probability proportional to (r + 1) ** -exponent.
class Zipf {
 public:
  Zipf(std::size_t count, double exponent) : sums_(count) {
    double sum = 0;
    for (std::size_t r = 0; r < count; ++r) {
      sums_[r] = sum += std::pow(static_cast<double>(r + 1), -exponent);
    }
  }
  std::size_t draw(Random& random) const {
    const double at = random.unit() * sums_.back();
    std::size_t low = 0;
    std::size_t high = sums_.size() - 1;
    while (low < high) {
      const std::size_t middle = (low + high) / 2;
      if (sums_[middle] > at) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

 private:
  std::vector<double> sums_;
};

inline void append_zipf(Stream& stream, const std::vector<std::uint64_t>& keys, double exponent,
                        std::size_t requests, Random& random) {
  const Zipf zipf(keys.size(), exponent);
  for (std::size_t i = 0; i < requests; ++i) stream.push_back({.key = keys[zipf.draw(random)]});
}

inline void append_loop(Stream& stream, const std::vector<std::uint64_t>& keys,
                        std::size_t requests) {
  for (std::size_t i = 0; i < requests; ++i) stream.push_back({.key = keys[i % keys.size()]});
}

// Each key once an epoch; with one_shots, one request in two is for a key never seen again.
inline Stream epochs(std::uint64_t seed, std::size_t keys, int count, bool reshuffled,
                     bool one_shots = false) {
  Random random(seed);
  std::vector<std::uint64_t> order = fresh_keys(keys, random);
  Stream stream;
  for (int epoch = 0; epoch < count; ++epoch) {
    if (reshuffled) random.shuffle(order);
    for (const std::uint64_t key : order) {
      while (one_shots && random.unit() < 0.5) stream.push_back({.key = random.next()});
      stream.push_back({.key = key});
    }
  }
  return stream;
}

inline Stream zipf(std::uint64_t seed, std::size_t keys, double exponent, std::size_t requests) {
  Random random(seed);
  Stream stream;
  append_zipf(stream, fresh_keys(keys, random), exponent, requests, random);
  return stream;
}

inline Stream zipf_loop_zipf(std::uint64_t seed, std::size_t keys, std::size_t each) {
  Random random(seed);
  Stream stream;
  append_zipf(stream, fresh_keys(keys, random), 0.99, each, random);
  append_loop(stream, fresh_keys(keys, random), each);
  append_zipf(stream, fresh_keys(keys, random), 0.99, each, random);
  return stream;
}

// Uniform in a window that moves on by one key every `stay` requests.
inline Stream bursts(std::uint64_t seed, std::size_t window, std::size_t keys, std::size_t stay) {
  Random random(seed);
  const std::vector<std::uint64_t> all = fresh_keys(keys + window, random);
  Stream stream;
  for (std::size_t i = 0; i < keys * stay; ++i) {
    stream.push_back({.key = all[i / stay + random.below(window)]});
  }
  return stream;
}

// A hot set under Zipf, and now and then a scan of keys, the same ones again if `repeated`.
inline Stream scans(std::uint64_t seed, std::size_t keys, double exponent, std::size_t scan,
                    bool repeated, std::size_t requests) {
  Random random(seed);
  const auto hot = fresh_keys(keys, random);
  auto cold = fresh_keys(scan, random);
  const Zipf popular(keys, exponent);
  Stream stream;
  while (stream.size() < requests) {
    for (std::size_t i = 0; i < 2 * scan; ++i) {
      stream.push_back({.key = hot[popular.draw(random)]});
    }
    if (!repeated) cold = fresh_keys(scan, random);
    append_loop(stream, cold, scan);
  }
  return stream;
}

// Zipf whose ranks change hands: every `pace` requests two keys swap places.
inline Stream drift(std::uint64_t seed, std::size_t keys, double exponent, std::size_t pace,
                    std::size_t requests) {
  Random random(seed);
  auto order = fresh_keys(keys, random);
  const Zipf popular(keys, exponent);
  Stream stream;
  for (std::size_t i = 0; i < requests; ++i) {
    if (i % pace == 0) std::swap(order[popular.draw(random)], order[random.below(keys)]);
    stream.push_back({.key = order[popular.draw(random)]});
  }
  return stream;
}

// Friendly to LRU: how many requests ago the key was asked for last is log-uniform up to `reach`;
// one request in eight is for a new key.
inline Stream recent(std::uint64_t seed, std::size_t reach, std::size_t requests) {
  Random random(seed);
  Stream stream;
  for (std::size_t i = 0; i < requests; ++i) {
    const auto back =
        static_cast<std::size_t>(std::exp(random.unit() * std::log(static_cast<double>(reach))));
    const bool fresh = back > i || random.below(8) == 0;
    stream.push_back({.key = fresh ? random.next() : stream[i - back].key});
  }
  return stream;
}

// Like a block device: hot keys under Zipf, loops of several lengths, scans, and short returns, in
// spells of some hundreds to thousands of requests.
inline Stream mixture(std::uint64_t seed, const std::vector<std::size_t>& loops, std::size_t hot,
                      double exponent, std::size_t requests) {
  Random random(seed);
  std::vector<std::vector<std::uint64_t>> keys;
  for (const std::size_t length : loops) keys.push_back(fresh_keys(length, random));
  std::vector<std::size_t> at(loops.size());
  const auto popular = fresh_keys(hot, random);
  const Zipf zipf(hot, exponent);
  Stream stream;
  while (stream.size() < requests) {
    const std::uint64_t kind = random.below(10);
    const std::size_t loop = random.below(loops.size());
    for (std::size_t left = 200 + random.below(3000); left > 0; --left) {
      std::uint64_t key = random.next();  // of a scan
      if (kind < 4) {
        key = popular[zipf.draw(random)];
      } else if (kind < 8) {
        key = keys[loop][at[loop]++ % loops[loop]];
      } else if (kind == 9 && stream.size() > 500) {
        key = stream[stream.size() - 1 - random.below(500)].key;
      }
      stream.push_back({.key = key});
    }
  }
  return stream;
}

// Like the web: a share of the requests for what nobody asks for again, some for old favourites
// under Zipf, the rest for objects that were published lately.
inline Stream newcomers(std::uint64_t seed, double once, std::size_t favourites, double exponent,
                        std::size_t requests) {
  Random random(seed);
  const auto old = fresh_keys(favourites, random);
  const Zipf zipf(favourites, exponent);
  std::vector<std::uint64_t> published;
  Stream stream;
  while (stream.size() < requests) {
    const double kind = random.unit();
    std::uint64_t key = random.next();
    if (kind > once && kind < once + (1 - once) / 2) {
      key = old[zipf.draw(random)];
    } else if (kind > once) {
      if (published.empty() || random.below(5) == 0) published.push_back(key);
      const auto age = static_cast<std::size_t>(std::exp(4.5 + 2.2 * random.normal()));
      key = published[published.size() - 1 - std::min(age, published.size() - 1)];
    }
    stream.push_back({.key = key});
  }
  return stream;
}

enum class Costs { kIndependent, kProportional, kSteeper };

// Gives each key a size, lognormal from 4 KiB to 64 MiB (three deviations either way), and a cost.
inline void give_sizes(Stream& stream, std::uint64_t seed, Costs costs) {
  for (Access& access : stream) {
    Random own(access.key ^ (seed << 1));
    const double exponent = 19 + own.normal() * 7 / 3;
    const double size = std::exp2(exponent < 12 ? 12 : exponent > 26 ? 26 : exponent);
    const double mibs = size / (1 << 20);
    access.size = static_cast<std::uint64_t>(size);
    access.cost = costs == Costs::kIndependent    ? std::exp2(own.normal() * 7 / 3)
                  : costs == Costs::kProportional ? mibs
                                                  : std::pow(mibs, 1.5);
  }
}

}  // namespace bench
