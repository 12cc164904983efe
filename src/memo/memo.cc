#include <tensorkey/memo.h>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <string>

#include "base/fork.h"
#include "memo/rows.h"
#include "store/cache_impl.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

using internal::Flights;
using internal::Lead;
using internal::Lookup;
using Clock = std::chrono::steady_clock;

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

std::string describe(DType dtype, std::span<const std::int64_t> shape) {
  std::string text(to_string(dtype));
  text += " (";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

void check_same_row(const Entry& known, DType dtype, std::span<const std::int64_t> shape) {
  const TensorParts tensor = known.tensor(0);
  if (tensor.dtype == dtype && std::ranges::equal(tensor.shape, shape)) return;
  invalid("[MemoBatch] a row of the output is " + describe(dtype, shape) +
          ", but other rows of this batch are " + describe(tensor.dtype, tensor.shape) +
          "; expected one dtype and shape for all rows");
}

bool is_row(const EntryPtr& entry) { return entry && entry->tensor_count() == 1; }

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The elements of a row in C order: where they are, or gathered into scratch.
std::span<const std::byte> elements(const TensorView& row, std::vector<std::byte>& scratch) {
  const std::size_t bytes = byte_count(row);
  if (internal::is_plain(row, false)) return {static_cast<const std::byte*>(row.data), bytes};
  scratch.resize(bytes);
  internal::read_logical(row, false, 0, scratch);
  return scratch;
}

}  // namespace

struct Memo::Impl {
  Impl(std::shared_ptr<ActivationCache> the_cache, const MemoOptions& the_options)
      : cache(std::move(the_cache)), options(the_options) {}

  void count(Lookup reason, std::uint64_t rows) {
    stats.misses += rows;
    switch (reason) {
      case Lookup::kNew: stats.misses_new += rows; break;
      case Lookup::kEvicted: stats.misses_evicted += rows; break;
      case Lookup::kExpired: stats.misses_expired += rows; break;
      case Lookup::kHit: break;
    }
  }

  std::shared_ptr<ActivationCache> cache;
  MemoOptions options;
  internal::ForkMutex mutex;
  MemoStats stats;  // guarded by mutex
};

struct MemoBatch::Impl {
  // A distinct row that was not in the cache.
  struct Open {
    std::size_t slot;
    Flights::FlightPtr flight;  // another thread computes it; null: this batch does
  };

  void take_over(std::span<const std::size_t> slots, std::span<const std::size_t> alone = {});
  [[nodiscard]] EntryPtr find(std::size_t slot) const;
  void know(std::size_t slot, EntryPtr entry);
  void count_hit(MemoStats& stats, std::size_t slot) const;

  std::shared_ptr<Memo::Impl> memo;
  std::shared_ptr<ActivationCache> cache;
  internal::MemoryTier* memory = nullptr;
  Flights* flights = nullptr;
  std::uint64_t scope = 0;
  internal::DistinctRows distinct;
  std::vector<EntryPtr> entries;           // of each slot; null: to be computed
  std::vector<std::int64_t> missing_rows;  // where each missing slot first appears, ascending
  std::vector<std::size_t> missing_slots;
  std::vector<Lead> leads;  // of the missing slots
  std::vector<Open> awaited;
  EntryPtr example;
};

