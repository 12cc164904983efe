// LayerTask: a call of a cached layer that runs inside a graph.
#include <tensorkey/layer_task.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/error.h>

#include "acquire.h"
#include "layer_engine.h"
#include "options.h"
#include "writable.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

// The dtype and the dims of a row.
using RowShape = std::pair<std::string, std::vector<std::int64_t>>;

DType dtype_of(const std::string& name) {
  if (const auto dtype = dtype_from_name(name)) return *dtype;
  throw LayerBypassed("a tensor of dtype " + name + " has no key");
}

std::vector<LeafShape> leaves_of(const std::vector<RowShape>& shapes) {
  std::vector<LeafShape> leaves;
  leaves.reserve(shapes.size());
  for (const auto& [name, dims] : shapes)
    leaves.push_back({.dtype = dtype_of(name), .shape = dims});
  return leaves;
}

LayerTask begin(Engine& self, const nb::sequence& tensors, const nb::sequence& paths,
                const nb::bytes& about, const nb::bytes& weights, nb::handle secret,
                std::uint32_t chunk, const std::vector<RowShape>& leaves) {
  const std::vector<LeafShape> shapes = leaves_of(leaves);
  Rows rows(tensors, paths, nb::none());
  const LayerCall call = call_of(rows, {tensors, paths, nb::none(), about, weights, secret});
  const MaybeReleaseGil release(self.stores ? kReleaseGilBytes : rows.bytes());
  return self.core.begin(call, {.chunk = chunk, .leaves = shapes});
}

// The members of a call without their data.
std::uint32_t task_chunk(Engine& self, const nb::bytes& about, const std::vector<RowShape>& shapes,
                         nb::handle secret, std::size_t rows) {
  std::vector<LeafShape> batches = leaves_of(shapes);
  std::vector<TupleMember> members;
  members.reserve(batches.size());
  for (LeafShape& batch : batches) {
    batch.shape.insert(batch.shape.begin(), 1);
    members.push_back({.path = {}, .view = {.dtype = batch.dtype, .shape = batch.shape}});
  }
  LayerCall call{.members = members, .about = digest_of(about, "about")};
  call.secret = key_options(nb::bytes("", 0), secret, false, "LayerEngine").secret;
  return self.core.task_chunk(call, rows);
}

void write(nb::handle buffer, std::span<const std::int64_t> values) {
  const Writable memory(buffer);
  if (memory.bytes().size() != values.size() * sizeof(std::int32_t)) {
    throw Error(ErrorCode::kInvalidArgument,
                "[LayerTask] room for " + std::to_string(memory.bytes().size()) +
                    " bytes; expected " + std::to_string(values.size()) + " of int32");
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<std::int32_t>(values[i]);
    std::memcpy(memory.bytes().data() + i * sizeof value, &value, sizeof value);
  }
}

void read(const LayerTask& self, const nb::sequence& buffers) {
  std::vector<std::unique_ptr<Writable>> held;
  std::vector<std::span<std::byte>> outs;
  std::size_t bytes = 0;
  for (const nb::handle buffer : buffers) {
    held.push_back(std::make_unique<Writable>(buffer));
    outs.push_back(held.back()->bytes());
    bytes += outs.back().size();
  }
  const MaybeReleaseGil release(bytes);
  self.read(outs);
}

void deliver(LayerTask& self, std::int64_t chunk, const nb::sequence& tensors, double seconds) {
  std::vector<std::unique_ptr<Borrowed>> held;
  std::vector<TensorView> views;
  held.reserve(nb::len(tensors));
  views.reserve(nb::len(tensors));
  std::size_t bytes = 0;
  for (const nb::handle tensor : tensors) {
    held.push_back(std::make_unique<Borrowed>(tensor.ptr()));
    views.push_back(held.back()->view());
    bytes += checked_bytes(views.back(), "LayerTask.deliver");
  }
  const MaybeReleaseGil release(bytes);
  if (chunk < 0) {
    self.deliver_whole(views, seconds);
  } else {
    self.deliver(static_cast<std::size_t>(chunk), views, seconds);
  }
}

