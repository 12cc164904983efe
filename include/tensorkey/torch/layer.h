// A cached layer, whatever it wraps: arguments in, answer out, as IValues.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <tensorkey/canonical.h>
#include <tensorkey/error.h>
#include <tensorkey/layer.h>
#include <tensorkey/torch/arguments.h>
#include <tensorkey/torch/environment.h>
#include <tensorkey/torch/fingerprint.h>
#include <tensorkey/torch/nest.h>
#include <tensorkey/torch/options.h>
#include <tensorkey/torch/runner.h>
#include <tensorkey/torch/source.h>

namespace tensorkey::torch {

// What the entries of a call are found under, the chunk aside (docs/key_format.md, "about").
struct CallDigests {
  Digest about;
  Digest weights;
};

}  // namespace tensorkey::torch

namespace tensorkey::torch::internal {

// The transformation that this thread is under, if any: its tensors stand for others.
inline const char* transformation() {
  if (::torch::jit::tracer::isTracing()) return "torch::jit::trace";
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return "a dispatch mode";
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    return "a functorch transform";
  }
  return nullptr;
}

// What an answer depends on besides rows and weights (docs/key_format.md, "about").
inline Digest about_digest(const Environment& environment, const Options& options,
                           const Digest& structure, const CallForm& form) {
  using namespace canonical;
  const std::string encoded =
      tuple({text("tensorkey about"), integer(1), text("torch"), text("forward"), text("each"),
             none(), environment.encoded(), bytes(options.scope),
             text(is_lossy(options.codec) ? to_string(options.codec) : ""), bytes(structure),
             bytes(form.encoded())});
  return blake3(std::as_bytes(std::span(encoded)));
}

// Thread-safe.
class Layer {
 public:
  // `parameters` names the arguments; with Options::inputs in their place, if there are any.
  Layer(std::unique_ptr<Source> source, std::vector<Parameter> parameters, const Options& options)
      : options_(options),
        parameters_(std::move(parameters)),
        engine_(cache_of(options), LayerOptions{.chunk = options.chunk,
                                                .probe = options.probe,
                                                .accept_slot = options.accept_slot,
                                                .verify = options.verify,
                                                .tolerance = options.tolerance,
                                                .codec = options.codec,
                                                .bypass = options.bypass}),
        watch_(std::move(source), options.fingerprint) {
    if (options.inputs.empty()) return;
    parameters_.resize(options.inputs.size());
    for (std::size_t i = 0; i < parameters_.size(); ++i) parameters_[i].name = options.inputs[i];
  }

