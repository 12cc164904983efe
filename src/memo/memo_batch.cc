// A batch: storing computed rows, and putting the answer together.
#include <tensorkey/codec.h>
#include <tensorkey/error.h>
#include <tensorkey/memo.h>

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

using internal::Lead;
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

void check_same_leaf(const TensorParts& known, DType dtype, std::span<const std::int64_t> shape) {
  if (known.dtype == dtype && std::ranges::equal(known.shape, shape)) return;
  invalid("[MemoBatch] a row of the output is " + describe(dtype, shape) +
          ", but other rows of this batch are " + describe(known.dtype, known.shape) +
          "; expected one dtype and shape for all rows");
}

void check_leaf_count(std::size_t count, std::size_t known) {
  if (count == known) return;
  invalid("[MemoBatch] rows of " + std::to_string(count) + " tensors, but other rows of this " +
          "batch have " + std::to_string(known) + "; expected one number for all rows");
}

const std::byte* bytes_of(const Entry& entry, const internal::Item& leaf) noexcept {
  return reinterpret_cast<const std::byte*>(&internal::block_of(entry)) + leaf.data;
}

const std::int64_t* dims_of(const Entry& entry, const internal::Item& leaf) noexcept {
  const auto* const begin = reinterpret_cast<const std::byte*>(&internal::block_of(entry));
  return reinterpret_cast<const std::int64_t*>(begin + leaf.dims);
}

