#include <tensorkey/layer.h>

#include <tensorkey/error.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>

#include "memo/layer_impl.h"

namespace tensorkey {
namespace {

[[noreturn]] void invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

const LayerOptions& checked(const LayerOptions& options) {
  if (options.chunk != 0 && !internal::is_chunk(options.chunk)) {
    invalid("[CachedLayer] chunk is " + std::to_string(options.chunk) +
            "; expected 1 or a multiple of 32 up to " + std::to_string(internal::kLargestChunk));
  }
  if (options.rows_are_batches && options.chunk > 1) {
    invalid("[CachedLayer] chunk is " + std::to_string(options.chunk) +
            ", but a row is a whole batch; expected 1");
  }
  if (!(options.verify >= 0 && options.verify <= 1)) {
    invalid("[CachedLayer] verify is " + std::to_string(options.verify) +
            "; expected a share from 0 to 1");
  }
  if (!(options.tolerance >= 0 && std::isfinite(options.tolerance))) {
    invalid("[CachedLayer] tolerance is " + std::to_string(options.tolerance) +
            "; expected a finite number that is not negative");
  }
  return options;
}

std::size_t bytes_of(const LeafShape& leaf) {
  std::size_t bytes = item_size(leaf.dtype);
  for (const std::int64_t dim : leaf.shape) bytes *= static_cast<std::size_t>(dim);
  return bytes;
}

}  // namespace

// --- Answer

LayerAnswer::LayerAnswer(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
LayerAnswer::LayerAnswer(LayerAnswer&&) noexcept = default;
LayerAnswer& LayerAnswer::operator=(LayerAnswer&&) noexcept = default;
LayerAnswer::~LayerAnswer() = default;

std::size_t LayerAnswer::rows() const noexcept { return impl_->batch->rows(); }
std::string_view LayerAnswer::form() const noexcept { return impl_->form->bytes; }
std::span<const LeafShape> LayerAnswer::leaves() const noexcept { return impl_->leaves; }
std::uint64_t LayerAnswer::hits() const noexcept {
  return rows() - std::min<std::uint64_t>(impl_->misses, rows());
}
std::uint64_t LayerAnswer::rows_run() const noexcept { return impl_->rows_run; }
double LayerAnswer::seconds_layer() const noexcept { return impl_->seconds_layer; }
const Deviation& LayerAnswer::deviation() const noexcept { return impl_->deviation; }

void LayerAnswer::assemble(std::span<const std::span<std::byte>> outs) const {
  const auto leaves = this->leaves();
  if (outs.size() != leaves.size()) {
    invalid("[LayerAnswer::assemble] room for " + std::to_string(outs.size()) +
            " leaves; expected " + std::to_string(leaves.size()));
  }
  const auto& constants = impl_->form->constants;
  std::vector<std::span<std::byte>> rows;
  std::size_t constant = 0;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (outs[i].size() != bytes_of(leaves[i])) {
      invalid("[LayerAnswer::assemble] room for " + std::to_string(outs[i].size()) +
              " bytes of leaf " + std::to_string(i) + "; expected " +
              std::to_string(bytes_of(leaves[i])));
    }
    if (!leaves[i].by_row) {
      const auto& data = constants[constant++].data;
      if (!data.empty()) std::memcpy(outs[i].data(), data.data(), data.size());
    } else if (!constants.empty()) {
      rows.push_back(outs[i]);
    }
  }
  try {
    impl_->batch->assemble(constants.empty() ? outs : std::span<const std::span<std::byte>>(rows));
  } catch (const Error& error) {
    throw LayerBypassed(std::string("the rows of its output differ in shape: ") + error.what());
  }
}

void LayerAnswer::finish(double seconds) { impl_->core->observe(*impl_, seconds); }

// --- Engine

LayerEngine::LayerEngine(std::shared_ptr<ActivationCache> cache, const LayerOptions& options)
    : impl_(std::make_shared<Impl>(std::move(cache), checked(options))) {}

LayerEngine::~LayerEngine() = default;

LayerAnswer LayerEngine::answer(const LayerCall& call, LayerRunner& runner) {
  auto answer = std::make_unique<LayerAnswer::Impl>(impl_);
  std::memcpy(&answer->layer, call.weights.data(), sizeof answer->layer);
  while (!impl_->attempt(call, runner, *answer)) {
  }
  return LayerAnswer(std::move(answer));
}

std::vector<MissingRow> LayerEngine::missing(const LayerCall& call) {
  std::uint32_t chunk = 0;
  if (const auto placement = impl_->known_placement(call)) {
    chunk = placement->decision->verdict.chunk;
  } else {
    const std::uint32_t asked = impl_->first_chunk(internal::rows_of(call), false);
    const auto known = impl_->stored(call, asked);
    chunk = known ? known->verdict.chunk : asked;
  }
  const Digest scope = internal::scope_of(call.about, call.weights, chunk);
  const std::string_view bytes(reinterpret_cast<const char*>(scope.data()), scope.size());
  return impl_->memo.missing(internal::keys_of(call, bytes));
}

std::size_t LayerEngine::confirm() {
  const std::size_t rows = impl_->memo.settle(true);
  impl_->records.settle(true);
  const std::lock_guard lock(impl_->mutex);
  for (const auto& known : impl_->plans) {
    if (known.latest) known.latest->form_pending = false;
  }
  return rows;
}

std::size_t LayerEngine::drop_pending() {
  const std::size_t rows = impl_->memo.settle(false);  // first: a new epoch
  impl_->records.settle(false);
  const std::lock_guard lock(impl_->mutex);
  impl_->forget_forms(true);
  impl_->stats.dropped_pending += rows;
  return rows;
}

bool LayerEngine::pending_full() const noexcept { return impl_->memo.pending_full(); }

std::uint64_t LayerEngine::epoch() const noexcept { return impl_->memo.epoch(); }

std::optional<Digest> LayerEngine::scope(const LayerCall& call) const {
  const auto placement = impl_->known_placement(call);
  if (!placement) return std::nullopt;
  return placement->scope;
}

std::size_t LayerEngine::clear() {
  std::vector<std::uint64_t> scopes;
  {
    const std::lock_guard lock(impl_->mutex);
    scopes.assign(impl_->scopes.begin(), impl_->scopes.end());
    impl_->scopes.clear();
    impl_->scope_set.clear();
    impl_->forget_forms(false);
  }
  std::size_t entries = 0;
  for (const std::uint64_t scope : scopes) entries += impl_->cache->purge(scope);
  return entries;
}

Bypass& LayerEngine::bypass() noexcept { return impl_->bypass; }
Memo& LayerEngine::memo() noexcept { return impl_->memo; }
ActivationCache& LayerEngine::cache() const noexcept { return *impl_->cache; }

LayerStats LayerEngine::stats() const {
  const std::uint64_t pending = impl_->memo.pending();
  const std::lock_guard lock(impl_->mutex);
  LayerStats stats = impl_->stats;
  stats.pending = pending;
  if (impl_->shown) stats.verdict = impl_->shown->verdict;
  return stats;
}

std::vector<std::string> LayerEngine::hints() const {
  const MemoStats memo = impl_->memo.stats();
  const CacheStats cache = impl_->cache->stats();
  const std::lock_guard lock(impl_->mutex);
  return tensorkey::hints(memo, cache, impl_->passes);
}

void LayerEngine::reset_stats() {
  impl_->memo.reset_stats();
  impl_->bypass.reset_counts();
  const std::lock_guard lock(impl_->mutex);
  impl_->stats = {};
  impl_->passes = {};
  impl_->observed = {};
}

}  // namespace tensorkey
