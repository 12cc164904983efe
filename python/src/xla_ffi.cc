// The functions that programs of XLA's call on the CPU, and what Python makes them known by. None
// of them takes the GIL, but for what Listener says.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <tensorkey/error.h>

#include "layer_engine.h"
#include "module.h"
#include "options.h"
#include "xla_ffi_call.h"
#include "xla_ffi_frame.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python::xla {
namespace {

// --- Handlers: arguments and results are those of tensorkey/_jax_ffi.py.

constexpr Digest kUnknown{};  // of weights that have no digest

std::vector<TensorView> arguments(const Frame& frame, std::size_t first, std::size_t count) {
  std::vector<TensorView> views;
  views.reserve(count);
  for (std::size_t i = first; i < first + count; ++i) views.push_back(frame.argument(i));
  return views;
}

std::span<std::int32_t> numbers(const Frame& frame, std::size_t result) {
  const std::span<std::byte> memory = frame.memory(result);
  if (frame.result(result).dtype != DType::kInt32) {
    throw Error(ErrorCode::kInvalidArgument, "[tensorkey] a result of XLA's that is not int32");
  }
  return {reinterpret_cast<std::int32_t*>(memory.data()), memory.size() / sizeof(std::int32_t)};
}

void expect(bool fits) {
  if (!fits) throw Error(ErrorCode::kInvalidArgument, "[tensorkey] a call of XLA's of other arity");
}

// Weights -> 32 bytes.
void digest_weights(const Frame& frame) {
  expect(frame.results() == 1);
  const std::span<std::byte> out = frame.memory(0);
  expect(out.size() == sizeof(Digest));
  const std::shared_ptr<Call> call = find(frame.attribute("handle"));
  Digest digest = kUnknown;
  if (call && call->passes_weights()) {
    digest = call->weights(arguments(frame, 0, frame.arguments())).value_or(kUnknown);
  }
  std::memcpy(out.data(), digest.data(), sizeof digest);
}

// Tensors with rows, and 32 bytes if weights are passed -> ticket, whole, chunks, positions,
// targets, sources, tables.
void look_up(const Frame& frame) {
  expect(frame.arguments() >= 1 && frame.results() > 6);
  Room room{.positions = numbers(frame, 3),
            .targets = numbers(frame, 4),
            .sources = numbers(frame, 5),
            .tables = {}};
  for (std::size_t i = 6; i < frame.results(); ++i) room.tables.push_back(frame.memory(i));
  const std::shared_ptr<Call> call = find(frame.attribute("handle"));
  Found found;
  if (!call) {
    found = aside(room);
  } else {
    const std::size_t members = call->members();
    expect(frame.arguments() == members + (call->passes_weights() ? 1 : 0));
    expect(room.tables.size() == call->leaves());
    std::optional<Digest> weights;
    if (call->passes_weights()) {
      const TensorView view = frame.argument(members);
      check_view(view, "tensorkey");
      expect(byte_count(view) == sizeof(Digest));
      std::memcpy(&weights.emplace(), view.data, sizeof(Digest));
      if (*weights == kUnknown) weights.reset();
    }
    found = call->look_up(arguments(frame, 0, members), weights, room);
  }
  const std::array<std::int32_t, 3> told = {found.ticket, found.whole, found.chunks};
  for (std::size_t i = 0; i < told.size(); ++i) {
    const std::span<std::int32_t> out = numbers(frame, i);
    expect(out.size() == 1);
    out[0] = told[i];
  }
}

// Ticket, number of the chunk, outputs -> 0.
void deliver(const Frame& frame) {
  expect(frame.arguments() > 2 && frame.results() == 1);
  const std::span<std::int32_t> token = numbers(frame, 0);
  std::ranges::fill(token, 0);
  const std::shared_ptr<Call> call = find(frame.attribute("handle"));
  if (!call) return;
  call->deliver(frame.number(0), frame.number(1), arguments(frame, 2, frame.arguments() - 2));
}

template <void (*kRun)(const Frame&)>
Failure* handler(CallFrame* frame) noexcept {
  return handled(frame, kRun);
}

// --- Python

// Functions of Python's. They hold no call, or none would ever be dropped.
class PythonListener final : public Listener {
 public:
  PythonListener(nb::handle looked_up, nb::handle deviated)
      : looked_up_(held(looked_up)), deviated_(held(deviated)) {}

  void looked_up(const Digest& weights) override {
    if (!python_lives()) return;
    const nb::gil_scoped_acquire acquire;
    run([&] { nb::handle(looked_up_.get())(nb::bytes(weights.data(), weights.size())); });
  }

  void deviated(const Deviation& found) override {
    if (!python_lives()) return;
    const nb::gil_scoped_acquire acquire;
    run([&] {
      nb::handle(deviated_.get())(nb::make_tuple(found.rows, found.largest, found.where));
    });
  }

 private:
  static bool python_lives() noexcept { return Py_IsInitialized() != 0 && nb::is_alive(); }

  static std::shared_ptr<PyObject> held(nb::handle object) {
    return {object.inc_ref().ptr(), [](PyObject* dropped) {
              if (!python_lives()) return;  // too late to free anything
              const nb::gil_scoped_acquire acquire;
              Py_DECREF(dropped);
            }};
  }

