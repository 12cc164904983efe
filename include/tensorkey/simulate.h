// The policy simulator: replays a stream of accesses through a cache of a given size under ours and
// other eviction policies, and counts. No values are held; replaying ours drives the very class
// that the memory tier drives. For choosing a bound, and for judging policies.
//
// Functions are pure, deterministic and thread-safe. A policy that does not exist, a capacity of 0
// and a trace that cannot be read are an Error (kInvalidArgument), which names the line.
//
//   std::ifstream file("trace.txt");                       // one request a line: key [size [cost]]
//   const std::vector<Access> trace = read_trace(file);
//   const Replay ours = simulate("tensorkey", trace, 2 << 30);
//   const Replay lru = simulate("lru", trace, 2 << 30);
//   std::cout << ours.hit_ratio() << " against " << lru.hit_ratio() << '\n';
#pragma once

#include <cstdint>
#include <istream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <tensorkey/export.h>

namespace tensorkey {

struct Access {
  std::uint64_t key = 0;
  std::uint64_t size = 1;  // bytes, metadata included
  double cost = 1;         // what a hit saves, in any unit; not negative
};

struct Replay {
  std::string policy;
  std::uint64_t requests = 0;
  std::uint64_t hits = 0;
  std::uint64_t bytes = 0;      // asked for
  std::uint64_t hit_bytes = 0;  // of them, found
  double cost = 0;              // of all requests, had nothing been kept
  double saved = 0;             // of it, by hits
  std::uint64_t evictions = 0;
  std::uint64_t rejections = 0;  // misses that were not kept

  // 0 for an empty trace.
  [[nodiscard]] TENSORKEY_EXPORT double hit_ratio() const noexcept;
  [[nodiscard]] TENSORKEY_EXPORT double byte_hit_ratio() const noexcept;
  [[nodiscard]] TENSORKEY_EXPORT double saved_ratio() const noexcept;
};

// The names that simulate() knows, ours first and the optimum last:
//   tensorkey          ours, docs/eviction.md
//   lru, sieve, s3-fifo, arc, never-evict
//   w-tinylfu          1 % window, frequency; victims aggregated when sizes differ
//   w-tinylfu-climber  the same, its window moved by a hill climber
//   w-tinylfu-cost     the same as w-tinylfu, by frequency x cost
//   gdsf               frequency x cost by size, with ageing
//   belady             farthest next use, with bypass: the optimum for equal sizes and costs only
TENSORKEY_EXPORT std::span<const std::string_view> simulated_policies() noexcept;

// An entry keeps the size and the cost of the request that brought it in. capacity is in the unit
// of the sizes: with sizes of 1, entries.
TENSORKEY_EXPORT Replay simulate(std::string_view policy, std::span<const Access> trace,
                                 std::uint64_t capacity);

// Plain text, one request a line: `key [size [cost]]`, fields separated by blanks or tabs, further
// fields ignored. A key is any word; equal words are equal keys. Blank lines and lines that start
// with # are skipped. Default size and cost: 1.
TENSORKEY_EXPORT std::vector<Access> read_trace(std::istream& input);

}  // namespace tensorkey
