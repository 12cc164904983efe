// A layer as the engine sees it, that lives in Python: an object with the methods of LayerRunner.
//
//   prepare(positions)                 run(positions) -> (leaves, paths, form, seconds)
//   input_keys(positions) -> Keys      changes() -> list[str]     restore()
//   random_state() -> bytes            set_random_state(bytes)
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <tensorkey/layer.h>

namespace tensorkey::python {

// `_core.Bypassed`: what a runner raises, and answer() too, for a call to run without the cache.
// `_core.Unsuited`, of that class: for this call and every other like it.
void set_bypassed_classes(nanobind::handle bypassed, nanobind::handle unsuited) noexcept;

// REQUIRES: the GIL when it is made and when it is destroyed. Its methods take it themselves.
class PythonRunner final : public LayerRunner {
 public:
  explicit PythonRunner(nanobind::handle runner) : runner_(nanobind::borrow(runner)) {}

  void prepare(std::span<const std::int64_t> positions) override;
  std::unique_ptr<LayerOutput> run(std::span<const std::int64_t> positions) override;
  std::vector<Key> input_keys(std::span<const std::int64_t> positions) override;
  std::vector<std::string> changes() override;
  void restore() override;
  std::string random_state() override;
  void set_random_state(std::string_view state) override;
  // From the first call on, until the runner is destroyed, other threads may run.
  void poll() override;

 private:
  nanobind::object runner_;
  std::optional<nanobind::gil_scoped_release> waiting_;
};

}  // namespace tensorkey::python
