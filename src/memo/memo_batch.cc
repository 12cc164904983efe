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
  for (std::size_t k = 0; leaves > 1 && k < leaves; ++k) names[k] = internal::leaf_name(k);
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

void MemoBatch::assemble(std::span<const std::span<std::byte>> outs) const {
  const Impl& self = *impl_;
  const Clock::time_point start = Clock::now();
  const std::size_t rows = this->rows();
  if (self.example != nullptr) check_leaf_count(outs.size(), self.example->tensor_count());
  for (const EntryPtr& entry : self.entries) {
    if (!entry) invalid("[MemoBatch::assemble] a missing row was not inserted");
    check_leaf_count(entry->tensor_count(), outs.size());
  }
  for (std::size_t k = 0; k < outs.size(); ++k) {
    const std::size_t row_bytes = rows == 0 ? 0 : decoded_size(self.example->tensor(k));
    if (outs[k].size() != rows * row_bytes) {
      invalid("[MemoBatch::assemble] room for " + std::to_string(outs[k].size()) +
              " bytes; expected " + std::to_string(rows) + " rows of " + std::to_string(row_bytes));
    }
    std::byte* to = outs[k].data();
    for (std::size_t row = 0; row < rows; ++row, to += row_bytes) {
      const TensorParts leaf = self.entries[self.distinct.slot_of(row)]->tensor(k);
      check_same_leaf(self.example->tensor(k), leaf.dtype, leaf.shape);
      if (row_bytes == 0) continue;
      if (leaf.codec == Codec::kRaw) {
        std::memcpy(to, leaf.data.data(), row_bytes);
      } else {
        decode(leaf, {to, row_bytes});
      }
    }
  }
  const std::lock_guard lock(self.memo->mutex);
  self.memo->stats.seconds_copy += seconds_since(start);
}

}  // namespace tensorkey
