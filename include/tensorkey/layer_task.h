// A call of a cached layer that runs elsewhere: inside a graph of a framework, which the engine
// cannot call back. The host looks up, the graph runs the chunks that it is told to run, and hands
// over what came out.
//
//   LayerTask task = engine.begin(call, {.chunk = 32, .leaves = leaves});
//   for (std::size_t c = 0; c < task.chunks(); ++c)   // in the graph, on copies of rows
//     task.deliver(c, outputs of the rows at task.positions()[c * 32 ...]);
//
// The answer for row i is in row sources()[i] of a table of rows() rows: read() writes those that
// were found, and the graph the others, row j of what it runs to targets()[j]; a target of rows()
// is no row of the table. Some chunks are there for the probe and for verify alone.
//
// Nobody waits in a graph, and nobody waits for it: a task claims no row, so two threads may
// compute the same one. A task that is dropped has stored what was delivered. Rows are those of
// LayerEngine::answer(), under the same scopes, for outputs all of whose leaves are by row.
//
// A LayerTask is for one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <tensorkey/export.h>
#include <tensorkey/layer.h>
#include <tensorkey/view.h>

namespace tensorkey {

struct TaskOptions {
  std::uint32_t chunk = 32;                // that the graph was traced for: 1 or a multiple of 32
  std::span<const LeafShape> leaves = {};  // of one row: without the batch's dim
};

class TENSORKEY_EXPORT LayerTask {
 public:
  LayerTask(LayerTask&&) noexcept;
  LayerTask& operator=(LayerTask&&) noexcept;
  ~LayerTask();

  // What the graph does beside the chunks.
  enum class Whole : std::uint8_t {
    kNot,      // nothing
    kAnswer,   // it runs the layer on the whole batch as it was given, and that is the answer
    kCompare,  // it does so too, and delivers it first: to be compared with rows run one by one, or
               // for the time that it takes
  };

  // The layer is to run without the cache: Whole::kAnswer, no chunk.
  [[nodiscard]] static LayerTask aside(std::size_t rows, std::uint32_t chunk);
  // The chunks that a batch can need at most.
  [[nodiscard]] static std::size_t capacity(std::size_t rows, std::uint32_t chunk, bool verify);

  [[nodiscard]] std::size_t rows() const noexcept;
  [[nodiscard]] std::uint32_t chunk() const noexcept;
  [[nodiscard]] std::size_t chunks() const noexcept;
  [[nodiscard]] Whole whole() const noexcept;
  [[nodiscard]] std::span<const std::int64_t> positions() const noexcept;  // chunks() * chunk()
  [[nodiscard]] std::span<const std::int64_t> targets() const noexcept;    // chunks() * chunk()
  [[nodiscard]] std::span<const std::int64_t> sources() const noexcept;    // rows()

  // Writes the rows that were found into outs[i], rows() rows of leaf i in C order; the others are
  // left alone. Throws kInvalidArgument unless the sizes are those.
  void read(std::span<const std::span<std::byte>> outs) const;

  // The outputs of the whole batch, for Whole::kCompare, and what the layer took for it. Throws
  // kInvalidArgument as deliver() does.
  void deliver_whole(std::span<const TensorView> outputs, double seconds);
  // The outputs of a chunk, one tensor of chunk() rows for each leaf; chunks in ascending order,
  // each once. `seconds`: what the layer took for it. Throws kUnsupported, with the evidence, at
  // the first call of a layer that the probe refuses; kInvalidArgument for tensors of another shape
  // or dtype than was said, and for a chunk out of turn.
  void deliver(std::size_t chunk, std::span<const TensorView> outputs, double seconds);

  // What verify found, as in LayerAnswer.
  [[nodiscard]] const Deviation& deviation() const noexcept;

 private:
  friend class LayerEngine;
  struct Impl;
  explicit LayerTask(std::unique_ptr<Impl> impl) noexcept;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tensorkey
