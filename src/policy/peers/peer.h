// The other policies that the simulator knows. Each is written from its paper, aware of sizes.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace tensorkey::internal {

// One request of a replay; ids are dense.
struct Item {
  std::uint32_t id = 0;
  std::uint64_t key = 0;
  std::uint64_t size = 1;
  double cost = 1;
  std::uint64_t next =
      0;  // the position of the next request for it; beyond the end if there is none
};

// What a peer may know before the replay.
struct Scope {
  std::uint64_t capacity = 0;
  std::uint32_t keys = 0;     // ids are below this
  std::uint64_t entries = 0;  // that the cache holds, about: capacity by the mean size of a key
};

class Peer {
 public:
  Peer() = default;
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  virtual ~Peer() = default;

  // Whether it was a hit. A miss may bring it in.
  virtual bool access(const Item& item) = 0;

  [[nodiscard]] std::uint64_t evictions() const noexcept { return evictions_; }
  [[nodiscard]] std::uint64_t rejections() const noexcept { return rejections_; }

 protected:
  std::uint64_t evictions_ = 0;
  std::uint64_t rejections_ = 0;
};

std::unique_ptr<Peer> make_lru(const Scope& scope);
std::unique_ptr<Peer> make_never_evict(const Scope& scope);
std::unique_ptr<Peer> make_sieve(const Scope& scope);
std::unique_ptr<Peer> make_s3_fifo(const Scope& scope);
std::unique_ptr<Peer> make_arc(const Scope& scope);
std::unique_ptr<Peer> make_gdsf(const Scope& scope);
std::unique_ptr<Peer> make_belady(const Scope& scope);
std::unique_ptr<Peer> make_ours(const Scope& scope);

enum class TinyLfu { kFixedWindow, kClimber, kCost };
std::unique_ptr<Peer> make_w_tinylfu(const Scope& scope, TinyLfu kind);

}  // namespace tensorkey::internal
