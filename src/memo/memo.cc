#include <tensorkey/memo.h>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "base/fork.h"
#include "memo/rows.h"
#include "store/cache_impl.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

using internal::Flights;
using internal::Lead;
using internal::Lookup;
using internal::Tiers;
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
  // A distinct row that another thread computes.
  struct Open {
    std::size_t slot;
    Flights::FlightPtr flight;
  };

  // A distinct row that this thread leads and another process computes.
  struct Elsewhere {
    std::size_t slot;
    Lead lead;
  };

  void take_over(std::span<const std::size_t> slots, std::span<const std::size_t> alone = {});
  void ask_processes(std::vector<Elsewhere> rows, std::vector<std::size_t>& found);
  void compute(std::size_t slot, Lead lead);
  bool await_threads(const Flights::Deadline& deadline);
  bool await_processes(const Flights::Deadline& deadline);
  void count_found(std::span<const std::size_t> slots, bool waited);
  void count_missing(std::size_t first);
  void write(std::span<const EntryPtr> stored, std::size_t first, double seconds);
  [[nodiscard]] EntryPtr find(std::size_t slot) const;
  [[nodiscard]] Secret secret_of_entries() const noexcept;
  void know(std::size_t slot, EntryPtr entry);
  void count_hit(MemoStats& stats, std::size_t slot) const;

  std::shared_ptr<Memo::Impl> memo;
  Tiers* tiers = nullptr;  // of the memo's cache, like flights
  Flights* flights = nullptr;
  std::optional<std::array<std::uint8_t, 32>> secret;
  std::uint64_t scope = 0;
  internal::DistinctRows distinct;
  std::vector<EntryPtr> entries;           // of each slot; null: to be computed
  std::vector<std::int64_t> missing_rows;  // where each missing slot first appears, ascending
  std::vector<std::size_t> missing_slots;
  std::vector<Lead> leads;  // of the missing slots
  std::vector<Open> awaited;
  std::vector<Elsewhere> elsewhere;
  std::optional<Clock::time_point> elsewhere_until;
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

Secret MemoBatch::Impl::secret_of_entries() const noexcept {
  if (!secret) return tiers->secret(std::nullopt);
  return std::span<const std::uint8_t, 32>(*secret);
}

// The entry of a row. One that somebody put under this key with other contents is no answer.
EntryPtr MemoBatch::Impl::find(std::size_t slot) const {
  EntryPtr entry = tiers->memory.find(distinct.keys[slot]);
  return is_row(entry) ? entry : nullptr;
}

void MemoBatch::Impl::compute(std::size_t slot, Lead lead) {
  missing_rows.push_back(distinct.first[slot]);
  missing_slots.push_back(slot);
  leads.push_back(std::move(lead));
}

// Claims the slots: each is found after all, or to be computed here, or awaited. Those of `alone`
// are computed here without a flight. REQUIRES: none of them is missing or awaited yet.
void MemoBatch::Impl::take_over(std::span<const std::size_t> slots,
                                std::span<const std::size_t> alone) {
  std::vector<Key> keys;
  for (const std::size_t slot : slots) keys.push_back(distinct.keys[slot]);
  std::vector<Lead> guards;
  guards.reserve(slots.size());  // from here on every flight has its guard
  std::vector<Flights::Claim> claims;
  flights->claim(keys, claims);
  for (const Flights::Claim& claim : claims) {
    guards.emplace_back(*flights, claim.role == Flights::Role::kLeader ? claim.flight : nullptr);
  }
  const std::size_t first = missing_slots.size();
  std::vector<std::size_t> found;
  std::vector<Elsewhere> open;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t slot = slots[i];
    if (claims[i].role == Flights::Role::kFollower) {
      awaited.push_back({.slot = slot, .flight = claims[i].flight});
    } else if (EntryPtr entry = find(slot)) {
      guards[i].land(entry);  // stored between the two looks
      know(slot, std::move(entry));
      found.push_back(slot);
    } else {
      open.push_back({.slot = slot, .lead = std::move(guards[i])});
    }
  }
  ask_processes(std::move(open), found);
  for (const std::size_t slot : alone) compute(slot, Lead(*flights, nullptr));
  count_found(found, false);
  count_missing(first);
}

// Each row is found below memory, or to be computed here, or computed by another process.
void MemoBatch::Impl::ask_processes(std::vector<Elsewhere> rows, std::vector<std::size_t>& found) {
  if (rows.empty()) return;
  std::vector<Key> keys;
  keys.reserve(rows.size());
  for (const Elsewhere& row : rows) keys.push_back(distinct.keys[row.slot]);
  std::vector<EntryPtr> known(rows.size());
  std::vector<Tiers::Claim> claims(rows.size());
  tiers->claim(keys, secret_of_entries(), known, claims);
  for (std::size_t i = 0; i < rows.size(); ++i) {  // first, so that none is lost
    if (claims[i] == Tiers::Claim::kLeased) rows[i].lead.hold(*tiers->store(), keys[i]);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto& [slot, lead] = rows[i];
    if (claims[i] == Tiers::Claim::kOthers) {
      elsewhere.push_back(std::move(rows[i]));
    } else if (is_row(known[i])) {
      lead.land(known[i]);
      know(slot, std::move(known[i]));
      found.push_back(slot);
    } else {
      compute(slot, std::move(lead));
    }
  }
}

void MemoBatch::Impl::count_found(std::span<const std::size_t> slots, bool waited) {
  if (slots.empty()) return;
  const std::lock_guard lock(memo->mutex);
  for (const std::size_t slot : slots) {
    count_hit(memo->stats, slot);
    if (waited) memo->stats.waits += distinct.uses[slot];
  }
}

