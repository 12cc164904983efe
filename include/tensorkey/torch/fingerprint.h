// Whether a layer is what it was, looked at as closely as asked (docs/frontends/libtorch.md):
//
//   kAuto    a guard on every call (address, version and sizes of each tensor; training flags), and
//            on every N-th a strict check: the layer is read anew and the bytes of its tensors are
//            digested. What is computed between two strict checks stays in this process until the
//            second finds the same layer.
//   kStrict  a strict check on every call
//   kGuard   a guard on every call; strict when it sees a change
//   kManual  nothing: the caller vouches, by a scope, for what the layer is
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <tensorkey/canonical.h>
#include <tensorkey/digest.h>
#include <tensorkey/fingerprint.h>
#include <tensorkey/key.h>
#include <tensorkey/layer.h>
#include <tensorkey/torch/source.h>
#include <tensorkey/torch/view.h>

namespace tensorkey::torch {

enum class Fingerprint : std::uint8_t { kAuto, kStrict, kGuard, kManual };

namespace internal {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A tensor as a guard sees it.
struct Guarded {
  explicit Guarded(const at::Tensor& t)
      : tensor(t),
        data(t.has_storage() ? t.const_data_ptr() : nullptr),
        version(t.unsafeGetTensorImpl()->is_inference() ? 0 : t._version()),
        sizes(t.sizes().vec()) {}

  // Tensors made in inference mode count no versions: they are never known to be unchanged.
  [[nodiscard]] bool unchanged() const {
    at::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
    return !impl->is_inference() && tensor._version() == version &&
           tensor.sizes() == at::IntArrayRef(sizes) &&
           (tensor.has_storage() ? tensor.const_data_ptr() : nullptr) == data;
  }

  at::Tensor tensor;
  const void* data;
  std::uint32_t version;
  std::vector<std::int64_t> sizes;
};

// Of the contents of tensors under their names, whatever their order.
inline Digest weights_digest(const std::vector<std::string>& names,
                             const std::vector<TensorView>& views) {
  std::vector<std::pair<std::string_view, Key>> content;
  for (std::size_t i = 0; i < views.size(); ++i) {
    content.emplace_back(names[i], tensorkey::key(views[i]));
  }
  std::sort(content.begin(), content.end());
  std::vector<std::string> items;
  for (const auto& [path, key] : content) {
    items.push_back(canonical::text(path));
    const Digest& bytes = key.bytes();
    items.push_back(
        canonical::item('K', {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  }
  const std::string encoded = canonical::tuple(items);
  return blake3(std::as_bytes(std::span(encoded)));
}

// What a check found.
struct LayerState {
  Digest structure{};
  Digest weights{};
  bool pending = false;     // only a guard was asked
  std::uint64_t epoch = 0;  // of the engine's pending rows
};

// Thread-safe, but for what other threads do to the layer meanwhile.
class Watch {
 public:
  Watch(std::unique_ptr<Source> source, Fingerprint mode)
      : source_(std::move(source)), mode_(mode) {
    const Reading reading = source_->read();
    guard(reading);
    if (mode == Fingerprint::kManual) {
      assumptions_.assign(1, "fingerprint kManual: the layer is what the scope says");
    }
    guarded_ = false;  // the first check is strict
  }

  [[nodiscard]] const Source& source() const noexcept { return *source_; }

  // Looks at the layer, once a call. Entries that were pending are kept or dropped by what it
  // finds.
  LayerState check(LayerEngine& engine) {
    if (mode_ == Fingerprint::kManual) return {};
    const std::lock_guard lock(mutex_);
    if (mode_ != Fingerprint::kStrict && guarded_ && !demanded_) {
      const bool due = engine.pending_full() || (mode_ == Fingerprint::kAuto && schedule_.due());
      if (!due && unchanged()) {
        LayerState state = known_;
        state.pending = true;
        state.epoch = engine.epoch();
        return state;
      }
    }
    strict(engine);
    return known_;
  }

  // Checks strictly now, so that what is pending goes to the disk or is dropped.
  void settle(LayerEngine& engine) {
    if (mode_ == Fingerprint::kManual) return;
    const std::lock_guard lock(mutex_);
    if (guarded_) strict(engine);
  }
  void demand() {
    const std::lock_guard lock(mutex_);
    demanded_ = true;
  }
  void observe_layer(double seconds) {
    const std::lock_guard lock(mutex_);
    schedule_.observe_layer(seconds);
  }

  // Whether gradients of the weights would be recorded. REQUIRES: gradients are.
  [[nodiscard]] bool trainable() const {
    const std::lock_guard lock(mutex_);
    for (const Guarded& each : tensors_) {
      if (each.tensor.requires_grad()) return true;
    }
    return false;
  }
  [[nodiscard]] std::uint32_t interval() const {
    const std::lock_guard lock(mutex_);
    return mode_ == Fingerprint::kStrict ? 1
           : mode_ == Fingerprint::kAuto ? schedule_.interval()
                                         : 0;
  }
  [[nodiscard]] std::vector<std::string> assumptions() const {
    const std::lock_guard lock(mutex_);
    return assumptions_;
  }

 private:
  [[nodiscard]] bool unchanged() const {
    for (const Guarded& each : tensors_) {
      if (!each.unchanged()) return false;
    }
    return source_->unchanged();
  }

  void guard(const Reading& reading) {
    tensors_.clear();
    for (const at::Tensor& tensor : reading.tensors) tensors_.emplace_back(tensor);
    source_->note();
    assumptions_ = reading.assumptions;
    guarded_ = true;
  }

  void strict(LayerEngine& engine) {
    const double start = seconds_now();
    guarded_ = false;
    demanded_ = false;
    const Reading reading = source_->read();
    guard(reading);  // before the bytes are read: a write in between is seen by the next check
    guarded_ = false;
    std::vector<HostView> hosts;
    std::vector<TensorView> views;
    hosts.reserve(reading.tensors.size());
    for (const at::Tensor& tensor : reading.tensors) views.push_back(hosts.emplace_back(tensor));
    const Change change{change_digest(views), reading.structure, reading.names};
    if (change == change_) {
      schedule_.observe_strict(seconds_now() - start);
      engine.confirm();
    } else {
      engine.drop_pending();
      known_.structure = blake3(std::as_bytes(std::span(reading.structure)));
      known_.weights = weights_digest(reading.names, views);
      change_ = change;
    }
    guarded_ = true;
  }

  struct Change {
    std::array<std::uint8_t, 16> digest{};
    std::string structure;
    std::vector<std::string> names;
    friend bool operator==(const Change&, const Change&) = default;
  };

  mutable std::mutex mutex_;
  std::unique_ptr<Source> source_;
  Fingerprint mode_;
  StrictSchedule schedule_;
  bool demanded_ = false;
  bool guarded_ = false;  // there is a strict check that the guard can build on
  std::vector<Guarded> tensors_;
  std::vector<std::string> assumptions_;
  std::optional<Change> change_;
  LayerState known_;
};

}  // namespace internal
}  // namespace tensorkey::torch
