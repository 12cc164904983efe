#include "store/tiers.h"

#include <algorithm>

#include "store/disk/disk.h"
#include "store/disk/pack_store.h"

namespace tensorkey::internal {
namespace {

constexpr std::uint64_t kToldHits = 16;  // a hit in memory out of so many is told to the store
constexpr double kLongestLease = 0.5;    // seconds, unless the caller says another number
constexpr double kLongestWait = 1e6;  // seconds: as good as for ever, and a time that clocks have

}  // namespace

Tiers::Tiers(const CacheOptions& options)
    : memory(options), secret_(options.secret), lease_timeout_(options.lease_timeout) {
  if (!options.disk.empty()) {
    stores_.push_back(std::make_unique<DiskTier>(options));
    store_ = stores_.back().get();
  }
  if (!options.pack.empty()) {
    stores_.push_back(std::make_unique<PackStore>(options));
    pack_ = stores_.back().get();
  }
}

Secret Tiers::secret(const Secret& own) const noexcept {
  if (own || !secret_) return own;
  return std::span<const std::uint8_t, 32>(*secret_);
}

void Tiers::find(std::span<const Key> keys, std::span<EntryPtr> out, const Secret& secret) {
  memory.find(keys, out);
  if (stores_.empty()) return;
  if (store_ != nullptr) {
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (!out[i] || ++turn_ % kToldHits != 0) continue;
      store_->touch(keys[i], out[i]->seconds(), static_cast<double>(kToldHits));
    }
  }
  find_below(keys, out, secret);
}

void Tiers::find_below(std::span<const Key> keys, std::span<EntryPtr> out, const Secret& secret) {
  for (const std::unique_ptr<Store>& store : stores_) {
    std::vector<Key> missing;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (out[i]) continue;
      missing.push_back(keys[i]);
      places.push_back(i);
    }
    if (missing.empty()) return;
    std::uint64_t found = 0;
    const std::uint64_t removals = removals_;
    store->find(missing, this->secret(secret),
                [&](std::size_t i, const EntryParts& parts, std::uint64_t scope) {
                  EntryPtr entry = memory.insert(parts, scope);
                  out[places[i]] = entry ? std::move(entry) : make_entry(parts);
                  ++found;
                });
    if (found == 0) continue;
    memory.count_stored_hits(found);
    if (removals_ == removals) continue;
    for (std::size_t i = 0; i < missing.size(); ++i) {
      if (out[places[i]]) memory.remove(missing[i]);
    }
  }
}

void Tiers::read(std::span<const Key> keys, std::span<std::byte> out, std::span<bool> found) {
  const std::size_t bytes = out.size() / keys.size();
  std::ptrdiff_t known = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    found[i] = memory.read(keys[i], out.subspan(i * bytes, bytes));
    known += found[i] ? 1 : 0;
  }
  for (const std::unique_ptr<Store>& store : stores_) {
    if (known == std::ssize(found)) return;
    store->read(keys, out, found, secret(std::nullopt));
    const std::ptrdiff_t now = std::ranges::count(found, true);
    memory.count_stored_hits(static_cast<std::uint64_t>(now - known));
    known = now;
  }
}

bool Tiers::contains(const Key& key) {
  if (memory.peek(key)) return true;
  return std::ranges::any_of(stores_, [&](const auto& store) { return store->contains(key); });
}

EntryPtr Tiers::keep(const EntryParts& parts, std::uint64_t scope) {
  EntryPtr entry = memory.insert(parts, scope);
  if (!entry && store_ != nullptr) entry = make_entry(parts);
  return entry;
}

bool Tiers::remove(const Key& key) {
  bool there = false;
  for (const std::unique_ptr<Store>& store : stores_) there |= store->remove(key);
  ++removals_;
  return memory.remove(key) || there;
}

std::size_t Tiers::purge(std::uint64_t scope) {
  std::size_t count = 0;
  for (const std::unique_ptr<Store>& store : stores_) count = std::max(count, store->purge(scope));
  ++removals_;
  // An entry is in memory and below: the larger number is that of all.
  return std::max(count, memory.purge(scope));
}

void Tiers::clear() {
  for (const std::unique_ptr<Store>& store : stores_) store->clear();
  ++removals_;
  memory.clear();
}

bool Tiers::pin(const Key& key, bool pinned) {
  if (memory.pin(key, pinned)) return true;
  if (!pinned || stores_.empty()) return false;
  EntryPtr entry;
  find_below({&key, 1}, {&entry, 1}, std::nullopt);
  return entry && memory.pin(key, pinned);
}

void Tiers::claim(std::span<const Key> keys, const Secret& secret, std::span<EntryPtr> found,
                  std::span<Claim> claims) {
  std::ranges::fill(claims, Claim::kCompute);
  if (store_ == nullptr || keys.size() > Leases::kMost) return;
  const bool shared = store_->shared();
  // Who was there the last time may have stored them, and gone.
  if (!company_.exchange(shared) && !shared) return;
  std::vector<std::uint8_t> mine(keys.size());
  if (shared) store_->lease(keys, mine);
  try {
    // Who had a lease published before he gave it back, so this look sees it.
    store_->refresh();
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (store_->contains(keys[i])) find_below(keys.subspan(i, 1), found.subspan(i, 1), secret);
      if (found[i]) {
        claims[i] = Claim::kFound;
      } else if (mine[i] != 0) {
        claims[i] = Claim::kLeased;
      } else if (shared && !store_->distrusted(keys[i])) {
        claims[i] = Claim::kOthers;
      }
    }
  } catch (...) {
    std::ranges::fill(claims, Claim::kCompute);
    release(keys, mine, claims);
    throw;
  }
  release(keys, mine, claims);
}

// Gives back the leases that were had for nothing.
void Tiers::release(std::span<const Key> keys, std::span<const std::uint8_t> mine,
                    std::span<const Claim> claims) const noexcept {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (mine[i] != 0 && claims[i] != Claim::kLeased) store_->release(keys.subspan(i, 1));
  }
}

double Tiers::lease_patience(std::optional<double> seconds) const noexcept {
  if (lease_timeout_ >= 0) return std::min(lease_timeout_, kLongestWait);
  return std::min(seconds.value_or(kLongestLease), kLongestLease);
}

CacheStats Tiers::stats() const {
  CacheStats stats = memory.stats();
  if (store_ != nullptr) stats.disk = store_->stats();
  if (pack_ != nullptr) stats.pack = pack_->stats();
  return stats;
}

void Tiers::reset_stats() {
  memory.reset_stats();
  for (const std::unique_ptr<Store>& store : stores_) store->reset_stats();
}

}  // namespace tensorkey::internal
