// Hits that are computed again: which, in what chunks, and whether they are what is stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "memo/layer_impl.h"

namespace tensorkey::internal {

// Exactly `chunk` positions: these, the last one repeated. REQUIRES: 1 to `chunk` positions.
[[nodiscard]] Positions padded(std::span<const std::int64_t> positions, std::size_t chunk);

// Hits of a batch to compute again, ascending; often none.
[[nodiscard]] Positions choose_hits(LayerCore& engine, const MemoBatch& batch, std::size_t chunk);

// Row i of `rows` stands at slot (i + turn) modulo the chunk.
struct AgainChunk {
  Positions rows;
  Positions positions;
  std::size_t turn = 0;
};

[[nodiscard]] std::vector<AgainChunk> chunks_again(const LayerCore& engine, const Positions& chosen,
                                                   std::size_t chunk);

// Compares what such a chunk gave with what is stored, counts, and adds what it finds. `inputs`:
// content keys of the rows, or none.
void compare_hits(LayerCore& engine, const MemoBatch& batch, const AgainChunk& again,
                  std::span<const std::uint8_t> by_row, const LayerOutput& output,
                  std::span<const Key> inputs, Deviation& all);

}  // namespace tensorkey::internal