MemoBatch::MemoBatch(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
MemoBatch::MemoBatch(MemoBatch&&) noexcept = default;
MemoBatch& MemoBatch::operator=(MemoBatch&&) noexcept = default;
MemoBatch::~MemoBatch() = default;

std::size_t MemoBatch::rows() const noexcept { return impl_->distinct.slot_of.size(); }

std::span<const std::int64_t> MemoBatch::missing() const noexcept { return impl_->missing_rows; }

const Entry* MemoBatch::example() const noexcept { return impl_->example.get(); }

void MemoBatch::Impl::know(std::size_t slot, EntryPtr entry) {
  if (!example) example = entry;
  entries[slot] = std::move(entry);
}

void MemoBatch::Impl::count_hit(MemoStats& stats, std::size_t slot) const {
  const Entry& entry = *entries[slot];
  const std::uint64_t uses = distinct.uses[slot];
  stats.lookups += uses;
  stats.hits += uses;
  stats.duplicates += uses - 1;
  stats.seconds_saved += entry.seconds() * static_cast<double>(uses);
  stats.bytes_read += entry.tensor(0).data.size() * uses;
}

// The entry of a row. One that somebody put under this key with other contents is no answer.
EntryPtr MemoBatch::Impl::find(std::size_t slot) const {
  EntryPtr entry = memory->find(distinct.keys[slot]);
  return is_row(entry) ? entry : nullptr;
}

// Claims the slots: each is found after all, or to be computed here, or awaited. Those of `alone`
// are computed here without a flight. REQUIRES: none of them is missing or awaited yet.
void MemoBatch::Impl::take_over(std::span<const std::size_t> slots,
                                std::span<const std::size_t> alone) {
  std::vector<Key> keys;
  for (const std::size_t slot : slots) keys.push_back(distinct.keys[slot]);
  std::vector<Lead> guards;
  guards.reserve(slots.size() + alone.size());  // from here on every flight has its guard
  std::vector<Flights::Claim> claims;
  flights->claim(keys, claims);
  for (const Flights::Claim& claim : claims) {
    guards.emplace_back(*flights, claim.role == Flights::Role::kLeader ? claim.flight : nullptr);
  }
  std::vector<std::size_t> found;
  std::vector<Key> missing_keys;
  const auto compute = [&](std::size_t slot, Lead lead) {
    missing_keys.push_back(distinct.keys[slot]);
    missing_rows.push_back(distinct.first[slot]);
    missing_slots.push_back(slot);
    leads.push_back(std::move(lead));
  };
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t slot = slots[i];
    if (claims[i].role == Flights::Role::kFollower) {
      awaited.push_back({.slot = slot, .flight = claims[i].flight});
    } else if (EntryPtr entry = find(slot)) {
      guards[i].land(entry);  // stored between the two looks
      know(slot, std::move(entry));
      found.push_back(slot);
    } else {
      compute(slot, std::move(guards[i]));
    }
  }
  for (const std::size_t slot : alone) compute(slot, Lead(*flights, nullptr));
  std::vector<Lookup> reasons(missing_keys.size());
  if (!missing_keys.empty()) memory->count_misses(missing_keys, reasons);

  const std::lock_guard lock(memo->mutex);
  MemoStats& stats = memo->stats;
  for (const std::size_t slot : found) count_hit(stats, slot);
  const std::size_t first = missing_slots.size() - reasons.size();
  for (std::size_t i = 0; i < reasons.size(); ++i) {
    const std::uint64_t uses = distinct.uses[missing_slots[first + i]];
    memo->count(reasons[i], 1);
    stats.lookups += uses;
    stats.hits += uses - 1;
    stats.duplicates += uses - 1;
  }
}

void MemoBatch::insert(std::size_t first, std::size_t count, const TensorView& output,
                       double seconds) {
  Impl& self = *impl_;
  check_view(output, "MemoBatch::insert");
  if (first > self.missing_slots.size() || count > self.missing_slots.size() - first) {
    invalid("[MemoBatch::insert] rows " + std::to_string(first) + " to " +
            std::to_string(first + count) + " of " + std::to_string(self.missing_slots.size()) +
            " missing ones");
  }
  if (output.shape.empty() || static_cast<std::size_t>(output.shape[0]) < count) {
    invalid("[MemoBatch::insert] the output is " + describe(output.dtype, output.shape) +
            "; expected at least " + std::to_string(count) + " rows along its first dim");
  }
  if (!output.dtype_params.empty()) {
    throw Error(ErrorCode::kUnsupported, "[MemoBatch::insert] outputs of dtype " +
                                             std::string(to_string(output.dtype)) +
                                             " are not cached");
  }
  if (self.example) check_same_row(*self.example, output.dtype, output.shape.subspan(1));
  const Clock::time_point start = Clock::now();
  const double share = count == 0 ? 0 : seconds / static_cast<double>(count);
  double saved = 0;
  std::uint64_t rejections = 0;
  std::vector<std::byte> scratch;
  std::vector<std::byte> encoded;
  for (std::size_t j = 0; j < count; ++j) {
    const std::size_t slot = self.missing_slots[first + j];
    const TensorView row = internal::row_view(output, static_cast<std::int64_t>(j));
    TensorParts tensor{.dtype = row.dtype, .shape = row.shape, .data = elements(row, scratch)};
    if (self.memo->options.codec != Codec::kRaw) {
      tensor.codec = encode(self.memo->options.codec, row.dtype, tensor.data, encoded);
      if (tensor.codec != Codec::kRaw) tensor.data = encoded;
    }
    const EntryParts parts{
        .key = self.distinct.keys[slot], .seconds = share, .tensors = {&tensor, 1}};
    EntryPtr entry = self.memory->insert(parts, self.scope);
    rejections += !entry;
    if (!is_row(entry)) entry = make_entry(parts);
    saved += share * static_cast<double>(self.distinct.uses[slot] - 1);
    self.leads[first + j].land(entry);
    self.know(slot, std::move(entry));
  }
  const std::lock_guard lock(self.memo->mutex);
  MemoStats& stats = self.memo->stats;
  stats.rejections += rejections;
  stats.seconds_saved += saved;
  stats.seconds_spent += seconds;
  stats.seconds_insert += seconds_since(start);
  stats.padded_rows += static_cast<std::uint64_t>(output.shape[0]) - count;
}

void MemoBatch::fail(const std::exception_ptr& error) noexcept {
  for (const Lead& lead : impl_->leads) lead.fail(error);
}

