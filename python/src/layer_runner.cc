#include "layer_runner.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include <tensorkey/error.h>

#include "acquire.h"
#include "failure.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

PyObject* bypassed_class = nullptr;
PyObject* unsuited_class = nullptr;

nb::list to_list(std::span<const std::int64_t> positions) {
  nb::list list;
  for (const std::int64_t position : positions) list.append(position);
  return list;
}

// Runs code of Python; what it raises becomes what the engine knows.
template <typename Work>
auto guarded(Work work) {
  const nb::gil_scoped_acquire acquire;
  try {
    return work();
  } catch (nb::python_error& error) {
    if (error.matches(bypassed_class)) {
      throw LayerBypassed(nb::cast<std::string>(nb::str(error.value())),
                          error.matches(unsuited_class));
    }
    if (PythonFailure(error).is_exception()) throw PythonFailure(error);
    throw LayerAbandoned(std::make_exception_ptr(PythonFailure(error)));
  }
}

std::string to_string(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

class PythonOutput final : public LayerOutput {
 public:
  explicit PythonOutput(const nb::tuple& output)
      : tensors_(nb::borrow(output[0])),
        paths_(nb::cast<std::vector<std::string>>(output[1])),
        form_(to_string(nb::cast<nb::bytes>(output[2]))),
        seconds_(nb::cast<double>(output[3])) {
    for (const nb::handle tensor : tensors_) {
      borrowed_.push_back(std::make_unique<Borrowed>(tensor.ptr()));
      views_.push_back(borrowed_.back()->view());
    }
    if (paths_.size() != views_.size()) {
      throw Error(ErrorCode::kInternal, "[LayerRunner] run() gave other paths than leaves");
    }
  }
  ~PythonOutput() override {
    const nb::gil_scoped_acquire acquire;
    borrowed_.clear();
    tensors_.reset();
  }
  PythonOutput(const PythonOutput&) = delete;
  PythonOutput& operator=(const PythonOutput&) = delete;

  [[nodiscard]] std::span<const TensorView> leaves() const override { return views_; }
  [[nodiscard]] std::string path(std::size_t leaf) const override { return paths_.at(leaf); }
  [[nodiscard]] std::string form() const override { return form_; }
  [[nodiscard]] double seconds() const override { return seconds_; }

 private:
  nb::object tensors_;
  std::vector<std::string> paths_;
  std::string form_;
  double seconds_;
  std::vector<std::unique_ptr<Borrowed>> borrowed_;
  std::vector<TensorView> views_;
};

}  // namespace

void set_bypassed_classes(nb::handle bypassed, nb::handle unsuited) noexcept {
  bypassed_class = bypassed.ptr();
  unsuited_class = unsuited.ptr();
}

void PythonRunner::prepare(std::span<const std::int64_t> positions) {
  guarded([&] { runner_.attr("prepare")(to_list(positions)); });
}

std::unique_ptr<LayerOutput> PythonRunner::run(std::span<const std::int64_t> positions) {
  return guarded([&]() -> std::unique_ptr<LayerOutput> {
    return std::make_unique<PythonOutput>(nb::tuple(runner_.attr("run")(to_list(positions))));
  });
}

std::vector<Key> PythonRunner::input_keys(std::span<const std::int64_t> positions) {
  return guarded([&] {
    std::vector<Key> keys;
    for (const nb::handle key : runner_.attr("input_keys")(to_list(positions))) {
      keys.push_back(nb::cast<Key>(key));
    }
    return keys;
  });
}

std::vector<std::string> PythonRunner::changes() {
  return guarded([&] { return nb::cast<std::vector<std::string>>(runner_.attr("changes")()); });
}

void PythonRunner::restore() {
  guarded([&] { runner_.attr("restore")(); });
}

std::string PythonRunner::random_state() {
  return guarded([&] { return to_string(nb::cast<nb::bytes>(runner_.attr("random_state")())); });
}

void PythonRunner::set_random_state(std::string_view state) {
  guarded([&] { runner_.attr("set_random_state")(nb::bytes(state.data(), state.size())); });
}

void PythonRunner::poll() {
  if (!waiting_ && PyGILState_Check() != 0) waiting_.emplace();
  check_signals();
}

}  // namespace tensorkey::python