// Counts the missing slots from `first` on.
void MemoBatch::Impl::count_missing(std::size_t first) {
  const auto slots = std::span(missing_slots).subspan(first);
  if (slots.empty()) return;
  std::vector<Key> keys;
  for (const std::size_t slot : slots) keys.push_back(distinct.keys[slot]);
  std::vector<Lookup> reasons(keys.size());
  tiers->memory.count_misses(keys, reasons);
  const std::lock_guard lock(memo->mutex);
  MemoStats& stats = memo->stats;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::uint64_t uses = distinct.uses[slots[i]];
    memo->count(reasons[i], 1);
    stats.lookups += uses;
    stats.hits += uses - 1;
    stats.duplicates += uses - 1;
  }
}

// Has computed rows written below memory: where another process may wait for one of them, before
// its lease is given back.
void MemoBatch::Impl::write(std::span<const EntryPtr> stored, std::size_t first, double seconds) {
  internal::Store* const store = tiers->store();
  if (store == nullptr) return;
  const auto chunk = std::span(leads).subspan(first, stored.size());
  if (std::ranges::any_of(chunk, &Lead::leased)) {
    store->publish(stored, scope, secret_of_entries());
  } else {
    store->put(stored, scope, secret_of_entries(), seconds);
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
  std::vector<EntryPtr> stored;
  stored.reserve(count);
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
    EntryPtr entry = self.tiers->keep(parts, self.scope);
    rejections += !entry;
    if (!is_row(entry)) entry = make_entry(parts);
    saved += share * static_cast<double>(self.distinct.uses[slot] - 1);
    stored.push_back(std::move(entry));
  }
  self.write(stored, first, seconds);
  for (std::size_t j = 0; j < count; ++j) {
    self.leads[first + j].land(stored[j]);
    self.know(self.missing_slots[first + j], std::move(stored[j]));
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

// Waits for rows of other threads; false if the deadline came first. What they gave up is claimed.
bool MemoBatch::Impl::await_threads(const Flights::Deadline& deadline) {
  std::vector<std::size_t> found;
  std::vector<std::size_t> circle;     // computed here though another thread does so too
  std::vector<std::size_t> abandoned;  // to be claimed again
  bool timeout = false;
  while (!awaited.empty() && !timeout) {
    const Open open = std::move(awaited.back());
    awaited.pop_back();
    auto [outcome, entry] = flights->wait(open.flight, deadline);
    switch (outcome) {
      case Flights::Outcome::kLanded:
        know(open.slot, std::move(entry));
        tiers->memory.count_wait();
        count_found({&open.slot, 1}, true);
        break;
      case Flights::Outcome::kGaveUp: abandoned.push_back(open.slot); break;
      case Flights::Outcome::kCircle: circle.push_back(open.slot); break;
      case Flights::Outcome::kDeadline:
        awaited.push_back(open);
        timeout = true;
        break;
    }
  }
  std::ranges::sort(abandoned);
  if (!abandoned.empty() || !circle.empty()) take_over(abandoned, circle);
  return !timeout;
}

// Looks until every row of other processes is found, or one is this process's to compute; false if
// the deadline came first. Who takes longer than the rows would take here is not waited for.
bool MemoBatch::Impl::await_processes(const Flights::Deadline& deadline) {
  std::chrono::microseconds pause = internal::kFirstPoll;
  while (!elsewhere.empty()) {
    if (!elsewhere_until) {
      std::optional<double> cost;
      {
        const std::lock_guard lock(memo->mutex);
        const MemoStats& stats = memo->stats;
        if (stats.misses > 0 && stats.seconds_spent > 0) {
          cost = stats.seconds_spent / static_cast<double>(stats.misses) *
                 static_cast<double>(elsewhere.size());
        }
      }
      const std::chrono::duration<double> patience(tiers->lease_patience(cost));
      elsewhere_until = Clock::now() + std::chrono::duration_cast<Clock::duration>(patience);
    }
    const std::size_t first = missing_slots.size();
    std::vector<std::size_t> found;
    ask_processes(std::exchange(elsewhere, {}), found);
    if (Clock::now() >= *elsewhere_until) {
      for (auto& [slot, lead] : std::exchange(elsewhere, {})) {
        tiers->store()->distrust(distinct.keys[slot]);
        compute(slot, std::move(lead));
      }
    }
    count_found(found, true);
    count_missing(first);
    if (elsewhere.empty()) elsewhere_until.reset();
    if (missing_slots.size() > first || elsewhere.empty()) return true;
    const Clock::time_point next = Clock::now() + pause;
    if (deadline && next >= *deadline) return false;
    std::this_thread::sleep_until(next);
    pause = internal::next_poll(pause);
  }
  return true;
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
  do {
    const bool threads = self.await_threads(deadline);
    // Rows that are this thread's to compute come first: others wait for them.
    const bool processes = !self.missing_rows.empty() || self.await_processes(deadline);
    if (!self.missing_rows.empty()) return Wait::kMore;
    if (!threads || !processes) return Wait::kTimeout;
  } while (!self.awaited.empty() || !self.elsewhere.empty());
  return Wait::kDone;
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
  batch->tiers = &impl_->cache->impl_->tiers;
  batch->flights = &impl_->cache->impl_->flights;
  batch->scope = scope_id(options.scope);
  if (options.secret) std::ranges::copy(*options.secret, batch->secret.emplace().begin());
  batch->distinct = internal::distinct_rows(members, options);
  const Clock::time_point digested = Clock::now();

  const internal::DistinctRows& distinct = batch->distinct;
  batch->entries.resize(distinct.keys.size());
  batch->tiers->find(distinct.keys, batch->entries, batch->secret_of_entries());
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
