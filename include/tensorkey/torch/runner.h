// How the engine runs a layer of LibTorch: on copies of some rows of a batch, in fresh memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <tensorkey/fingerprint.h>
#include <tensorkey/layer.h>
#include <tensorkey/torch/fingerprint.h>
#include <tensorkey/torch/nest.h>
#include <tensorkey/torch/source.h>
#include <tensorkey/torch/view.h>

namespace tensorkey::torch::internal {

using Arguments = std::vector<c10::IValue>;
using Function = std::function<c10::IValue(Arguments)>;

class RunOutput final : public LayerOutput {
 public:
  RunOutput(Packed packed, double seconds) : packed_(std::move(packed)), seconds_(seconds) {
    hosts_.reserve(packed_.tensors.size());
    for (const at::Tensor& tensor : packed_.tensors) {
      views_.push_back(hosts_.emplace_back(tensor.detach()));
    }
  }
  [[nodiscard]] std::span<const TensorView> leaves() const override { return views_; }
  [[nodiscard]] std::string path(std::size_t leaf) const override {
    return packed_.paths[leaf].empty() ? "output" : packed_.paths[leaf];
  }
  [[nodiscard]] std::string form() const override { return packed_.description; }
  [[nodiscard]] double seconds() const override { return seconds_; }

 private:
  Packed packed_;
  double seconds_;
  std::vector<HostView> hosts_;
  std::vector<TensorView> views_;
};

// The generators that a layer may draw from: of the CPU, and of each CUDA device that is in use.
inline std::vector<at::Generator> generators() {
  std::vector<at::Generator> found{at::detail::getDefaultCPUGenerator()};
  if (!at::hasCUDA()) return found;
  const auto& hooks = at::detail::getCUDAHooks();
  for (int i = 0; i < hooks.getNumGPUs(); ++i) {
    const auto index = static_cast<c10::DeviceIndex>(i);
    if (!hooks.hasPrimaryContext(index)) continue;
    found.push_back(at::globalContext().defaultGenerator(c10::Device(c10::kCUDA, index)));
  }
  return found;
}

// Waits until what was begun on the device of this thread's stream is done.
inline void synchronize(c10::Device device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.getStream(device).synchronize();
}

inline bool out_of_memory(const std::exception& error) {
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
         dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         std::string_view(error.what()).find("allocate memory") != std::string_view::npos;
}

// Borrows all it is given, for one call.
class Runner final : public LayerRunner {
 public:
  // `is_row[i]`: whether the i-th tensor among the arguments has a row for each of `rows`.
  Runner(const Arguments& arguments, const std::vector<bool>& is_row, std::int64_t rows,
         c10::Device home, const Function& function, const Source& source)
      : arguments_(arguments),
        is_row_(is_row),
        rows_(rows),
        home_(home),
        function_(function),
        source_(source) {}

  std::unique_ptr<LayerOutput> run(std::span<const std::int64_t> positions) override {
    const at::NoGradGuard no_grad;
    const auto count = static_cast<std::int64_t>(positions.size());
    try {
      Arguments taken = take(positions);
      const double start = seconds_now();
      const c10::IValue output = function_(std::move(taken));
      synchronize(home_);
      const double seconds = seconds_now() - start;
      seconds_ += seconds;
      Packed packed = Packer(count, home_).pack(output);
      if (packed.tensors.empty()) throw LayerBypassed("the output holds no tensor", true);
      return std::make_unique<RunOutput>(std::move(packed), seconds);
    } catch (const std::exception& error) {
      if (count <= rows_ || !out_of_memory(error)) throw;
      throw LayerBypassed("a chunk of " + std::to_string(count) +
                          " rows is too large for this machine: chunk=1 runs row by row");
    }
  }

  std::vector<std::string> changes() override {
    Reading now = source_.read();
    std::vector<std::string> changed;
    std::vector<std::array<std::uint8_t, 16>> digests;
    for (const at::Tensor& tensor : now.tensors) {
      std::array<std::uint8_t, 16> digest{};
      if (refusal(tensor) == nullptr && dtype_of(tensor.scalar_type())) {
        const HostView host(tensor);
        digest = change_digest({&host.get(), 1});
      }
      digests.push_back(digest);
    }
    if (!digests_.empty() || !before_.structure.empty()) {
      if (now.structure != before_.structure) changed.emplace_back("an attribute");
      for (std::size_t i = 0; i < std::min(digests.size(), digests_.size()); ++i) {
        if (digests[i] != digests_[i]) changed.push_back(now.names[i]);
      }
    } else {
      for (const at::Tensor& tensor : now.tensors)
        saved_.emplace_back(tensor, tensor.detach().clone());
    }
    before_ = std::move(now);
    digests_ = std::move(digests);
    return changed;
  }

  void restore() override {
    const at::NoGradGuard no_grad;
    for (const auto& [tensor, copy] : saved_) {
      if (!tensor.equal(copy)) tensor.copy_(copy);
    }
  }

  std::string random_state() override {
    std::string all;
    for (const at::Generator& generator : generators()) {
      const at::Tensor state = generator.get_state();
      all.append(static_cast<const char*>(state.const_data_ptr()), state.nbytes());
    }
    return all;
  }

  void set_random_state(std::string_view state) override {
    for (at::Generator& generator : generators()) {
      at::Tensor part = generator.get_state();
      if (state.size() < part.nbytes()) return;  // of a device that came into use since
      std::memcpy(part.mutable_data_ptr(), state.data(), part.nbytes());
      state.remove_prefix(part.nbytes());
      const std::lock_guard lock(generator.mutex());
      generator.set_state(part);
    }
  }

  // What the layer itself took.
  [[nodiscard]] double seconds() const noexcept { return seconds_; }

 private:
  // Copies of rows in fresh contiguous memory: never views, whose alignment changes bits.
  [[nodiscard]] Arguments take(std::span<const std::int64_t> positions) const {
    const at::Tensor on_host =
        at::empty({static_cast<std::int64_t>(positions.size())}, at::dtype(at::kLong));
    std::memcpy(on_host.mutable_data_ptr(), positions.data(), positions.size_bytes());
    at::Tensor index = on_host;
    std::size_t number = 0;
    const auto rows_of = [&](const at::Tensor& tensor, const std::string&) {
      if (!is_row_[number++]) return tensor;
      if (index.device() != tensor.device()) index = on_host.to(tensor.device());
      return tensor.detach().index_select(0, index).contiguous();
    };
    Arguments taken;
    taken.reserve(arguments_.size());
    for (const c10::IValue& argument : arguments_) {
      taken.push_back(transformed(argument, "", rows_of));
    }
    return taken;
  }

  const Arguments& arguments_;
  const std::vector<bool>& is_row_;
  std::int64_t rows_;
  c10::Device home_;
  const Function& function_;
  const Source& source_;
  double seconds_ = 0;
  Reading before_;
  std::vector<std::array<std::uint8_t, 16>> digests_;
  std::vector<std::pair<at::Tensor, at::Tensor>> saved_;
};

}  // namespace tensorkey::torch::internal