MemoBatch::Wait MemoBatch::wait(double seconds) {
  Impl& self = *impl_;
  self.missing_rows.clear();
  self.missing_slots.clear();
  self.leads.clear();
  Flights::Deadline deadline;
  if (seconds >= 0) {
    deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(std::min(seconds, 1e6)));
  }
  std::vector<std::size_t> circle;     // computed here though another thread does so too
  std::vector<std::size_t> abandoned;  // to be claimed again
  bool timeout = false;
  while (!self.awaited.empty() && !timeout) {
    const Impl::Open open = std::move(self.awaited.back());
    self.awaited.pop_back();
    auto [outcome, entry] = self.flights->wait(open.flight, deadline);
    switch (outcome) {
      case Flights::Outcome::kLanded: {
        self.know(open.slot, std::move(entry));
        self.memory->count_wait();
        const std::lock_guard lock(self.memo->mutex);
        self.count_hit(self.memo->stats, open.slot);
        self.memo->stats.waits += self.distinct.uses[open.slot];
        break;
      }
      case Flights::Outcome::kGaveUp: abandoned.push_back(open.slot); break;
      case Flights::Outcome::kCircle: circle.push_back(open.slot); break;
      case Flights::Outcome::kDeadline:
        self.awaited.push_back(open);
        timeout = true;
        break;
    }
  }
  std::ranges::sort(abandoned);
  if (!abandoned.empty() || !circle.empty()) self.take_over(abandoned, circle);
  if (!self.missing_rows.empty()) return Wait::kMore;
  if (timeout) return Wait::kTimeout;
  return self.awaited.empty() ? Wait::kDone : wait(seconds);
}

void MemoBatch::assemble(std::span<std::byte> out) const {
  const Impl& self = *impl_;
  const Clock::time_point start = Clock::now();
  for (const EntryPtr& entry : self.entries) {
    if (!entry) invalid("[MemoBatch::assemble] a missing row was not inserted");
    const TensorParts row = entry->tensor(0);
    check_same_row(*self.example, row.dtype, row.shape);
  }
  const std::size_t row_bytes = self.example ? decoded_size(self.example->tensor(0)) : 0;
  if (out.size() != rows() * row_bytes) {
    invalid("[MemoBatch::assemble] room for " + std::to_string(out.size()) + " bytes; expected " +
            std::to_string(rows()) + " rows of " + std::to_string(row_bytes));
  }
  if (row_bytes == 0) return;
  std::byte* to = out.data();
  for (const std::size_t slot : self.distinct.slot_of) {
    const TensorParts row = self.entries[slot]->tensor(0);
    if (row.codec == Codec::kRaw) {
      std::memcpy(to, row.data.data(), row_bytes);
    } else {
      decode(row, {to, row_bytes});
    }
    to += row_bytes;
  }
  const std::lock_guard lock(self.memo->mutex);
  self.memo->stats.seconds_copy += seconds_since(start);
}

Memo::Memo(std::shared_ptr<ActivationCache> cache, const MemoOptions& options) {
  if (cache == nullptr) invalid("[Memo] the cache is null");
  impl_ = std::make_shared<Impl>(std::move(cache), options);
}

Memo::~Memo() = default;

MemoBatch Memo::lookup(std::span<const TupleMember> members, const KeyOptions& options) {
  const Clock::time_point start = Clock::now();
  auto batch = std::make_unique<MemoBatch::Impl>();
  batch->memo = impl_;
  batch->cache = impl_->cache;
  batch->memory = &impl_->cache->impl_->memory;
  batch->flights = &impl_->cache->impl_->flights;
  batch->scope = scope_id(options.scope);
  batch->distinct = internal::distinct_rows(members, options);
  const Clock::time_point digested = Clock::now();

  const internal::DistinctRows& distinct = batch->distinct;
  batch->entries.resize(distinct.keys.size());
  batch->memory->find(distinct.keys, batch->entries);
  std::vector<std::size_t> absent;
  for (std::size_t slot = 0; slot < distinct.keys.size(); ++slot) {
    EntryPtr& entry = batch->entries[slot];
    if (is_row(entry)) {
      if (!batch->example) batch->example = entry;
    } else {
      entry = nullptr;
      absent.push_back(slot);
    }
  }
  {
    const std::lock_guard lock(impl_->mutex);
    MemoStats& stats = impl_->stats;
    ++stats.batches;
    for (std::size_t slot = 0; slot < distinct.keys.size(); ++slot) {
      if (batch->entries[slot]) batch->count_hit(stats, slot);
    }
  }
  if (!absent.empty()) batch->take_over(absent);
  const double lookup = seconds_since(digested);
  const double digest = std::chrono::duration<double>(digested - start).count();
  const std::lock_guard lock(impl_->mutex);
  impl_->stats.seconds_digest += digest;
  impl_->stats.seconds_lookup += lookup;
  return MemoBatch(std::move(batch));
}

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
