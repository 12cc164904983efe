#include <tensorkey/cache.h>

#include <tensorkey/entry_format.h>
#include <tensorkey/error.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <limits>
#include <string>
#include <thread>

#include "store/cache_impl.h"
#include "store/disk/disk.h"
#include "store/disk/pack.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

constexpr std::chrono::milliseconds kPoll(100);
constexpr double kForever = std::numeric_limits<double>::infinity();
constexpr std::size_t kNoBound = std::numeric_limits<std::size_t>::max();
constexpr std::size_t kLeastMemory = std::size_t{64} << 10;

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "[ActivationCache" + message);
}

// `off`: whether there may be no memory tier.
void check_memory(std::size_t memory, const char* where, bool off) {
  if (memory >= kLeastMemory || (off && memory == 0)) return;
  invalid(std::string(where) + "] memory is " + std::to_string(memory) +
          " bytes; expected at least " + std::to_string(kLeastMemory) + " (64 KiB)");
}

const CacheOptions& checked(const CacheOptions& options) {
  check_memory(options.memory, "", !options.disk.empty() || !options.pack.empty());
  if (!std::isfinite(options.ttl) || options.ttl < 0) {
    invalid("] ttl is " + std::to_string(options.ttl) +
            " seconds; expected a finite number from 0 (for ever) up");
  }
  if (std::isnan(options.lease_timeout)) {
    invalid("] lease_timeout is not a number; expected seconds");
  }
  if (options.disk_limit != 0 && options.disk_limit < internal::DiskTier::kLeastLimit) {
    invalid("] disk_limit is " + std::to_string(options.disk_limit) +
            " bytes; expected at least 4 MiB");
  }
  if (options.disk.empty() && options.disk_limit != 0) {
    invalid("] disk_limit is given without disk; expected both, or neither");
  }
  return options;
}

}  // namespace

std::uint64_t scope_id(std::string_view scope) {
  return std::hash<Key>{}(Key(blake3(std::as_bytes(std::span(scope)))));
}

ActivationCache::ActivationCache(const CacheOptions& options)
    : impl_(std::make_unique<Impl>(checked(options))) {}

ActivationCache::~ActivationCache() = default;

EntryPtr ActivationCache::find(const Key& key) {
  EntryPtr entry;
  find({&key, 1}, {&entry, 1});
  return entry;
}

void ActivationCache::find(std::span<const Key> keys, std::span<EntryPtr> out) {
  if (keys.size() != out.size()) {
    invalid("::find] " + std::to_string(keys.size()) + " keys, but room for " +
            std::to_string(out.size()) + " entries");
  }
  impl_->tiers.find(keys, out, std::nullopt);
  std::vector<Key> missing;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (!out[i]) missing.push_back(keys[i]);
  }
  if (!missing.empty()) impl_->tiers.memory.count_misses(missing, {});
}

bool ActivationCache::read(const Key& key, std::span<std::byte> out) {
  bool found = false;
  read({&key, 1}, out, {&found, 1});
  return found;
}

void ActivationCache::read(std::span<const Key> keys, std::span<std::byte> out,
                           std::span<bool> found) {
  if (keys.size() != found.size() ||
      (keys.empty() ? !out.empty() : out.size() % keys.size() != 0)) {
    invalid("::read] " + std::to_string(keys.size()) + " keys, " + std::to_string(found.size()) +
            " flags and " + std::to_string(out.size()) +
            " bytes; expected a flag and a row of equal length for each key");
  }
  if (keys.empty()) return;
  impl_->tiers.read(keys, out, found);
  std::vector<Key> missing;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (!found[i]) missing.push_back(keys[i]);
  }
  if (!missing.empty()) impl_->tiers.memory.count_misses(missing, {});
}

bool ActivationCache::contains(const Key& key) const { return impl_->tiers.contains(key); }

EntryPtr ActivationCache::insert(const EntryParts& parts, std::uint64_t scope) {
  EntryPtr entry = impl_->tiers.keep(parts, scope);
  if (entry) impl_->write(entry, scope, kForever);
  return entry;
}

