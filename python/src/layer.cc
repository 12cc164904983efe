// LayerEngine and LayerAnswer: what the frontends run on, and what a cached layer counts beside.
#include <tensorkey/layer.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/error.h>

#include "failure.h"
#include "layer_engine.h"
#include "layer_runner.h"
#include "module.h"
#include "options.h"
#include "writable.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

nb::dict to_dict(const Counts& counts) {
  nb::dict result;
  for (const auto& [what, number] : counts) result[nb::str(what.c_str())] = number;
  return result;
}

Codec codec_of(const std::string& name) {
  if (const std::optional<Codec> codec = codec_from_name(name)) return *codec;
  throw Error(ErrorCode::kInvalidArgument, "[CachedLayer] codec is '" + name +
                                               "'; expected 'raw', 'lossless', 'fp16' or 'bf16'");
}

BypassMode mode_of(const std::string& name) {
  if (name == "auto") return BypassMode::kAuto;
  if (name == "never") return BypassMode::kNever;
  if (name == "always") return BypassMode::kAlways;
  throw Error(ErrorCode::kInvalidArgument,
              "[CachedLayer] bypass is '" + name + "'; expected 'auto', 'never' or 'always'");
}

const char* name_of(BypassMode mode) {
  switch (mode) {
    case BypassMode::kAuto: return "auto";
    case BypassMode::kNever: return "never";
    case BypassMode::kAlways: return "always";
  }
  return "";
}

// What Python raises for good.
struct Unsuited : LayerBypassed {
  using LayerBypassed::LayerBypassed;
};

// An answer and what it was written into, one object for each leaf.
struct Answer {
  LayerAnswer answer;
  nb::list memories;
};

// The memory of a tensor or buffer to be written: a PyTorch tensor exports no buffer, its memory
// comes over DLPack, where nothing is read-only.
class Destination {
 public:
  explicit Destination(nb::handle object) {
    if (PyObject_CheckBuffer(object.ptr()) != 0) {
      buffer_.emplace(object);
      bytes_ = buffer_->bytes();
      return;
    }
    tensor_.emplace(object.ptr());
    const TensorView& view = tensor_->view();
    const std::size_t size = checked_bytes(view, "LayerAnswer.assemble");
    std::int64_t contiguous = static_cast<std::int64_t>(item_size(view.dtype));
    for (std::size_t i = view.strides.size(); i-- > 0;) {
      if (size > 0 && view.shape[i] > 1 && view.strides[i] * view.stride_unit != contiguous) {
        throw Error(ErrorCode::kInvalidArgument,
                    "[LayerAnswer.assemble] the destination is not C-contiguous");
      }
      contiguous *= view.shape[i];
    }
    if (tensor_->framework() != Framework::kTorch || tensor_->host_copy()) {
      throw Error(
          ErrorCode::kUnsupported,
          "[LayerAnswer.assemble] expected a PyTorch tensor on the CPU or a writable buffer");
    }
    bytes_ = {const_cast<std::byte*>(static_cast<const std::byte*>(view.data)), size};
  }
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::optional<Writable> buffer_;
  std::optional<Borrowed> tensor_;
  std::span<std::byte> bytes_;
};

nb::object shape_of(const LeafShape& leaf) {
  nb::object dims = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(leaf.shape.size())));
  for (std::size_t d = 0; d < leaf.shape.size(); ++d) {
    PyTuple_SET_ITEM(dims.ptr(), static_cast<Py_ssize_t>(d), PyLong_FromLongLong(leaf.shape[d]));
  }
  return dims;
}

nb::str name_of(DType dtype) {
  const std::string_view name = to_string(dtype);
  return nb::str(name.data(), name.size());
}

nb::tuple leaves(const Answer& self) {
  nb::list result;
  for (const LeafShape& leaf : self.answer.leaves()) {
    result.append(nb::make_tuple(name_of(leaf.dtype), shape_of(leaf), leaf.by_row));
  }
  return nb::tuple(result);
}

// Writes the answer into what `allocate` gives for the dtype and the shape of each leaf.
void assemble(Answer& self, nb::handle allocate) {
  std::vector<std::unique_ptr<Destination>> held;
  std::vector<std::span<std::byte>> outs;
  std::size_t bytes = 0;
  for (const LeafShape& leaf : self.answer.leaves()) {
    const nb::object memory = allocate(name_of(leaf.dtype), shape_of(leaf));
    held.push_back(std::make_unique<Destination>(memory));
    outs.push_back(held.back()->bytes());
    bytes += outs.back().size();
    self.memories.append(memory);
  }
  const MaybeReleaseGil release(bytes);
  self.answer.assemble(outs);
}

