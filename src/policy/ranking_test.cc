#include "policy/ranking.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <set>
#include <vector>

#include "policy/ghosts.h"
#include "policy/heap.h"
#include "policy/policy.h"

namespace tensorkey::internal {
namespace {

TEST(NodeHeap, GivesTheLeastFirst) {
  std::mt19937_64 random(1);
  std::deque<PolicyNode> nodes(500);
  std::multiset<double> expected;
  std::vector<double> ranks(nodes.size());
  NodeHeap heap;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    ranks[i] = static_cast<double>(random() % 1000);
    nodes[i].request.hash = i;
    heap.push(nodes[i], ranks[i]);
  }
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (i % 3 == 0) {
      heap.remove(nodes[i]);
    } else {
      expected.insert(ranks[i]);
    }
  }
  for (const double rank : expected) {
    EXPECT_EQ(heap.top_rank(), rank);
    EXPECT_EQ(ranks[heap.top().request.hash], rank);
    heap.remove(heap.top());
  }
  EXPECT_TRUE(heap.empty());
}

TEST(GhostTable, RemembersFrequencies) {
  GhostTable ghosts;
  ghosts.put(1, 2.5, 0);  // no room yet
  EXPECT_FALSE(ghosts.find(1, 0));
  ghosts.reserve(4096);
  std::mt19937_64 random(2);
  std::vector<std::uint64_t> keys(1000);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    keys[i] = random();
    ghosts.put(keys[i], 1000 + static_cast<double>(i % 5), 1000);
  }
  for (const std::size_t room : {8192u, 4096u}) {  // grows, and shrinks to what it was
    ghosts.reserve(room);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      ASSERT_TRUE(ghosts.find(keys[i], 1003));
      EXPECT_NEAR(*ghosts.find(keys[i], 1003), 1000 + static_cast<double>(i % 5), 0.01);
    }
  }
  ghosts.erase(keys[0]);
  EXPECT_FALSE(ghosts.find(keys[0], 1000));
}

TEST(GhostTable, ForgetsTheLeastFrequent) {
  GhostTable ghosts;
  ghosts.reserve(1);  // one bucket
  std::mt19937_64 random(3);
  const std::uint64_t popular = random();
  ghosts.put(popular, 3, 0);
  for (int i = 0; i < 100; ++i) ghosts.put(random(), 0, 0);
  EXPECT_TRUE(ghosts.find(popular, 0));
}

class RankingTest : public testing::Test {
 protected:
  // Whether it was taken in.
  bool bring(std::uint64_t hash, std::uint64_t size, double cost, std::uint64_t needed) {
    nodes_.emplace_back().request = {hash, size, cost};
    if (!ranking_.admit(nodes_.back().request, needed, victims_)) return false;
    ranking_.link(nodes_.back());
    return true;
  }

  Ranking ranking_{100, {.window = 0, .margin = 1.5}, 1 << 20};
  std::deque<PolicyNode> nodes_;
  std::vector<PolicyNode*> victims_;
};

TEST_F(RankingTest, ADearCandidateTakesThePlaceOfACheapOne) {
  EXPECT_TRUE(bring(1, 50, 1, 0));
  EXPECT_TRUE(bring(2, 50, 100, 0));
  EXPECT_FALSE(bring(3, 50, 1, 50)) << "worth no more than either";
  EXPECT_TRUE(victims_.empty());
  EXPECT_TRUE(bring(4, 50, 1000, 50));
  ASSERT_EQ(victims_.size(), 1u);
  EXPECT_EQ(victims_[0]->request.hash, 1u);
  EXPECT_TRUE(ranking_.seen(1));
}

TEST_F(RankingTest, VictimsAreWeighedTogether) {
  for (std::uint64_t key = 1; key <= 10; ++key) EXPECT_TRUE(bring(key, 10, 1, 0));
  EXPECT_FALSE(bring(20, 100, 50, 100)) << "0.1 x 50 against ten of 1";
  EXPECT_EQ(ranking_.entries(), 10u);
  EXPECT_TRUE(bring(21, 100, 500, 100));
  EXPECT_EQ(victims_.size(), 10u);
}

TEST_F(RankingTest, AHitIsSeenWhenTheEntryComesUp) {
  EXPECT_TRUE(bring(1, 50, 1, 0));
  EXPECT_TRUE(bring(2, 50, 1, 0));
  for (int i = 0; i < 5; ++i) ranking_.touch(nodes_[0]);
  ranking_.evict(1, victims_);
  ASSERT_EQ(victims_.size(), 1u);
  EXPECT_EQ(victims_[0]->request.hash, 2u);
}

TEST_F(RankingTest, AHotEntryIsWrittenOnceATick) {
  EXPECT_TRUE(bring(1, 50, 1, 0));
  for (int i = 0; i < 100; ++i) ranking_.touch(nodes_[0]);
  const std::uint32_t marks = nodes_[0].marks;
  ranking_.touch(nodes_[0]);
  EXPECT_EQ(nodes_[0].marks, marks);
  ranking_.advance(1000);
  ranking_.touch(nodes_[0]);
  EXPECT_NE(nodes_[0].marks, marks);
}

TEST_F(RankingTest, ChangingTheTuningKeepsTheEntries) {
  for (std::uint64_t key = 1; key <= 10; ++key) EXPECT_TRUE(bring(key, 10, 1, 0));
  for (const double window : {0.99, 0.01, 0.5}) {
    ranking_.tune({.window = window, .margin = 0, .period = 3, .recency = 1});
    EXPECT_EQ(ranking_.entries(), 10u);
    ranking_.advance(500);
  }
  ranking_.evict(100, victims_);
  EXPECT_EQ(victims_.size(), 10u);
}

// The bytes of the policy count in the bound of the cache, so they are bounded too.
TEST(PolicyMemory, StaysASmallPartOfTheCapacity) {
  for (const std::uint64_t capacity : {10'000ull, 1'000'000ull, 100'000'000ull}) {
    Policy policy(capacity);
    std::mt19937_64 random(4);
    std::deque<PolicyNode> nodes;
    std::vector<PolicyNode*> free;
    std::vector<PolicyNode*> victims;
    std::uint64_t used = 0;
    for (int i = 0; i < 200'000; ++i) {
      const Request request{random() % 50'000 * 0x9e3779b97f4a7c15u, 1500, 1};
      const std::uint64_t needed = used + 1500 > capacity ? used + 1500 - capacity : 0;
      if (!policy.admit(request, needed, victims)) continue;
      for (PolicyNode* victim : victims) free.push_back(victim);
      used -= victims.size() * 1500;
      if (free.empty()) free.push_back(&nodes.emplace_back());
      free.back()->request = request;
      policy.link(*free.back());
      free.pop_back();
      used += 1500;
    }
    EXPECT_LE(policy.memory(), capacity / 16 + 4096) << capacity;
    EXPECT_LE(sizeof(PolicyNode), 64u);
  }
}

}  // namespace
}  // namespace tensorkey::internal
