// How often keys that are not resident were asked for: a table of tags, exact but for one chance in
// some thousands. Four bytes a key, sixteen keys a bucket of one cache line; in a full bucket the
// least frequent key is forgotten.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace tensorkey::internal {

class GhostTable {
 public:
  // heat: log2 of the frequency plus `now`, which grows by one whenever frequencies halve.
  [[nodiscard]] std::optional<double> find(std::uint64_t hash, double now) const noexcept;
  void put(std::uint64_t hash, double heat, double now) noexcept;
  void erase(std::uint64_t hash) noexcept;

  // Room for about `keys` keys. What is in the table stays, unless it shrinks.
  void reserve(std::size_t keys);
  [[nodiscard]] std::size_t keys() const noexcept { return buckets_.size() * kWays; }
  [[nodiscard]] std::size_t memory() const noexcept { return buckets_.size() * sizeof(Bucket); }

 private:
  static constexpr std::size_t kWays = 16;
  struct alignas(64) Bucket {
    std::array<std::uint16_t, kWays> tags;   // 0: free
    std::array<std::uint16_t, kWays> heats;  // in 1/256, modulo 2^16
  };

  [[nodiscard]] std::size_t index(std::uint64_t mixed) const noexcept {
    return static_cast<std::size_t>(mixed) & (buckets_.size() - 1);
  }

  std::vector<Bucket> buckets_;  // a power of two of them, or none
};

}  // namespace tensorkey::internal