Answer answer(Engine& self, const nb::sequence& tensors, const nb::sequence& paths, nb::handle ids,
              const nb::bytes& about, const nb::bytes& weights, nb::handle secret,
              std::optional<std::uint64_t> pending, bool vouched, nb::handle runner,
              nb::handle allocate) {
  Rows rows(tensors, paths, ids);
  LayerCall call = call_of(rows, {tensors, paths, ids, about, weights, secret});
  call.pending = pending.has_value();
  call.epoch = pending;
  call.vouched = vouched;
  try {
    Answer result{[&] {
                    PythonRunner lent(runner);  // at its end there is the GIL again
                    const MaybeReleaseGil release(self.stores ? kReleaseGilBytes : rows.bytes());
                    return self.core.answer(call, lent);
                  }(),
                  nb::list()};
    assemble(result, allocate);
    return result;
  } catch (const LayerAbandoned& abandoned) {
    std::rethrow_exception(abandoned.cause());
  }
}

const char* name_of(MissingRow::Why why) {
  switch (why) {
    case MissingRow::Why::kNew: return "new";
    case MissingRow::Why::kEvicted: return "evicted";
    case MissingRow::Why::kExpired: return "expired";
  }
  return "";
}

nb::dict missing(Engine& self, const nb::sequence& tensors, const nb::sequence& paths,
                 nb::handle ids, const nb::bytes& about, const nb::bytes& weights,
                 nb::handle secret) {
  Rows rows(tensors, paths, ids);
  const LayerCall call = call_of(rows, {tensors, paths, ids, about, weights, secret});
  std::vector<MissingRow> found;
  {
    const MaybeReleaseGil release(self.stores ? kReleaseGilBytes : rows.bytes());
    found = self.core.missing(call);
  }
  nb::dict result;
  for (const MissingRow& row : found) result[nb::int_(row.position)] = name_of(row.why);
  return result;
}

std::optional<nb::bytes> scope(Engine& self, const nb::sequence& tensors, const nb::sequence& paths,
                               nb::handle ids, const nb::bytes& about, const nb::bytes& weights) {
  Rows rows(tensors, paths, ids);
  const auto found =
      self.core.scope(call_of(rows, {tensors, paths, ids, about, weights, nb::none()}));
  if (!found) return std::nullopt;
  return nb::bytes(reinterpret_cast<const char*>(found->data()), found->size());
}

void add_memo(nb::dict& result, const MemoStats& stats) {
  result["batches"] = stats.batches;
  result["lookups"] = stats.lookups;
  result["hits"] = stats.hits;
  result["duplicates"] = stats.duplicates;
  result["waits"] = stats.waits;
  result["misses"] = stats.misses;
  result["misses_new"] = stats.misses_new;
  result["misses_evicted"] = stats.misses_evicted;
  result["misses_expired"] = stats.misses_expired;
  result["padded_rows"] = stats.padded_rows;
  result["rejections"] = stats.rejections;
  result["bytes_read"] = stats.bytes_read;
  result["seconds_saved"] = stats.seconds_saved;
  result["seconds_spent"] = stats.seconds_spent;
  result["seconds_digest"] = stats.seconds_digest;
  result["seconds_lookup"] = stats.seconds_lookup;
  result["seconds_insert"] = stats.seconds_insert;
  result["seconds_copy"] = stats.seconds_copy;
}

void add_bypass(nb::dict& result, Counts reasons, const BypassReport& report, BypassMode mode) {
  const std::string told = std::string("bypass='") + name_of(mode) + "'";
  result["decision"] = mode == BypassMode::kAuto ? report.decision : told;
  if (report.aside > 0) reasons["bypass='auto' stepped aside"] += report.aside;
  if (report.always > 0) reasons["bypass='always'"] += report.always;
  if (report.disabled > 0) reasons["tensorkey.disabled()"] += report.disabled;
  if (report.environment > 0) reasons["TENSORKEY_DISABLE is set"] += report.environment;
  result["bypasses"] = to_dict(reasons);
}

