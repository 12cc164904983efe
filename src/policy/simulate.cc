#include <tensorkey/error.h>
#include <tensorkey/simulate.h>

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_map>

#include "policy/peers/peer.h"

namespace tensorkey {
namespace {

using internal::Item;
using internal::Peer;
using internal::Scope;
using internal::TinyLfu;

struct Contestant {
  std::string_view name;
  std::unique_ptr<Peer> (*make)(const Scope&);
};

constexpr std::array kContestants = {
    Contestant{"tensorkey", internal::make_ours},
    Contestant{"lru", internal::make_lru},
    Contestant{"sieve", internal::make_sieve},
    Contestant{"s3-fifo", internal::make_s3_fifo},
    Contestant{"arc", internal::make_arc},
    Contestant{"w-tinylfu",
               [](const Scope& s) { return make_w_tinylfu(s, TinyLfu::kFixedWindow); }},
    Contestant{"w-tinylfu-climber",
               [](const Scope& s) { return make_w_tinylfu(s, TinyLfu::kClimber); }},
    Contestant{"w-tinylfu-cost", [](const Scope& s) { return make_w_tinylfu(s, TinyLfu::kCost); }},
    Contestant{"gdsf", internal::make_gdsf},
    Contestant{"never-evict", internal::make_never_evict},
    Contestant{"belady", internal::make_belady},
};

constexpr auto kNames = [] {
  std::array<std::string_view, kContestants.size()> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = kContestants[i].name;
  return names;
}();

constexpr std::uint64_t kMaxCapacity = std::uint64_t{1} << 62;

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

const Contestant& contestant(std::string_view name) {
  const auto found = std::ranges::find(kContestants, name, &Contestant::name);
  if (found != kContestants.end()) return *found;
  std::string known;
  for (const std::string_view each : kNames)
    known += (known.empty() ? "" : ", ") + std::string(each);
  throw Error(ErrorCode::kInvalidArgument, "[simulate] no policy is called \"" + std::string(name) +
                                               "\"; expected one of " + known);
}

// Dense ids and next uses, which all the policies share.
std::vector<Item> items_of(std::span<const Access> trace, Scope& scope) {
  std::vector<Item> items(trace.size());
  std::unordered_map<std::uint64_t, std::uint32_t> ids;
  std::vector<std::uint64_t> last;
  double bytes = 0;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    if (!(trace[i].cost >= 0 && trace[i].cost < std::numeric_limits<double>::infinity())) {
      throw Error(ErrorCode::kInvalidArgument,
                  "[simulate] the cost of access " + std::to_string(i) + " is " +
                      std::to_string(trace[i].cost) + "; expected a finite one, at least 0");
    }
    const auto [found, fresh] =
        ids.try_emplace(trace[i].key, static_cast<std::uint32_t>(ids.size()));
    if (fresh) {
      last.push_back(i);
      bytes += static_cast<double>(trace[i].size);
    }
    const std::uint32_t id = found->second;
    items[i] = {.id = id,
                .key = trace[i].key,
                .size = trace[i].size,
                .cost = trace[i].cost,
                .next = trace.size() + i};
    if (!fresh) items[last[id]].next = i;
    last[id] = i;
  }
  scope.keys = static_cast<std::uint32_t>(ids.size());
  const double mean = std::max(1.0, ratio(bytes, static_cast<double>(ids.size())));
  const double held = static_cast<double>(scope.capacity) / mean;
  scope.entries = static_cast<std::uint64_t>(
      std::clamp(held, 1.0, std::max(1.0, static_cast<double>(ids.size()))));
  return items;
}

}  // namespace

double Replay::hit_ratio() const noexcept {
  return ratio(static_cast<double>(hits), static_cast<double>(requests));
}
double Replay::byte_hit_ratio() const noexcept {
  return ratio(static_cast<double>(hit_bytes), static_cast<double>(bytes));
}
double Replay::saved_ratio() const noexcept { return ratio(saved, cost); }

std::span<const std::string_view> simulated_policies() noexcept { return kNames; }

Replay simulate(std::string_view policy, std::span<const Access> trace, std::uint64_t capacity) {
  const Contestant& chosen = contestant(policy);
  // Above the limit, a sum of two sizes might not fit.
  if (capacity == 0 || capacity > kMaxCapacity) {
    throw Error(
        ErrorCode::kInvalidArgument,
        "[simulate] the capacity is " + std::to_string(capacity) + "; expected from 1 to 2^62");
  }
  Scope scope{.capacity = capacity};
  const std::vector<Item> items = items_of(trace, scope);
  const std::unique_ptr<Peer> peer = chosen.make(scope);
  Replay replay{.policy = std::string(policy)};
  for (const Item& item : items) {
    const bool hit = peer->access(item);
    ++replay.requests;
    replay.bytes += item.size;
    replay.cost += item.cost;
    if (hit) {
      ++replay.hits;
      replay.hit_bytes += item.size;
      replay.saved += item.cost;
    }
  }
  replay.evictions = peer->evictions();
  replay.rejections = peer->rejections();
  return replay;
}

}  // namespace tensorkey
