// One tuning of our policy alone, without shadows, for the table of what each is good for.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "policy/ranking.h"
#include "streams.h"

namespace bench {

using tensorkey::internal::PolicyNode;
using tensorkey::internal::Ranking;
using tensorkey::internal::Tuning;

inline std::vector<std::pair<std::string, Tuning>> fixed_tunings() {
  return {
      {"1 %, 1.5, 20", {.window = 0.01, .margin = 1.5, .period = 20}},
      {"1 %, 2, 80", {.window = 0.01, .margin = 2, .period = 80}},
      {"5 %, 1, 5", {.window = 0.05, .margin = 1, .period = 5}},
      {"20 %, 1, 2.5", {.window = 0.2, .margin = 1, .period = 2.5, .recency = 0.3}},
      {"20 %, 0, 2.5", {.window = 0.2, .margin = 0, .period = 2.5}},
      {"99 %, 0, 10", {.window = 0.99, .margin = 0, .period = 10}},
      {"no margin: 1 %, 0, 20", {.window = 0.01, .margin = 0, .period = 20}},
  };
}

// The hit ratio of entries of size 1.
inline double replay_fixed(const Stream& stream, std::uint64_t capacity, const Tuning& tuning) {
  Ranking ranking(capacity, tuning, ~std::size_t{0});
  std::unordered_map<std::uint64_t, std::unique_ptr<PolicyNode>> nodes;
  std::vector<PolicyNode*> victims;
  std::size_t hits = 0;
  for (const Access& access : stream) {
    if (const auto found = nodes.find(access.key); found != nodes.end()) {
      ++hits;
      ranking.touch(*found->second);
      ranking.advance(1);
      continue;
    }
    auto node = std::make_unique<PolicyNode>();
    node->request = {.hash = access.key, .size = 1, .cost = 1};
    if (!ranking.admit(node->request, nodes.size() >= capacity ? 1 : 0, victims)) continue;
    for (const PolicyNode* victim : victims) nodes.erase(victim->request.hash);
    ranking.link(*node);
    nodes.emplace(access.key, std::move(node));
  }
  return static_cast<double>(hits) / static_cast<double>(stream.size());
}

}  // namespace bench
