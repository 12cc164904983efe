#include <tensorkey/cache.h>

#include <tensorkey/entry_format.h>
#include <tensorkey/error.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <string>

#include "store/cache_impl.h"

namespace tensorkey {
namespace {

constexpr std::chrono::milliseconds kPoll(100);
constexpr std::size_t kLeastMemory = std::size_t{64} << 10;

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "[ActivationCache" + message);
}

void check_memory(std::size_t memory, const char* where) {
  if (memory >= kLeastMemory) return;
  invalid(std::string(where) + "] memory is " + std::to_string(memory) +
          " bytes; expected at least " + std::to_string(kLeastMemory) + " (64 KiB)");
}

const CacheOptions& checked(const CacheOptions& options) {
  check_memory(options.memory, "");
  if (!std::isfinite(options.ttl) || options.ttl < 0) {
    invalid("] ttl is " + std::to_string(options.ttl) +
            " seconds; expected a finite number from 0 (for ever) up");
  }
  return options;
}

}  // namespace

std::uint64_t scope_id(std::string_view scope) {
  const Digest digest = blake3(std::as_bytes(std::span(scope)));
  std::uint64_t id = 0;
  std::memcpy(&id, digest.data(), sizeof id);
  return id;
}

ActivationCache::ActivationCache(const CacheOptions& options)
    : impl_(std::make_unique<Impl>(checked(options))) {}

ActivationCache::~ActivationCache() = default;

EntryPtr ActivationCache::find(const Key& key) {
  EntryPtr entry = impl_->memory.find(key);
  if (!entry) impl_->memory.count_misses({&key, 1}, {});
  return entry;
}

void ActivationCache::find(std::span<const Key> keys, std::span<EntryPtr> out) {
  if (keys.size() != out.size()) {
    invalid("::find] " + std::to_string(keys.size()) + " keys, but room for " +
            std::to_string(out.size()) + " entries");
  }
  impl_->memory.find(keys, out);
  std::vector<Key> missing;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (!out[i]) missing.push_back(keys[i]);
  }
  if (!missing.empty()) impl_->memory.count_misses(missing, {});
}

bool ActivationCache::read(const Key& key, std::span<std::byte> out) {
  if (impl_->memory.read(key, out)) return true;
  impl_->memory.count_misses({&key, 1}, {});
  return false;
}

bool ActivationCache::contains(const Key& key) const {
  return static_cast<bool>(impl_->memory.peek(key));
}

EntryPtr ActivationCache::insert(const EntryParts& parts, std::uint64_t scope) {
  return impl_->memory.insert(parts, scope);
}

bool ActivationCache::load(std::span<const std::byte> encoded, std::uint64_t scope,
                           const Secret& secret) {
  try {
    const EncodedEntry entry(encoded, {.secret = secret, .max_bytes = impl_->memory.bound()});
    return static_cast<bool>(impl_->memory.insert(entry.parts(), scope));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCorruption) throw;
    impl_->memory.count_corrupt();
    return false;
  }
}

EntryPtr ActivationCache::get_or_compute(const Key& key, const std::function<EntryPtr()>& compute,
                                         std::uint64_t scope, const std::function<void()>& poll) {
  internal::MemoryTier& memory = impl_->memory;
  internal::Flights& flights = impl_->flights;
  std::vector<internal::Flights::Claim> claims;
  bool circle = false;
  for (;;) {
    if (EntryPtr entry = memory.find(key)) return entry;
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
        memory.count_wait();
        return entry;
      }
      circle = outcome == internal::Flights::Outcome::kCircle;
      continue;
    }
    const internal::Lead lead(flights, role == internal::Flights::Role::kLeader ? flight : nullptr);
    if (EntryPtr entry = memory.find(key)) {  // stored between the two looks
      lead.land(entry);
      return entry;
    }
    memory.count_misses({&key, 1}, {});
    try {
      const EntryPtr computed = compute();
      if (!computed || computed->key() != key) {
        invalid("::get_or_compute] the computation returned " +
                std::string(computed ? "an entry with another key" : "null") +
                "; expected an entry with the key that was asked for");
      }
      EntryPtr stored = memory.insert(computed, scope);
      lead.land(stored);
      return stored;
    } catch (...) {
      lead.fail(std::current_exception());
      throw;
    }
  }
}

bool ActivationCache::remove(const Key& key) {
  const bool there = impl_->memory.remove(key);
  impl_->flights.detach(key);
  return there;
}

std::size_t ActivationCache::purge(std::uint64_t scope) {
  const std::size_t count = impl_->memory.purge(scope);
  impl_->flights.detach_all();
  return count;
}

void ActivationCache::clear() {
  impl_->memory.clear();
  impl_->flights.detach_all();
}

bool ActivationCache::pin(const Key& key) { return impl_->memory.pin(key, true); }

bool ActivationCache::unpin(const Key& key) { return impl_->memory.pin(key, false); }

void ActivationCache::resize(std::size_t memory) {
  check_memory(memory, "::resize");
  impl_->memory.resize(memory);
}

std::vector<EntryInfo> ActivationCache::snapshot() const { return impl_->memory.snapshot(); }

CacheStats ActivationCache::stats() const { return impl_->memory.stats(); }

void ActivationCache::reset_stats() { impl_->memory.reset_stats(); }

void ActivationCache::trace(const std::string& path, std::size_t limit) {
  impl_->memory.trace().open(path, limit);
}

}  // namespace tensorkey