constexpr const char* kBeginSignature =
    "def begin(self, tensors: collections.abc.Sequence[object], "
    "paths: collections.abc.Sequence[str], about: bytes, weights: bytes, secret: bytes | None, "
    "chunk: int, leaves: collections.abc.Sequence[tuple[str, collections.abc.Sequence[int]]]) "
    "-> LayerTask";
constexpr const char* kChunkSignature =
    "def task_chunk(self, about: bytes, "
    "shapes: collections.abc.Sequence[tuple[str, collections.abc.Sequence[int]]], "
    "secret: bytes | None, rows: int) -> int";

}  // namespace

void init_layer_task(nb::module_& m, nb::class_<Engine>& engine) {
  nb::class_<LayerTask>(m, "LayerTask",
                        "A call of a layer that runs inside a graph; for one thread at a time.")
      .def_static("aside", &LayerTask::aside, "rows"_a, "chunk"_a,
                  "Of a layer that is to run without the cache: `whole` is 1.")
      .def_static("capacity", &LayerTask::capacity, "rows"_a, "chunk"_a, "verify"_a,
                  "The chunks that a batch can need at most.")
      .def_prop_ro("rows", &LayerTask::rows, "Of the batch.")
      .def_prop_ro("chunk", &LayerTask::chunk, "Rows of a chunk.")
      .def_prop_ro("chunks", &LayerTask::chunks, "To be run.")
      .def_prop_ro(
          "whole", [](const LayerTask& self) { return static_cast<int>(self.whole()); },
          "0; 1: the layer runs on the whole batch, and that is the answer; 2: it does so too,\n"
          "and its output is delivered first.")
      .def(
          "positions",
          [](const LayerTask& self, nb::handle buffer) { write(buffer, self.positions()); },
          "buffer"_a, nb::sig("def positions(self, buffer: object) -> None"),
          "Write the rows to run, as int32, chunk after chunk.")
      .def(
          "targets",
          [](const LayerTask& self, nb::handle buffer) { write(buffer, self.targets()); },
          "buffer"_a, nb::sig("def targets(self, buffer: object) -> None"),
          "Write the row of the table that each is the answer of; the number of rows for none.")
      .def(
          "sources",
          [](const LayerTask& self, nb::handle buffer) { write(buffer, self.sources()); },
          "buffer"_a, nb::sig("def sources(self, buffer: object) -> None"),
          "Write for each row of the batch the row of the table that holds its answer.")
      .def("read", &read, "buffers"_a,
           nb::sig("def read(self, buffers: collections.abc.Sequence[object]) -> None"),
           "Write the rows that were found into tables, one for each leaf.")
      .def("deliver", &deliver, "chunk"_a, "tensors"_a, "seconds"_a,
           nb::sig("def deliver(self, chunk: int, tensors: collections.abc.Sequence[object], "
                   "seconds: float) -> None"),
           "Store what a chunk gave, one tensor for each leaf; -1: the whole batch.")
      .def_prop_ro(
          "deviation",
          [](const LayerTask& self) {
            const Deviation& found = self.deviation();
            return nb::make_tuple(found.rows, found.largest, found.where);
          },
          nb::sig("def deviation(self) -> tuple[int, float, str]"),
          "Of the hits that were computed again: how many differ, by how much, in which leaf.");
  engine
      .def("begin", &begin, "tensors"_a, "paths"_a, "about"_a, "weights"_a, "secret"_a.none(),
           "chunk"_a, "leaves"_a, nb::sig(kBeginSignature),
           "Look up a batch for a graph that was traced for chunks of so many rows. `leaves`:\n"
           "dtype and dims of a row of each tensor of the output.")
      .def("task_chunk", &task_chunk, "about"_a, "shapes"_a, "secret"_a.none(), "rows"_a,
           nb::sig(kChunkSignature),
           "In chunks of how many rows a graph should run such rows, in batches of `rows` (0: not\n"
           "known).");
}

}  // namespace tensorkey::python