nb::dict stats(Engine& self) {
  nb::dict result;
  add_memo(result, self.core.memo().stats());
  const LayerStats layer = self.core.stats();
  result["probe_runs"] = layer.probe_runs;
  result["verified"] = layer.verified;
  result["deviating"] = layer.deviating;
  result["largest_deviation"] = layer.largest_deviation;
  result["pending"] = layer.pending;
  result["dropped_pending"] = layer.dropped_pending;
  result["seconds_frontend"] = layer.seconds_frontend;
  if (layer.verdict) {
    result["chunk"] = layer.verdict->chunk;
    result["probe"] = layer.verdict->text;
  }
  const Counters::Snapshot counted = self.counters.read();
  result["host_copy_rows"] = counted.host_copy_rows;
  result["host_copy_bytes"] = counted.host_copy_bytes;
  add_bypass(result, counted.reasons, self.core.bypass().report(), self.core.bypass().mode());
  result["errors"] = to_dict(counted.errors);
  nb::list said;
  for (const std::string& hint : self.core.hints()) said.append(hint);
  result["hints"] = said;
  return result;
}

void reset(Engine& self) {
  self.core.reset_stats();
  self.counters.clear();
}

// An open tensorkey.disabled().
struct Switch {
  std::optional<Disabled> held;
};

void init_answer(nb::module_& m) {
  nb::class_<Answer>(m, "LayerAnswer", "The answer to one batch; for one thread.")
      .def_prop_ro(
          "rows", [](const Answer& self) { return self.answer.rows(); }, "Rows of the batch.")
      .def_prop_ro(
          "memories", [](const Answer& self) { return self.memories; },
          nb::sig("def memories(self) -> list[typing.Any]"),
          "What the leaves were written into, rows in the order of the batch.")
      .def_prop_ro("leaves", &leaves,
                   nb::sig("def leaves(self) -> tuple[tuple[str, tuple[int, ...], bool], ...]"),
                   "For each leaf the name of its dtype, its shape and whether it is by row.")
      .def_prop_ro(
          "form",
          [](const Answer& self) {
            const std::string_view form = self.answer.form();
            return nb::bytes(form.data(), form.size());
          },
          "How the layer's output is made of the leaves: what the runner gave.")
      .def_prop_ro(
          "seconds_layer", [](const Answer& self) { return self.answer.seconds_layer(); },
          "Of the layer, in running rows.")
      .def_prop_ro(
          "deviation",
          [](const Answer& self) {
            const Deviation& found = self.answer.deviation();
            return nb::make_tuple(found.rows, found.largest, found.where);
          },
          nb::sig("def deviation(self) -> tuple[int, float, str]"),
          "Of the hits that were computed again: how many differ, by how much, in which leaf.")
      .def(
          "finish",
          [](Answer& self, double seconds) {
            self.answer.finish(seconds);
            return self.answer.rows_run();
          },
          "seconds"_a,
          "Report the call, and the seconds that it took in all; returns the rows that were run,\n"
          "padding and hits that were computed again included.");
}

constexpr const char* kAnswerSignature =
    "def answer(self, tensors: collections.abc.Sequence[object], "
    "paths: collections.abc.Sequence[str], "
    "ids: collections.abc.Sequence[str | bytes | int] | None, about: bytes, weights: bytes, "
    "secret: bytes | None, pending: int | None, vouched: bool, runner: object, "
    "allocate: collections.abc.Callable[[str, tuple[int, ...]], typing.Any]) -> LayerAnswer";
constexpr const char* kMissingSignature =
    "def missing(self, tensors: collections.abc.Sequence[object], "
    "paths: collections.abc.Sequence[str], "
    "ids: collections.abc.Sequence[str | bytes | int] | None, about: bytes, weights: bytes, "
    "secret: bytes | None) -> dict[int, str]";
constexpr const char* kScopeSignature =
    "def scope(self, tensors: collections.abc.Sequence[object], "
    "paths: collections.abc.Sequence[str], "
    "ids: collections.abc.Sequence[str | bytes | int] | None, about: bytes, weights: bytes) "
    "-> bytes | None";