std::size_t ActivationCache::insert_rows(std::span<const Key> keys, const TensorView& rows,
                                         double seconds, std::uint64_t scope) {
  check_view(rows, "ActivationCache::insert_rows");
  if (rows.shape.empty() || static_cast<std::size_t>(rows.shape[0]) != keys.size()) {
    invalid("::insert_rows] the rows are not as many as the keys; expected " +
            std::to_string(keys.size()) + " along the first dim");
  }
  if (!rows.dtype_params.empty()) {
    throw Error(ErrorCode::kUnsupported, "[ActivationCache::insert_rows] an entry cannot hold " +
                                             std::string(to_string(rows.dtype)));
  }
  constexpr std::size_t kPart = 256;  // entries that are written together
  std::vector<EntryPtr> entries;
  entries.reserve(std::min(keys.size(), kPart));
  std::vector<std::byte> scratch;
  std::size_t accepted = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const TensorView row = internal::row_view(rows, static_cast<std::int64_t>(i));
    const TensorParts tensor{
        .dtype = row.dtype, .shape = row.shape, .data = internal::logical_bytes(row, scratch)};
    EntryPtr entry =
        impl_->tiers.keep({.key = keys[i], .seconds = seconds, .tensors = {&tensor, 1}}, scope);
    if (entry) entries.push_back(std::move(entry));
    if (entries.size() < kPart && i + 1 < keys.size()) continue;
    accepted += entries.size();
    if (internal::Store* const store = impl_->tiers.store()) {
      store->put(entries, scope, impl_->tiers.secret(std::nullopt), kForever);
    }
    entries.clear();
  }
  return accepted;
}

bool ActivationCache::load(std::span<const std::byte> encoded, std::uint64_t scope,
                           const Secret& secret) {
  const std::size_t bound = impl_->tiers.memory.bound();
  try {
    const EncodedEntry entry(encoded,
                             {.secret = secret, .max_bytes = bound == 0 ? kNoBound : bound});
    return static_cast<bool>(insert(entry.parts(), scope));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCorruption) throw;
    impl_->tiers.memory.count_corrupt();
    return false;
  }
}

// Waits for the process that computes a key: until it is found, or is this process's to compute, in
// which case the lead may hold its lease.
EntryPtr ActivationCache::Impl::await_process(const Key& key, internal::Lead& lead,
                                              const std::function<void()>& poll) {
  using Claim = internal::Tiers::Claim;
  using Clock = std::chrono::steady_clock;
  const std::chrono::duration<double> patience(tiers.lease_patience(std::nullopt));
  const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
  auto polled = Clock::now();
  for (std::chrono::microseconds pause = internal::kFirstPoll;;
       pause = internal::next_poll(pause)) {
    EntryPtr found;
    Claim claim = Claim::kCompute;
    tiers.claim({&key, 1}, std::nullopt, {&found, 1}, {&claim, 1});
    if (claim == Claim::kLeased) lead.hold(*tiers.store(), key);
    if (claim != Claim::kOthers) return found;
    if (Clock::now() >= until) {
      tiers.store()->distrust(key);
      return nullptr;
    }
    if (poll && Clock::now() >= polled + kPoll) {
      poll();
      polled = Clock::now();
    }
    std::this_thread::sleep_for(pause);
  }
}

// Has an entry written: at once if another process may wait for it.
void ActivationCache::Impl::write(const EntryPtr& entry, std::uint64_t scope, double patience,
                                  bool now) {
  internal::Store* const store = tiers.store();
  if (store == nullptr) return;
  const Secret secret = tiers.secret(std::nullopt);
  if (now) {
    store->publish({&entry, 1}, scope, secret);
  } else {
    store->put({&entry, 1}, scope, secret, patience);
  }
}