void prefetch(const std::byte* from, std::size_t bytes) noexcept {
  constexpr std::size_t kLine = 64;
  constexpr std::size_t kMost = 2048;  // from there on the processor sees by itself what comes
  for (std::size_t i = 0; i < std::min(bytes, kMost); i += kLine) __builtin_prefetch(from + i);
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

MemoBatch::MemoBatch(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
MemoBatch::MemoBatch(MemoBatch&&) noexcept = default;
MemoBatch& MemoBatch::operator=(MemoBatch&&) noexcept = default;
MemoBatch::~MemoBatch() = default;

std::size_t MemoBatch::rows() const noexcept { return impl_->distinct.rows(); }

std::span<const std::int64_t> MemoBatch::missing() const noexcept { return impl_->missing_rows; }

const Entry* MemoBatch::example() const noexcept { return impl_->example; }

bool MemoBatch::is_known(std::size_t row) const noexcept {
  return static_cast<bool>(impl_->entries[impl_->distinct.slot_of(row)]);
}

std::int64_t MemoBatch::first_of(std::size_t row) const noexcept {
  return impl_->distinct.first(impl_->distinct.slot_of(row));
}

const Entry& MemoBatch::entry(std::size_t row) const noexcept {
  return *impl_->entries[impl_->distinct.slot_of(row)];
}

bool MemoBatch::was_hit(std::size_t row) const noexcept {
  return impl_->computed.empty() || !impl_->computed[impl_->distinct.slot_of(row)];
}

// --- Insert

void MemoBatch::Impl::check_outputs(std::size_t first, std::size_t count,
                                    std::span<const TensorView> outputs,
                                    std::span<const Key> inputs) const {
  if (first > missing_slots.size() || count > missing_slots.size() - first) {
    invalid("[MemoBatch::insert] rows " + std::to_string(first) + " to " +
            std::to_string(first + count) + " of " + std::to_string(missing_slots.size()) +
            " missing ones");
  }
  if (!inputs.empty() && inputs.size() != count) {
    invalid("[MemoBatch::insert] " + std::to_string(inputs.size()) + " keys of inputs; expected " +
            std::to_string(count) + " or none");
  }
  if (example != nullptr) check_leaf_count(outputs.size(), example->tensor_count());
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const TensorView& output = outputs[k];
    check_view(output, "MemoBatch::insert");
    if (output.shape.empty() || static_cast<std::size_t>(output.shape[0]) < count) {
      invalid("[MemoBatch::insert] the output is " + describe(output.dtype, output.shape) +
              "; expected at least " + std::to_string(count) + " rows along its first dim");
    }
    if (!output.dtype_params.empty()) {
      throw Error(ErrorCode::kUnsupported, "[MemoBatch::insert] outputs of dtype " +
                                               std::string(to_string(output.dtype)) +
                                               " are not cached");
    }
    if (example != nullptr) {
      check_same_leaf(example->tensor(k), output.dtype, output.shape.subspan(1));
    }
  }
}

// The entry of a computed row, and whether a tier has it.
EntryPtr MemoBatch::Impl::keep_row(const EntryParts& parts, bool& stored) {
  EntryPtr entry = keep == Keep::kNow ? tiers->keep(parts, scope)
                                      : memo->pending.keep(parts, scope, secret, ticket);
  stored = static_cast<bool>(entry);
  return internal::is_row(entry) ? entry : make_entry(parts);
}

// Has computed rows written below memory: where another process may wait for one of them, before
// its lease is given back. Pending ones are not written: who waits for them computes them.
void MemoBatch::Impl::write(std::span<const EntryPtr> stored, std::size_t first, double seconds) {
  internal::Store* const store = tiers->store();
  if (store == nullptr || keep == Keep::kPending) return;
  const auto chunk = std::span(leads).subspan(first, stored.size());
  if (std::ranges::any_of(chunk, &Lead::leased)) {
    store->publish(stored, scope, secret_of_entries());
  } else {
    store->put(stored, scope, secret_of_entries(), seconds);
  }
}

void MemoBatch::insert(std::size_t first, std::size_t count, std::span<const TensorView> outputs,
                       double seconds, std::span<const Key> inputs) {
  Impl& self = *impl_;
  self.check_outputs(first, count, outputs, inputs);
  const Clock::time_point start = Clock::now();
  const Codec codec = self.memo->options.codec;
  const std::size_t leaves = outputs.size();
  const double share = count == 0 ? 0 : seconds / static_cast<double>(count);
  double saved = 0;
  std::uint64_t rejections = 0;
  std::vector<std::string> names(leaves);
  for (std::size_t k = 0; leaves > 1 && k < leaves; ++k) names[k] = std::to_string(k);
  std::vector<std::vector<std::byte>> gathered(leaves);
  std::vector<std::vector<std::byte>> encoded(leaves);
  std::vector<TensorParts> tensors(leaves);
  std::vector<EntryPtr> entries;
  entries.reserve(count);
  for (std::size_t j = 0; j < count; ++j) {
    const std::size_t slot = self.missing_slots[first + j];
    for (std::size_t k = 0; k < leaves; ++k) {
      const TensorView row = internal::row_view(outputs[k], static_cast<std::int64_t>(j));
      TensorParts& tensor = tensors[k];
      tensor = {.name = names[k],
                .dtype = row.dtype,
                .shape = row.shape,
                .data = internal::logical_bytes(row, gathered[k])};
      if (codec == Codec::kRaw) continue;
      tensor.codec = encode(codec, row.dtype, tensor.data, encoded[k]);
      if (tensor.codec != Codec::kRaw) tensor.data = encoded[k];
    }
    EntryParts parts{.key = self.distinct.keys()[slot], .seconds = share, .tensors = tensors};
    if (!inputs.empty()) parts.input = inputs[j];
    bool stored = false;
    entries.push_back(self.keep_row(parts, stored));
    rejections += stored ? 0 : 1;
    saved += share * static_cast<double>(self.distinct.uses(slot) - 1);
  }
  self.write(entries, first, seconds);
  for (std::size_t j = 0; j < count; ++j) {
    self.leads[first + j].land(entries[j]);
    self.know(self.missing_slots[first + j], std::move(entries[j]));
  }
  const std::lock_guard lock(self.memo->mutex);
  MemoStats& stats = self.memo->stats;
  stats.rejections += rejections;
  stats.seconds_saved += saved;
  stats.seconds_spent += seconds;
  stats.seconds_insert += seconds_since(start);
  if (leaves > 0) stats.padded_rows += static_cast<std::uint64_t>(outputs[0].shape[0]) - count;
}

void MemoBatch::fail(const std::exception_ptr& error) noexcept {
  for (const Lead& lead : impl_->leads) lead.fail(error);
}

// --- Assemble

// Writes leaf k of all rows. Rows that lie far apart in memory are on their way to the caches while
// the one before is copied.
void MemoBatch::Impl::copy_leaf(std::size_t k, std::size_t row_bytes, std::byte* to) const {
  const internal::Item& known = internal::leaf_of(internal::block_of(*example), k);
  const std::int64_t* const dims = dims_of(*example, known);
  const std::size_t rows = distinct.rows();
  const auto row_of = [&](std::size_t row) { return entries[distinct.slot_of(row)].get(); };
  const auto item_of = [&](std::size_t row) -> const internal::Item& {
    return internal::leaf_of(internal::block_of(*row_of(row)), k);
  };
  for (std::size_t row = 0; row < rows; ++row, to += row_bytes) {
    if (row_of(row) == nullptr) continue;
    const Entry& entry = *row_of(row);
    const internal::Item& leaf = item_of(row);
    if (leaf.dtype != known.dtype || leaf.rank != known.rank ||
        !std::equal(dims, dims + known.rank, dims_of(entry, leaf))) {
      check_same_leaf(example->tensor(k), leaf.dtype, entry.tensor(k).shape);
    }
    if (row_bytes == 0) continue;
    if (leaf.codec != Codec::kRaw) {
      decode(entry.tensor(k), {to, row_bytes});
      continue;
    }
    if (row + 1 < rows && row_of(row + 1) != nullptr) {
      prefetch(bytes_of(*row_of(row + 1), item_of(row + 1)), row_bytes);
    }
    std::memcpy(to, bytes_of(entry, leaf), row_bytes);
  }
}

// Writes the rows that are known.
void MemoBatch::Impl::copy_rows(std::span<const std::span<std::byte>> outs) const {
  const Clock::time_point start = Clock::now();
  const std::size_t rows = distinct.rows();
  if (example != nullptr) check_leaf_count(outs.size(), example->tensor_count());
  for (const EntryPtr& entry : entries) {
    if (entry) check_leaf_count(entry->tensor_count(), outs.size());
  }
  for (std::size_t k = 0; example != nullptr && k < outs.size(); ++k) {
    const std::size_t row_bytes = decoded_size(example->tensor(k));
    if (outs[k].size() != rows * row_bytes) {
      invalid("[MemoBatch] room for " + std::to_string(outs[k].size()) + " bytes; expected " +
              std::to_string(rows) + " rows of " + std::to_string(row_bytes));
    }
    copy_leaf(k, row_bytes, outs[k].data());
  }
  const std::lock_guard lock(memo->mutex);
  memo->stats.seconds_copy += seconds_since(start);
}

void MemoBatch::assemble(std::span<const std::span<std::byte>> outs) const {
  if (std::ranges::any_of(impl_->entries, [](const EntryPtr& entry) { return !entry; })) {
    invalid("[MemoBatch::assemble] a missing row was not inserted");
  }
  impl_->copy_rows(outs);
}

void MemoBatch::read(std::span<const std::span<std::byte>> outs) const { impl_->copy_rows(outs); }

}  // namespace tensorkey
