#include <tensorkey/memo.h>

#include <tensorkey/error.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <utility>

#include "memo/memo_impl.h"

namespace tensorkey {

using internal::Block;
using internal::is_row;
using internal::Lookup;

namespace internal {

bool has_leaf_names(const Entry& entry) {
  for (std::size_t k = 0; k < entry.tensor_count(); ++k) {
    if (entry.tensor(k).name != std::to_string(k)) return false;
  }
  return true;
}

}  // namespace internal

namespace {

double seconds_between(std::chrono::steady_clock::time_point start,
                       std::chrono::steady_clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

std::uint64_t stored_bytes(const Block& row) {
  std::uint64_t bytes = row.bytes;
  for (std::size_t k = 1; k < row.tensors; ++k) bytes += internal::leaf_of(row, k).bytes;
  return bytes;
}

}  // namespace

// --- Lookup

Secret MemoBatch::Impl::secret_of_entries() const noexcept {
  if (!secret) return tiers->secret(std::nullopt);
  return std::span<const std::uint8_t, 32>(*secret);
}

// The entry of a row. One that somebody put under this key with other contents is no answer.
EntryPtr MemoBatch::Impl::find(std::size_t slot) const {
  EntryPtr entry = tiers->memory.find(distinct.keys()[slot]);
  return is_row(entry) ? entry : nullptr;
}

void MemoBatch::Impl::know(std::size_t slot, EntryPtr entry) {
  entries[slot] = std::move(entry);
  if (example == nullptr) example = entries[slot].get();
}

void MemoBatch::Impl::count_hit(MemoStats& stats, std::size_t slot) const {
  const Block& row = internal::block_of(*entries[slot]);
  const std::uint64_t uses = distinct.uses(slot);
  stats.lookups += uses;
  stats.hits += uses;
  stats.duplicates += uses - 1;
  stats.seconds_saved += row.seconds * static_cast<double>(uses);
  stats.bytes_read += stored_bytes(row) * uses;
}

void MemoBatch::Impl::count_found(std::span<const std::size_t> slots, bool waited) {
  if (slots.empty()) return;
  const std::lock_guard lock(memo->mutex);
  for (const std::size_t slot : slots) {
    count_hit(memo->stats, slot);
    if (waited) memo->stats.waits += distinct.uses(slot);
  }
}

void Memo::Impl::count(Lookup reason, std::uint64_t rows) {
  stats.misses += rows;
  switch (reason) {
    case Lookup::kNew: stats.misses_new += rows; break;
    case Lookup::kEvicted: stats.misses_evicted += rows; break;
    case Lookup::kExpired: stats.misses_expired += rows; break;
    case Lookup::kHit: break;
  }
}

// Counts the missing slots from `first` on.
void MemoBatch::Impl::count_missing(std::size_t first) {
  const auto slots = std::span(missing_slots).subspan(first);
  if (slots.empty()) return;
  std::vector<Key> keys;
  keys.reserve(slots.size());
  for (const std::size_t slot : slots) keys.push_back(distinct.keys()[slot]);
  std::vector<Lookup> reasons(keys.size());
  tiers->memory.count_misses(keys, reasons);
  const std::lock_guard lock(memo->mutex);
  MemoStats& stats = memo->stats;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::uint64_t uses = distinct.uses(slots[i]);
    memo->count(reasons[i], 1);
    stats.lookups += uses;
    stats.hits += uses - 1;
    stats.duplicates += uses - 1;
  }
}

MemoBatch Memo::Impl::look_up(const std::shared_ptr<Impl>& memo, std::vector<Key> keys,
                              const KeyOptions& options, Keep keep,
                              std::optional<std::uint64_t> epoch, Flight flight,
                              Clock::time_point start) {
  auto batch = std::make_unique<MemoBatch::Impl>();
  batch->memo = memo;
  batch->tiers = &memo->tiers;
  batch->flights = &memo->flights;
  batch->keep = keep;
  batch->ticket = epoch.value_or(memo->pending.ticket());
  if (options.secret) std::ranges::copy(*options.secret, batch->secret.emplace().begin());
  batch->distinct = internal::DistinctRows(std::move(keys));
  const Clock::time_point digested = Clock::now();

  const internal::DistinctRows& distinct = batch->distinct;
  std::vector<EntryPtr>& entries = batch->entries;
  entries.resize(distinct.slots());
  memo->tiers.find(distinct.keys(), entries, batch->secret_of_entries());
  std::vector<std::size_t> absent;
  MemoStats found;
  for (std::size_t slot = 0; slot < entries.size(); ++slot) {
    if (is_row(entries[slot])) {
      batch->count_hit(found, slot);
      if (batch->example == nullptr) batch->example = entries[slot].get();
    } else {
      entries[slot] = nullptr;
      absent.push_back(slot);
    }
  }
  if (!absent.empty()) {
    batch->scope = scope_id(options.scope);
    if (flight == Flight::kShared) {
      batch->take_over(absent);
    } else {
      batch->take_over({}, absent);
    }
  }
  const Clock::time_point end = Clock::now();
  {
    const std::lock_guard lock(memo->mutex);
    MemoStats& stats = memo->stats;
    ++stats.batches;
    stats.lookups += found.lookups;
    stats.hits += found.hits;
    stats.duplicates += found.duplicates;
    stats.seconds_saved += found.seconds_saved;
    stats.bytes_read += found.bytes_read;
    stats.seconds_digest += seconds_between(start, digested);
    stats.seconds_lookup += seconds_between(digested, end);
  }
  return MemoBatch(std::move(batch));
}

// --- Memo

Memo::Memo(std::shared_ptr<ActivationCache> cache, const MemoOptions& options) {
  if (cache == nullptr) throw Error(ErrorCode::kInvalidArgument, "[Memo] the cache is null");
  impl_ = std::make_shared<Impl>(std::move(cache), options);
}

// What was never confirmed is never stored. Batches may outlive this: their tickets are old now.
Memo::~Memo() { impl_->pending.drop(); }

MemoBatch Memo::lookup(std::span<const TupleMember> members, const KeyOptions& options, Keep keep,
                       std::optional<std::uint64_t> epoch, Flight flight) {
  const Impl::Clock::time_point start = Impl::Clock::now();
  return Impl::look_up(impl_, internal::keys_of_rows(members, options), options, keep, epoch,
                       flight, start);
}

MemoBatch Memo::lookup(std::span<const Key> keys, const KeyOptions& options, Keep keep,
                       std::optional<std::uint64_t> epoch) {
  const Impl::Clock::time_point start = Impl::Clock::now();
  return Impl::look_up(impl_, {keys.begin(), keys.end()}, options, keep, epoch, Flight::kShared,
                       start);
}

std::vector<MissingRow> Memo::missing(std::span<const Key> keys) const {
  const internal::DistinctRows distinct({keys.begin(), keys.end()});
  std::vector<MissingRow> rows;
  for (std::size_t slot = 0; slot < distinct.slots(); ++slot) {
    const Key& key = distinct.keys()[slot];
    if (impl_->tiers.contains(key)) continue;
    MissingRow& row = rows.emplace_back(MissingRow{.position = distinct.first(slot)});
    switch (impl_->tiers.memory.why_missing(key)) {
      case Lookup::kEvicted: row.why = MissingRow::Why::kEvicted; break;
      case Lookup::kExpired: row.why = MissingRow::Why::kExpired; break;
      case Lookup::kHit:
      case Lookup::kNew: break;
    }
  }
  return rows;
}

std::size_t Memo::settle(bool valid) {
  return valid ? impl_->pending.confirm() : impl_->pending.drop();
}

std::uint64_t Memo::epoch() const noexcept { return impl_->pending.ticket(); }

std::size_t Memo::pending() const { return impl_->pending.count(); }

bool Memo::pending_full() const noexcept { return impl_->pending.full(); }

MemoStats Memo::stats() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->stats;
}

void Memo::reset_stats() {
  const std::lock_guard lock(impl_->mutex);
  impl_->stats = {};
}

ActivationCache& Memo::cache() const noexcept { return *impl_->cache; }

}  // namespace tensorkey