EntryPtr ActivationCache::get_or_compute(const Key& key, const std::function<EntryPtr()>& compute,
                                         std::uint64_t scope, const std::function<void()>& poll) {
  internal::Tiers& tiers = impl_->tiers;
  internal::Flights& flights = impl_->flights;
  const auto look = [&] {
    EntryPtr entry;
    tiers.find({&key, 1}, {&entry, 1}, std::nullopt);
    return entry;
  };
  std::vector<internal::Flights::Claim> claims;
  bool circle = false;
  for (;;) {
    if (EntryPtr entry = look()) return entry;
    flights.claim({&key, 1}, claims);
    const auto& [flight, role] = claims[0];
    if (role == internal::Flights::Role::kNested) {
      invalid(
          "::get_or_compute] the computation of this key asks for the same key; expected one "
          "that ends");
    }
    if (role == internal::Flights::Role::kFollower && !circle) {
      const auto [outcome, entry] = flights.wait(flight, std::chrono::steady_clock::now() + kPoll);
      if (outcome == internal::Flights::Outcome::kDeadline) {
        if (poll) poll();
        continue;
      }
      if (outcome == internal::Flights::Outcome::kLanded) {
        tiers.memory.count_wait();
        return entry;
      }
      circle = outcome == internal::Flights::Outcome::kCircle;
      continue;
    }
    internal::Lead lead(flights, role == internal::Flights::Role::kLeader ? flight : nullptr);
    // Stored between the two looks, or by another process.
    EntryPtr known = tiers.memory.find(key);
    if (!known) known = impl_->await_process(key, lead, poll);
    if (known) {
      lead.land(known);
      return known;
    }
    tiers.memory.count_misses({&key, 1}, {});
    try {
      const EntryPtr computed = compute();
      if (!computed || computed->key() != key) {
        invalid("::get_or_compute] the computation returned " +
                std::string(computed ? "an entry with another key" : "null") +
                "; expected an entry with the key that was asked for");
      }
      EntryPtr stored = tiers.memory.insert(computed, scope);
      impl_->write(stored, scope, stored->seconds(), lead.leased());
      lead.land(stored);
      return stored;
    } catch (...) {
      lead.fail(std::current_exception());
      throw;
    }
  }
}

bool ActivationCache::remove(const Key& key) {
  const bool there = impl_->tiers.remove(key);
  impl_->flights.detach(key);
  return there;
}

std::size_t ActivationCache::purge(std::uint64_t scope) {
  const std::size_t count = impl_->tiers.purge(scope);
  impl_->flights.detach_all();
  return count;
}

void ActivationCache::clear() {
  impl_->tiers.clear();
  impl_->flights.detach_all();
}

bool ActivationCache::pin(const Key& key) { return impl_->tiers.pin(key, true); }

bool ActivationCache::unpin(const Key& key) { return impl_->tiers.pin(key, false); }

void ActivationCache::resize(std::size_t memory) {
  check_memory(memory, "::resize", false);
  if (impl_->tiers.memory.bound() == 0) {
    invalid("::resize] the cache has no memory tier; expected one that was made with memory");
  }
  impl_->tiers.memory.resize(memory);
}

bool ActivationCache::has_store() const noexcept { return !impl_->tiers.stores().empty(); }

bool ActivationCache::flush(double seconds) {
  internal::Store* const store = impl_->tiers.store();
  return store == nullptr || store->flush(seconds);
}

void ActivationCache::refresh() {
  if (internal::Store* const store = impl_->tiers.store()) store->refresh();
}

std::size_t ActivationCache::pack(const std::string& path, std::optional<std::uint64_t> scope) {
  internal::PackWriter writer(path, 0600);
  flush(kForever);
  for (const auto& store : impl_->tiers.stores()) {
    store->export_entries(
        scope, [&](const Key& key, std::uint64_t its, std::int64_t stored,
                   std::span<const std::byte> encoded) { writer.add(key, its, stored, encoded); });
  }
  const Secret secret = impl_->tiers.secret(std::nullopt);
  const std::int64_t now = std::time(nullptr);
  for (const EntryInfo& info : snapshot()) {
    if (scope && info.scope != *scope) continue;
    const EntryPtr entry = impl_->tiers.memory.peek(info.key);
    if (entry) writer.add(info.key, info.scope, now, encode_entry(*entry, secret));
  }
  writer.finish();
  return writer.entries();
}

std::vector<EntryInfo> ActivationCache::snapshot() const { return impl_->tiers.memory.snapshot(); }

CacheStats ActivationCache::stats() const { return impl_->tiers.stats(); }

void ActivationCache::reset_stats() { impl_->tiers.reset_stats(); }

void ActivationCache::trace(const std::string& path, std::size_t limit) {
  impl_->tiers.memory.trace().open(path, limit);
}

}  // namespace tensorkey
