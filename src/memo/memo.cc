#include <tensorkey/memo.h>

#include <tensorkey/error.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

#include "memo/rows.h"
#include "view/walk.h"

namespace tensorkey {
namespace {

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
  if (known.dtype == dtype && std::ranges::equal(known.shape, shape)) return;
  invalid("[MemoBatch] a row of the output is " + describe(dtype, shape) +
          ", but other rows of this batch are " + describe(known.dtype, known.shape) +
          "; expected one dtype and shape for all rows");
}

EntryPtr make_entry(const TensorView& row, double seconds) {
  auto entry = std::make_shared<Entry>();
  entry->dtype = row.dtype;
  entry->shape.assign(row.shape.begin(), row.shape.end());
  entry->data.resize(byte_count(row));
  entry->seconds = seconds;
  internal::read_logical(row, false, 0, entry->data);
  return entry;
}

}  // namespace

struct Memo::Impl {
  explicit Impl(std::shared_ptr<MemoryStore> the_store) : store(std::move(the_store)) {}

  std::shared_ptr<MemoryStore> store;
  std::mutex mutex;
  MemoStats stats;  // guarded by mutex
};

struct MemoBatch::Impl {
  std::shared_ptr<Memo::Impl> memo;
  internal::DistinctRows distinct;
  std::vector<EntryPtr> entries;           // of each slot; null: to be computed
  std::vector<std::int64_t> missing_rows;  // where each missing slot first appears, ascending
  std::vector<std::size_t> missing_slots;
  EntryPtr example;
};

MemoBatch::MemoBatch(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
MemoBatch::MemoBatch(MemoBatch&&) noexcept = default;
MemoBatch& MemoBatch::operator=(MemoBatch&&) noexcept = default;
MemoBatch::~MemoBatch() = default;

std::size_t MemoBatch::rows() const noexcept { return impl_->distinct.slot_of.size(); }

std::span<const std::int64_t> MemoBatch::missing() const noexcept { return impl_->missing_rows; }

const Entry* MemoBatch::example() const noexcept { return impl_->example.get(); }

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
  if (self.example != nullptr) {
    check_same_row(*self.example, output.dtype, output.shape.subspan(1));
  }
  double saved = 0;
  for (std::size_t j = 0; j < count; ++j) {
    const std::size_t slot = self.missing_slots[first + j];
    EntryPtr entry = make_entry(internal::row_view(output, static_cast<std::int64_t>(j)),
                                seconds / static_cast<double>(count));
    self.memo->store->insert(self.distinct.keys[slot], entry);
    saved += entry->seconds * static_cast<double>(self.distinct.uses[slot] - 1);
    if (self.example == nullptr) self.example = entry;
    self.entries[slot] = std::move(entry);
  }
  const std::lock_guard lock(self.memo->mutex);
  self.memo->stats.seconds_saved += saved;
  self.memo->stats.seconds_spent += seconds;
  self.memo->stats.padded_rows += static_cast<std::uint64_t>(output.shape[0]) - count;
}

void MemoBatch::assemble(std::span<std::byte> out) const {
  const Impl& self = *impl_;
  for (const EntryPtr& entry : self.entries) {
    if (entry == nullptr) invalid("[MemoBatch::assemble] a missing row was not inserted");
    check_same_row(*self.example, entry->dtype, entry->shape);
  }
  const std::size_t row_bytes = self.example == nullptr ? 0 : self.example->data.size();
  if (out.size() != rows() * row_bytes) {
    invalid("[MemoBatch::assemble] room for " + std::to_string(out.size()) + " bytes; expected " +
            std::to_string(rows()) + " rows of " + std::to_string(row_bytes));
  }
  if (row_bytes == 0) return;
  std::byte* to = out.data();
  for (const std::size_t slot : self.distinct.slot_of) {
    std::memcpy(to, self.entries[slot]->data.data(), row_bytes);
    to += row_bytes;
  }
}

Memo::Memo(std::shared_ptr<MemoryStore> store) {
  if (store == nullptr) invalid("[Memo] the store is null");
  impl_ = std::make_shared<Impl>(std::move(store));
}

Memo::~Memo() = default;

MemoBatch Memo::lookup(std::span<const TupleMember> members, const KeyOptions& options) {
  auto batch = std::make_unique<MemoBatch::Impl>();
  batch->memo = impl_;
  batch->distinct = internal::distinct_rows(members, options);
  const internal::DistinctRows& distinct = batch->distinct;
  batch->entries.resize(distinct.keys.size());
  impl_->store->find(distinct.keys, batch->entries);

  double saved = 0;
  for (std::size_t slot = 0; slot < distinct.keys.size(); ++slot) {
    if (const EntryPtr& entry = batch->entries[slot]; entry != nullptr) {
      saved += entry->seconds * static_cast<double>(distinct.uses[slot]);
      if (batch->example == nullptr) batch->example = entry;
    } else {
      batch->missing_rows.push_back(distinct.first[slot]);
      batch->missing_slots.push_back(slot);
    }
  }
  const std::size_t rows = distinct.slot_of.size();
  const std::size_t misses = batch->missing_slots.size();
  {
    const std::lock_guard lock(impl_->mutex);
    MemoStats& stats = impl_->stats;
    ++stats.batches;
    stats.lookups += rows;
    stats.misses += misses;
    stats.hits += rows - misses;
    stats.duplicates += rows - distinct.keys.size();
    stats.seconds_saved += saved;
  }
  return MemoBatch(std::move(batch));
}

MemoStats Memo::stats() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->stats;
}

MemoryStore& Memo::store() const noexcept { return *impl_->store; }

}  // namespace tensorkey