  ~Layer() {
    try {
      watch_.settle(engine_);
    } catch (...) {  // a layer that cannot be read any more: what is pending is not kept
      engine_.drop_pending();
    }
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  c10::IValue call(Arguments arguments, const Function& function) {
    try {
      if (!engine_.bypass().aside()) return cached(arguments, function);
    } catch (const LayerBypassed& reason) {
      const std::lock_guard lock(mutex_);
      ++uncached_[reason.what()];
    }
    return function(std::move(arguments));
  }

  [[nodiscard]] CallDigests digests(const Arguments& arguments) {
    const LayerState state = watch_.check(engine_);
    return {about_of(CallForm(arguments, parameters_), state), state.weights};
  }

  [[nodiscard]] Stats stats() const {
    Stats stats{.memo = engine_.memo().stats(),
                .layer = engine_.stats(),
                .bypass = engine_.bypass().report(),
                .uncached = {},
                .strict_interval = watch_.interval(),
                .assumptions = watch_.assumptions(),
                .hints = engine_.hints()};
    const std::lock_guard lock(mutex_);
    stats.uncached = uncached_;
    return stats;
  }
  void reset_stats() {
    engine_.reset_stats();
    engine_.bypass().reset_counts();
    const std::lock_guard lock(mutex_);
    uncached_.clear();
  }

  // Checks the layer strictly, and waits until what was computed is on disk.
  bool flush(double seconds) {
    watch_.settle(engine_);
    return engine_.cache().flush(seconds);
  }
  [[nodiscard]] LayerEngine& engine() noexcept { return engine_; }
  [[nodiscard]] Watch& watch() noexcept { return watch_; }

 private:
  static std::shared_ptr<ActivationCache> cache_of(const Options& options) {
    if (options.cache) {
      if (options.memory || !options.disk.empty() || options.disk_limit != 0) {
        throw Error(ErrorCode::kInvalidArgument,
                    "[torch::cached] cache together with memory or disk; expected one of them");
      }
      return options.cache;
    }
    CacheOptions made;
    if (options.memory) made.memory = *options.memory;
    made.disk = options.disk;
    made.disk_limit = options.disk_limit;
    made.secret = options.secret;
    return std::make_shared<ActivationCache>(made);
  }

  c10::IValue cached(const Arguments& arguments, const Function& function) {
    const double start = seconds_now();
    if (const char* const why = transformation()) throw LayerBypassed(why);
    const CallForm form(arguments, parameters_);
    if (c10::GradMode::is_enabled() && watch_.trainable()) {
      throw LayerBypassed(
          "gradients of the layer are recorded: make the call under torch::NoGradGuard, or freeze "
          "its parameters by requires_grad_(false)");
    }
    const LayerState state = watch_.check(engine_);
    std::vector<HostView> hosts;
    std::vector<TupleMember> members;
    hosts.reserve(form.tensors().size());
    for (std::size_t i = 0; i < form.tensors().size(); ++i) {
      members.push_back({form.paths()[i], hosts.emplace_back(form.tensors()[i]).get()});
    }
    LayerCall call{.members = members,
                   .about = about_of(form, state),
                   .weights = state.weights,
                   .pending = state.pending,
                   .epoch = state.epoch};
    if (options_.secret) call.secret = *options_.secret;
    Runner runner(arguments, form.is_row(), form.rows(), form.home(), function, watch_.source());
    LayerAnswer answer = engine_.answer(call, runner);
    c10::IValue output = assembled(answer, form.home());
    if (answer.rows_run() > 0) watch_.observe_layer(runner.seconds());
    answer.finish(seconds_now() - start);
    return output;
  }

  // Kept while calls are alike: the encoding takes longer than a lookup.
  Digest about_of(const CallForm& form, const LayerState& state) {
    const Environment environment(form.home(), options_.environment == Sharing::kPortable);
    const std::lock_guard lock(mutex_);
    if (!about_ || about_->environment != environment || about_->structure != state.structure ||
        about_->single != form.single() || (!form.single() && about_->form != form.encoded())) {
      about_ = About{environment, state.structure, form.single(), form.encoded(),
                     about_digest(environment, options_, state.structure, form)};
    }
    return about_->digest;
  }

  static at::Tensor room_for(const LeafShape& leaf, std::vector<std::span<std::byte>>& outs) {
    const std::optional<at::ScalarType> type = scalar_type_of(leaf.dtype);
    if (!type) throw LayerBypassed("a stored output of a dtype that LibTorch does not have");
    at::Tensor made = at::empty(leaf.shape, at::dtype(*type));
    outs.emplace_back(static_cast<std::byte*>(made.mutable_data_ptr()), made.nbytes());
    return made;
  }

  static c10::IValue assembled(const LayerAnswer& answer, c10::Device home) {
    // Most outputs are one plain tensor.
    static const std::string plain =
        Packer(1, c10::kCPU).pack(at::empty({1}, at::device(c10::kCPU))).description;
    if (home.is_cpu() && answer.form() == plain && answer.leaves().size() == 1) {
      std::vector<std::span<std::byte>> outs;
      at::Tensor made = room_for(answer.leaves()[0], outs);
      answer.assemble(outs);
      return made;
    }
    const Unpacker unpacker(answer.form());
    const std::span<const LeafShape> leaves = answer.leaves();
    if (unpacker.notes().size() != leaves.size()) {
      throw LayerBypassed("a stored output is of a form that C++ cannot make");
    }
    std::vector<at::Tensor> tensors;
    std::vector<std::span<std::byte>> outs;
    for (const LeafShape& leaf : leaves) tensors.push_back(room_for(leaf, outs));
    answer.assemble(outs);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const Unpacker::Note& note = unpacker.notes()[i];
      if (!note.order.empty()) tensors[i] = reordered(tensors[i], note.order);
      const c10::Device device = note.device.empty() ? home : c10::Device(note.device);
      if (!device.is_cpu()) tensors[i] = tensors[i].to(device);
    }
    return unpacker.build(tensors);
  }

  struct About {
    Environment environment;
    Digest structure;
    CallForm::Single single;
    std::string form;
    Digest digest;
  };

  Options options_;
  std::vector<Parameter> parameters_;
  mutable LayerEngine engine_;  // its counters are asked by const functions
  Watch watch_;
  mutable std::mutex mutex_;
  std::map<std::string, std::uint64_t> uncached_;
  std::optional<About> about_;
};

}  // namespace tensorkey::torch::internal
