#include <tensorkey/memo.h>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "memo/memo_impl.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

using internal::is_row;
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

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

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
    TensorParts tensor{
        .dtype = row.dtype, .shape = row.shape, .data = internal::logical_bytes(row, scratch)};
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
