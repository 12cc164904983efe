// The probe: whether the rows of a layer may be cached one by one, and in chunks of how many. It
// runs the layer on rows of the caller's batch and compares bits:
//
// Before them: which leaves of the output have a row for each input row, from runs of two sizes;
// the others must be the same whatever the rows.
//
// (a) slot: one row fills a chunk. Are all outputs equal, wherever the row stood?
// (b) neighbours: the same row at the same slot among other rows. Is its output the same? For
//     chunks of one row: alone against in the caller's batch, as information.
// (c) state: did a run change buffers, attributes or the random state? The first run may (lazy
//     initialisation, caches of the layer's own); the second may not.
//
// (a) different in the last bits: chunks of one row, which were exact in every trial. (a) beyond
// that, (b) at all in a chunk, (b) beyond the last bits for chunks of one row, or (c): refused,
// with what was measured. "The last bits" are 64 units in the last place of the leaf's largest
// output, 4 for 16-bit floats. A probe can refute, not prove.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <tensorkey/export.h>
#include <tensorkey/layer.h>

namespace tensorkey {

// How far the rows of two outputs are apart.
struct Gap {
  std::uint64_t rows = 0;  // whose bits differ
  double ulps = 0;         // the largest difference, in units in the last place of the leaf's
                           // largest output; infinity for other than floats
  double absolute = 0;     // the largest difference
  double limit = 64;       // ulps that count as the last bits for this dtype
  std::size_t leaf = 0;    // where it is largest
  [[nodiscard]] bool slight() const noexcept { return ulps <= limit; }
};

// Compares row one_rows[i] of a leaf with row other_rows[i] of another of the same dtype and row
// shape; leaves that differ in these differ in all rows, by infinity. REQUIRES: equal sizes.
TENSORKEY_EXPORT Gap gap(const TensorView& one, std::span<const std::int64_t> one_rows,
                         const TensorView& other, std::span<const std::int64_t> other_rows);

struct ProbeOptions {
  std::uint32_t chunk = 32;
  bool state_only = false;   // (c) alone; every leaf is by row
  bool leaves_only = false;  // which leaves are by row, and nothing that proves anything
  bool accept_slot = false;  // (a) slight is accepted as it is
  // Seconds, for the bound of half a second after which a probe ends with what it has, but never
  // before three shifts, or two rows for (a), and (b).
  std::function<double()> clock = {};
};

struct ProbeResult {
  Verdict verdict;
  std::vector<std::uint8_t> by_row;  // of each leaf: 1 or 0; empty if that was not reached
  std::uint64_t runs = 0;
  std::uint64_t rows = 0;
};

// REQUIRES: rows holds 1 to 16 positions of different rows, prepared. Restores the random state at
// its end, and buffers unless its verdict is to cache. Throws what the runner throws, and
// kInvalidArgument, with the leaf's path, for a leaf that is neither by row nor constant.
TENSORKEY_EXPORT ProbeResult probe(LayerRunner& runner, std::span<const std::int64_t> rows,
                                   const ProbeOptions& options);

}  // namespace tensorkey