  // With the GIL: what Python raises becomes an exception that needs none.
  template <class Run>
  static void run(Run&& what) {
    try {
      what();
    } catch (const nb::python_error& error) {
      throw std::runtime_error(nb::cast<std::string>(nb::str(error.type().attr("__name__"))) +
                               ": " + nb::cast<std::string>(nb::str(error.value())));
    }
  }

  std::shared_ptr<PyObject> looked_up_;
  std::shared_ptr<PyObject> deviated_;
};

// A call that is known by its handle while this lives.
struct Entered {
  explicit Entered(const std::shared_ptr<Call>& made) : call(made), handle(enter(made)) {}
  ~Entered() { leave(handle); }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

  std::shared_ptr<Call> call;
  std::int64_t handle;
};

std::string text_of(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

using RowShape = std::pair<std::string, std::vector<std::int64_t>>;
using Group = std::tuple<std::optional<nb::bytes>, std::vector<nb::bytes>, std::vector<std::size_t>,
                         std::vector<std::pair<nb::bytes, nb::bytes>>>;

WeightGroup group_of(const Group& given) {
  const auto& [known, names, places, fixed] = given;
  if (names.size() != places.size()) {
    throw Error(ErrorCode::kInvalidArgument, "[XlaCall] expected a place for each name");
  }
  WeightGroup group{.known = std::nullopt, .names = {}, .places = places, .fixed = {}};
  if (known) group.known = digest_of(*known, "weights");
  for (const nb::bytes& name : names) group.names.push_back(text_of(name));
  for (const auto& [name, content] : fixed) {
    group.fixed.emplace_back(text_of(name), Key(digest_of(content, "a constant")));
  }
  return group;
}

void make(Entered* self, std::shared_ptr<Engine> engine, std::vector<std::string> paths,
          const nb::bytes& about, nb::handle secret, std::uint32_t chunk,
          const std::vector<RowShape>& leaves, const std::vector<Group>& weights, bool passed,
          nb::handle looked_up, nb::handle deviated) {
  CallOptions options{.paths = std::move(paths),
                      .about = digest_of(about, "about"),
                      .secret = std::nullopt,
                      .chunk = chunk,
                      .leaves = {},
                      .weights = {}};
  if (const auto given = key_options(nb::bytes("", 0), secret, false, "XlaCall").secret) {
    std::ranges::copy(*given, options.secret.emplace().begin());
  }
  for (const auto& [name, dims] : leaves) {
    const std::optional<DType> dtype = dtype_from_name(name);
    if (!dtype) throw LayerBypassed("a tensor of dtype " + name + " cannot be stored");
    options.leaves.push_back({.dtype = *dtype, .shape = dims});
  }
  std::vector<WeightGroup> groups;
  groups.reserve(weights.size());
  for (const Group& group : weights) groups.push_back(group_of(group));
  if (groups.empty() || (!passed && (groups.size() > 1 || !groups[0].known))) {
    throw Error(ErrorCode::kInvalidArgument, "[XlaCall] expected the weights, or one digest");
  }
  if (passed) {
    options.weights = std::make_shared<const Weights>(std::move(groups));
  } else {
    options.weights = *groups[0].known;
  }
  new (self) Entered(std::make_shared<Call>(std::move(engine), std::move(options),
                                            std::make_unique<PythonListener>(looked_up, deviated)));
}

nb::dict handlers() {
  nb::dict result;
  const auto add = [&](const char* name, Handler* function) {
    result[name] = nb::capsule(reinterpret_cast<void*>(function));
  };
  add("tensorkey_weights", &handler<digest_weights>);
  add("tensorkey_look_up", &handler<look_up>);
  add("tensorkey_deliver", &handler<deliver>);
  return result;
}

}  // namespace
}  // namespace tensorkey::python::xla

namespace tensorkey::python {

void init_xla_ffi(nb::module_& m) {
  nb::class_<xla::Entered>(m, "XlaCall",
                           "A traced call of a layer that programs of XLA's make without Python, "
                           "as long as this lives.\n"
                           "See tensorkey/_graph.py, whose GraphCall it is the twin of.")
      .def("__init__", &xla::make, "engine"_a, nb::kw_only(), "paths"_a, "about"_a,
           "secret"_a.none(), "chunk"_a, "leaves"_a, "weights"_a, "passed"_a, "looked_up"_a,
           "deviated"_a)
      .def_ro("handle", &xla::Entered::handle, "What a program knows it by.");
  m.def("xla_handlers", &xla::handlers, nb::sig("def xla_handlers() -> dict[str, object]"),
        "Names and capsules of the functions that programs call.");
  m.def(
      "xla_version",
      []() -> std::optional<std::pair<int, int>> {
        const std::int64_t version = xla::runtime_version();
        if (version < 0) return std::nullopt;
        return std::pair(static_cast<int>(version >> 32), static_cast<int>(version & 0xFFFFFFFF));
      },
      "Version of the FFI of the runtime that handlers were registered with; None if it does not "
      "say.");
}

}  // namespace tensorkey::python
