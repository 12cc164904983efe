// Hits that are computed again: whether what is stored is what the layer gives.
#include "memo/layer_verify.h"

#include <tensorkey/codec.h>
#include <tensorkey/probe.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "memo/layer_call.h"
#include "view/walk.h"

namespace tensorkey::internal {
namespace {

// A number below 2^64 for each i, as if drawn (Steele, Lea, Flood: SplitMix64, 2014).
std::uint64_t scatter(std::uint64_t i) noexcept {
  std::uint64_t z = (i + 1) * 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31U);
}

// The elements of a stored leaf as a row of a tensor; and those of a computed one as they would be
// stored.
HostTensor stored_row(const TensorParts& stored) {
  HostTensor tensor{.dtype = stored.dtype, .shape = {1}};
  tensor.shape.insert(tensor.shape.end(), stored.shape.begin(), stored.shape.end());
  tensor.data.resize(decoded_size(stored));
  decode(stored, tensor.data);
  return tensor;
}

HostTensor computed_row(const TensorView& leaf, std::int64_t row, Codec codec) {
  const TensorView view = row_view(leaf, row);
  HostTensor tensor{.dtype = view.dtype, .shape = {1}};
  tensor.shape.insert(tensor.shape.end(), view.shape.begin(), view.shape.end());
  std::vector<std::byte> scratch;
  const auto bytes = logical_bytes(view, scratch);
  tensor.data.assign(bytes.begin(), bytes.end());
  if (!is_lossy(codec)) return tensor;
  const Codec used = encode(codec, view.dtype, tensor.data, scratch);
  decode({.dtype = view.dtype, .shape = view.shape, .codec = used, .data = scratch}, tensor.data);
  return tensor;
}

}  // namespace

// Hits to compute again. A chunk costs the same however many of its rows are asked for, so few
// calls are chosen, and of them as many hits as fill their chunks.
Positions choose_hits(LayerCore& engine, const MemoBatch& batch, std::size_t chunk) {
  Positions hits;
  for (std::size_t row = 0; row < batch.rows(); ++row) {
    if (batch.is_known(row) && batch.was_hit(row)) hits.push_back(static_cast<std::int64_t>(row));
  }
  if (hits.empty()) return hits;
  const std::uint64_t drawn = scatter(engine.hits_seen.fetch_add(hits.size()));
  const std::size_t full = std::min(chunk, hits.size());
  const double wanted =
      engine.options.verify * static_cast<double>(hits.size()) / static_cast<double>(full);
  const double fraction = static_cast<double>(drawn >> 11U) * 0x1p-53;
  const auto chunks = static_cast<std::size_t>(wanted + fraction);
  std::rotate(hits.begin(), hits.begin() + static_cast<std::ptrdiff_t>(drawn % hits.size()),
              hits.end());
  hits.resize(std::min(hits.size(), chunks * full));
  std::ranges::sort(hits);
  return hits;
}

std::vector<AgainChunk> chunks_again(const LayerCore& engine, const Positions& chosen,
                                     std::size_t chunk) {
  // Odd: kernels care for the place modulo a power of two.
  const std::size_t turn = (scatter(engine.hits_seen.load()) % chunk | 1U) % chunk;
  std::vector<AgainChunk> chunks;
  for (std::size_t first = 0; first < chosen.size(); first += chunk) {
    const auto part = std::span(chosen).subspan(first, std::min(chunk, chosen.size() - first));
    AgainChunk& again = chunks.emplace_back(
        AgainChunk{.rows = {part.begin(), part.end()}, .positions = padded(part, chunk)});
    again.turn = turn;
    std::rotate(again.positions.begin(), again.positions.end() - static_cast<std::ptrdiff_t>(turn),
                again.positions.end());
  }
  return chunks;
}

void compare_hits(LayerCore& engine, const MemoBatch& batch, const AgainChunk& again,
                  std::span<const std::uint8_t> by_row, const LayerOutput& output,
                  std::span<const Key> inputs, Deviation& all) {
  static constexpr std::int64_t kOnly[] = {0};
  Deviation found;
  for (std::size_t i = 0; i < again.rows.size(); ++i) {
    const Entry& entry = batch.entry(static_cast<std::size_t>(again.rows[i]));
    const auto slot = static_cast<std::int64_t>((i + again.turn) % again.positions.size());
    bool differs = false;
    std::size_t row = 0;
    for (std::size_t k = 0; k < by_row.size(); ++k) {
      if (by_row[k] == 0) continue;
      const HostTensor stored = stored_row(entry.tensor(row++));
      const HostTensor now = computed_row(output.leaves()[k], slot, engine.options.codec);
      const Gap apart = gap(stored.view(), kOnly, now.view(), kOnly);
      if (apart.rows == 0 || (engine.options.accept_slot && apart.slight())) continue;
      if (engine.options.tolerance > 0 && apart.absolute <= engine.options.tolerance) continue;
      differs = true;
      if (found.where.empty() || apart.absolute > found.largest) found.where = output.path(k);
      found.largest = std::max(found.largest, apart.absolute);
    }
    if (i < inputs.size() && entry.input() && *entry.input() != inputs[i]) {
      differs = true;
      found.largest = std::numeric_limits<double>::infinity();
      found.where = "input";
    }
    found.rows += differs ? 1 : 0;
  }
  {
    const std::lock_guard lock(engine.mutex);
    LayerStats& stats = engine.stats;
    stats.verified += again.rows.size();
    stats.deviating += found.rows;
    stats.largest_deviation = std::max(stats.largest_deviation, found.largest);
  }
  all.rows += found.rows;
  if (found.rows != 0 && (all.where.empty() || found.largest > all.largest)) {
    all.where = std::move(found.where);
  }
  all.largest = std::max(all.largest, found.largest);
}

// They run in chunks of their own, not at the slots where they would run as misses.
void Call::verify() {
  const Positions chosen = choose_hits(engine_, batch(), chunk());
  if (chosen.empty()) return;
  runner_.prepare(chosen);
  try {
    for (const AgainChunk& again : chunks_again(engine_, chosen, chunk())) {
      const Output output = run_chunk(again.positions);
      std::vector<Key> inputs;
      if (!call_.ids.empty()) inputs = runner_.input_keys(again.rows);
      compare_hits(engine_, batch(), again, answer_.form->by_row, *output, inputs,
                   answer_.deviation);
    }
  } catch (const UnfitOutput& error) {
    note_unfit(error.what(), true);
  }
}

}  // namespace tensorkey::internal