void init_engine(nb::module_& m) {
  nb::class_<Engine> engine(m, "LayerEngine",
                            "The engine of one cached layer over a cache. Thread-safe.");
  engine
      .def(
          "__init__",
          [](Engine* self, std::shared_ptr<ActivationCache> cache, std::uint32_t chunk,
             bool rows_are_batches, bool probe, bool accept_slot, double verify, double tolerance,
             const std::string& codec, const std::string& bypass) {
            new (self) Engine(std::move(cache), {.chunk = chunk,
                                                 .rows_are_batches = rows_are_batches,
                                                 .probe = probe,
                                                 .accept_slot = accept_slot,
                                                 .verify = verify,
                                                 .tolerance = tolerance,
                                                 .codec = codec_of(codec),
                                                 .bypass = mode_of(bypass)});
          },
          "cache"_a, nb::kw_only(), "chunk"_a = 0, "rows_are_batches"_a = false, "probe"_a = true,
          "accept_slot"_a = false, "verify"_a = 0.0, "tolerance"_a = 0.0, "codec"_a = "raw",
          "bypass"_a = "auto")
      .def("answer", &answer, "tensors"_a, "paths"_a, "ids"_a.none(), "about"_a, "weights"_a,
           "secret"_a.none(), "pending"_a.none(), "vouched"_a, "runner"_a, "allocate"_a,
           nb::sig(kAnswerSignature),
           "Answer a batch: rows of tensors that share their first dimension, or rows with ids.\n"
           "`allocate` gives C-contiguous tensors or buffers to write leaves into.\n"
           "`pending`: `epoch` as it was before the weights were looked at, if not at all of them.")
      .def_prop_ro(
          "epoch", [](const Engine& self) { return self.core.epoch(); },
          "How often pending rows were dropped.")
      .def("missing", &missing, "tensors"_a, "paths"_a, "ids"_a.none(), "about"_a, "weights"_a,
           "secret"_a.none(), nb::sig(kMissingSignature),
           "Positions of rows that answer() would have to run, ascending, and why: \"new\",\n"
           "\"evicted\" or \"expired\".")
      .def("scope", &scope, "tensors"_a, "paths"_a, "ids"_a.none(), "about"_a, "weights"_a,
           nb::sig(kScopeSignature),
           "The scope under which the rows are, if their plan is known to this engine.")
      .def(
          "confirm", [](Engine& self) { return self.core.confirm(); },
          nb::call_guard<nb::gil_scoped_release>(), "Give pending rows to the tiers below memory.")
      .def(
          "drop_pending", [](Engine& self) { return self.core.drop_pending(); },
          nb::call_guard<nb::gil_scoped_release>(), "Take pending rows back.")
      .def_prop_ro(
          "pending", [](const Engine& self) { return self.core.stats().pending; },
          "Rows that wait for one of the two.")
      .def_prop_ro(
          "pending_full", [](const Engine& self) { return self.core.pending_full(); },
          "Whether it is time for one of the two.")
      .def(
          "clear", [](Engine& self) { return self.core.clear(); },
          nb::call_guard<nb::gil_scoped_release>(),
          "Drop the entries of all scopes that this engine has used.")
      .def(
          "aside", [](Engine& self) { return self.core.bypass().aside(); },
          "Whether this call is to run the layer alone; counts it if so.")
      .def(
          "bypass", [](Engine& self, const std::string& why) { self.counters.bypassed(why); },
          "reason"_a, "Count a call that ran without the cache.")
      .def(
          "error", [](Engine& self, const std::string& kind) { self.counters.failed(kind); },
          "kind"_a, "Count an exception.")
      .def(
          "host_copy",
          [](Engine& self, std::uint64_t rows, std::uint64_t bytes) {
            self.counters.copied(rows, bytes);
          },
          "rows"_a, "bytes"_a, "Count what was copied from a device.")
      .def_prop_rw(
          "mode", [](Engine& self) { return name_of(self.core.bypass().mode()); },
          [](Engine& self, const std::string& mode) { self.core.bypass().set_mode(mode_of(mode)); },
          "\"auto\", \"never\" or \"always\".")
      .def("stats", &stats, nb::sig("def stats(self) -> dict[str, object]"),
           "All counters of the layer in one snapshot.")
      .def("reset", &reset, "Set all counters to zero; what was learned stays.");
  init_layer_task(m, engine);
}

}  // namespace

void init_layer(nb::module_& m) {
  auto bypassed = nb::exception<LayerBypassed>(m, "Bypassed");
  bypassed.attr("__doc__") = "The call runs without the cache; the text says why.";
  auto unsuited = nb::exception<Unsuited>(m, "Unsuited", bypassed);
  unsuited.attr("__doc__") = "So do all calls like it: outputs of this layer cannot be cached.";
  set_bypassed_classes(bypassed, unsuited);
  init_answer(m);
  init_engine(m);
  nb::class_<Switch>(m, "Switch", "While open, all cached layers run without their caches.")
      .def(nb::init<>())
      .def("open", [](Switch& self) { self.held.emplace(); })
      .def("close", [](Switch& self) { self.held.reset(); });
  m.def("is_disabled", &disabled,
        "Whether caches are switched off, by disabled() or by TENSORKEY_DISABLE.");
}

}  // namespace tensorkey::python
