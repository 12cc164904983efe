#include "policy/policy.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

namespace tensorkey::internal {
namespace {

// An owner as the memory tier is one: a table of nodes, and a bound.
class Owner {
 public:
  explicit Owner(std::uint64_t capacity) : policy(capacity), bound(capacity) {}

  bool access(const Request& request) {
    if (const auto found = nodes.find(request.hash); found != nodes.end()) {
      policy.touch(*found->second);
      policy.count(1);
      if (policy.sampled(request.hash)) policy.record(found->second->request);
      return true;
    }
    const std::uint64_t room = bound > bytes ? bound - bytes : 0;
    const std::uint64_t needed = request.size > room ? request.size - room : 0;
    const std::uint64_t before = bytes;
    if (!policy.admit(request, needed, victims)) {
      EXPECT_TRUE(victims.empty());
      return false;
    }
    drop_victims();
    EXPECT_GE(before - bytes, needed);
    auto node = std::make_unique<PolicyNode>();
    node->request = request;
    policy.link(*node);
    bytes += request.size;
    nodes.emplace(request.hash, std::move(node));
    EXPECT_LE(bytes, bound);
    return false;
  }

  void resize(std::uint64_t capacity) {
    bound = capacity;
    policy.resize(capacity);
    if (bytes > bound) {
      policy.evict(bytes - bound, victims);
      drop_victims();
    }
    EXPECT_LE(bytes, bound);
  }

  void remove(std::uint64_t hash) {
    const auto found = nodes.find(hash);
    if (found == nodes.end()) return;
    policy.unlink(*found->second);
    bytes -= found->second->request.size;
    nodes.erase(found);
  }

  void drop_victims() {
    for (PolicyNode* victim : victims) {
      bytes -= victim->request.size;
      EXPECT_EQ(nodes.erase(victim->request.hash), 1u);
    }
  }

  Policy policy;
  std::uint64_t bound;
  std::uint64_t bytes = 0;
  std::unordered_map<std::uint64_t, std::unique_ptr<PolicyNode>> nodes;
  std::vector<PolicyNode*> victims;
};

TEST(Policy, KeepsTheBoundWhateverHappens) {
  for (const unsigned seed : {1u, 2u, 3u}) {
    std::mt19937_64 random(seed);
    Owner owner(100'000);
    for (int i = 0; i < 60'000; ++i) {
      const std::uint64_t key = (random() % 2000) * 0x9e3779b97f4a7c15u;
      const auto dice = random() % 1000;
      if (dice == 0) {
        owner.resize(1 + random() % 200'000);
      } else if (dice < 20) {
        owner.remove(key);
      } else {
        const std::uint64_t size = dice < 40 ? random() % 150'000 : 1 + key % 500;
        owner.access({key, size, static_cast<double>(random() % 7)});
      }
    }
  }
}

TEST(Policy, RepeatsItself) {
  std::vector<std::size_t> hits;
  for (int run = 0; run < 2; ++run) {
    std::mt19937_64 random(7);
    Owner owner(500);
    std::size_t count = 0;
    for (int i = 0; i < 50'000; ++i) {
      const std::uint64_t key = random() % 50 * (random() % 50) * 0x9e3779b97f4a7c15u;
      count += owner.access({key, 1, 1});
    }
    hits.push_back(count);
  }
  EXPECT_EQ(hits[0], hits[1]);
}

TEST(Policy, RefusesWhatCanNeverFit) {
  Owner owner(100);
  owner.access({1, 101, 1});
  EXPECT_TRUE(owner.nodes.empty());
  owner.access({2, 100, 1});
  EXPECT_EQ(owner.nodes.size(), 1u);
}

}  // namespace
}  // namespace tensorkey::internal
