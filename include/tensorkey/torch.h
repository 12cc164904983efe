// The frontend for LibTorch: keys of at::Tensor (torch/view.h), and cached layers. Header-only; the
// program brings Torch and links tensorkey::torch and ${TORCH_LIBRARIES}.
//
//   using namespace tensorkey::literals;
//   auto encoder = tensorkey::torch::cached(module, {.memory = 2_GiB, .disk = "activations"});
//   at::Tensor y = encoder(x);                    // rows seen before are read, the others are run
//   std::cout << encoder.stats().memo.hits;
//
// A layer is a torch::nn module (its shared_ptr, its holder such as torch::nn::Sequential, or an
// AnyModule), a torch::jit::Module, or any function of tensors with a list of the tensors that it
// depends on. Chunks, probe, bypass and keys are those of the Python package. Arguments and results
// are tensors and numbers, texts, tuples, vectors and c10::Dicts of them. Tensors with the batch
// as their first dim are looked up row by row; all else is part of the key.
//
// Each distinct row is computed once; what a hit returns is, bit for bit, what the layer computed
// for the row. A call runs uncached, and stats say why, while gradients of the layer or of an
// input are recorded, while it is traced, and for what cannot be kept. Layers that mix rows are
// refused at the first call (Error kUnsupported, with the evidence).
//
// A cached layer is a handle: copies share it, and threads may call it at once, as far as the layer
// itself allows that. Returned tensors are the caller's own. What the layer throws passes through.
//
// Inside namespace tensorkey this namespace hides LibTorch's: write ::torch there.
#pragma once

#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/pimpl.h>

#include <tensorkey/torch/layer.h>
#include <tensorkey/torch/options.h>
#include <tensorkey/torch/script.h>
#include <tensorkey/torch/source.h>
#include <tensorkey/torch/view.h>

namespace tensorkey::torch {

namespace internal {

// What all cached layers have in common.
class CachedBase {
 public:
  [[nodiscard]] Stats stats() const { return layer_->stats(); }
  void reset_stats() const { layer_->reset_stats(); }
  // Checks that the layer is what it was, and waits until what was computed is on disk: whether it
  // is, after at most `seconds`.
  bool flush(double seconds = std::numeric_limits<double>::infinity()) const {
    return layer_->flush(seconds);
  }
  // Drops the entries of this layer, as far as it has used them; returns their number.
  std::size_t clear() const { return layer_->engine().clear(); }
  // The weights were changed in a way that no guard sees: the next call looks at every byte.
  void recheck() const { layer_->watch().demand(); }
  void bypass(BypassMode mode) const { layer_->engine().bypass().set_mode(mode); }
  [[nodiscard]] ActivationCache& cache() const { return layer_->engine().cache(); }

 protected:
  explicit CachedBase(std::shared_ptr<Layer> layer) : layer_(std::move(layer)) {}

  std::shared_ptr<Layer> layer_;
};

// Calls a module of any class by forward().
template <class M>
struct Forward {
  std::shared_ptr<M> module;
  template <class... Inputs>
  auto operator()(const Inputs&... inputs) const {
    return module->forward(inputs...);
  }
};

inline std::vector<Parameter> unnamed_parameters() {
  std::vector<Parameter> names{{"input"}};
  for (int i = 1; i < 16; ++i) names.push_back({"input" + std::to_string(i)});
  return names;
}

inline std::vector<Parameter> parameters_of(const std::vector<c10::Argument>& arguments) {
  std::vector<Parameter> named;
  for (const c10::Argument& argument : arguments) {
    named.push_back({argument.name(), encoded_default(argument.default_value())});
  }
  return named;
}

template <class T>
inline constexpr bool kIsModule =
    std::is_base_of_v<::torch::nn::Module, T> ||
    std::is_base_of_v<::torch::detail::ModuleHolderIndicator, T> ||
    std::is_same_v<T, ::torch::nn::AnyModule> || std::is_base_of_v<::torch::jit::Module, T>;
template <class T>
inline constexpr bool kIsModule<std::shared_ptr<T>> = std::is_base_of_v<::torch::nn::Module, T>;

}  // namespace internal

// A cached module or function. What it returns is what F does.
template <class F>
class CachedLayer : public internal::CachedBase {
 public:
  CachedLayer(std::shared_ptr<internal::Layer> layer, F function)
      : CachedBase(std::move(layer)), function_(std::make_shared<F>(std::move(function))) {}

  template <class... Inputs>
  auto operator()(const Inputs&... inputs) const {
    using Result = std::decay_t<std::invoke_result_t<F&, const Inputs&...>>;
    const internal::Function run = [this](internal::Arguments arguments) {
      return invoked<Inputs...>(std::move(arguments), std::index_sequence_for<Inputs...>());
    };
    return layer_->call({c10::IValue(inputs)...}, run).template to<Result>();
  }

  template <class... Inputs>
  [[nodiscard]] CallDigests digests(const Inputs&... inputs) const {
    return layer_->digests({c10::IValue(inputs)...});
  }

 private:
  template <class... Inputs, std::size_t... i>
  c10::IValue invoked(internal::Arguments arguments, std::index_sequence<i...> /*all*/) const {
    return c10::IValue(
        (*function_)(std::move(arguments[i]).template to<std::decay_t<Inputs>>()...));
  }

  std::shared_ptr<F> function_;
};

// A cached TorchScript module: IValues in and out, as torch::jit::Module::forward.
class CachedScript : public internal::CachedBase {
 public:
  CachedScript(std::shared_ptr<internal::Layer> layer, ::torch::jit::Module module)
      : CachedBase(std::move(layer)), module_(std::move(module)) {}

  [[nodiscard]] c10::IValue forward(std::vector<c10::IValue> inputs) const {
    const internal::Function run = [this](internal::Arguments arguments) {
      return ::torch::jit::Module(module_).forward(std::move(arguments));
    };
    return layer_->call(std::move(inputs), run);
  }
  template <class... Inputs>
  c10::IValue operator()(const Inputs&... inputs) const {
    return forward({c10::IValue(inputs)...});
  }

  template <class... Inputs>
  [[nodiscard]] CallDigests digests(const Inputs&... inputs) const {
    return layer_->digests({c10::IValue(inputs)...});
  }

 private:
  ::torch::jit::Module module_;
};

template <class M>
requires std::is_base_of_v<::torch::nn::Module, M>
[[nodiscard]] CachedLayer<internal::Forward<M>> cached(std::shared_ptr<M> module,
                                                       const Options& options = {}) {
  auto source = std::make_unique<internal::ModuleSource>(module);
  return {
      std::make_shared<internal::Layer>(std::move(source), internal::unnamed_parameters(), options),
      internal::Forward<M>{std::move(module)}};
}

template <class Holder>
requires std::is_base_of_v<::torch::detail::ModuleHolderIndicator, Holder>
[[nodiscard]] auto cached(const Holder& module, const Options& options = {}) {
  return cached(module.ptr(), options);
}

[[nodiscard]] inline auto cached(::torch::nn::AnyModule module, const Options& options = {}) {
  auto source = std::make_unique<internal::ModuleSource>(module.ptr());
  auto forward = [module](const auto&... inputs) mutable { return module.forward(inputs...); };
  return CachedLayer<decltype(forward)>(
      std::make_shared<internal::Layer>(std::move(source), internal::unnamed_parameters(), options),
      std::move(forward));
}

[[nodiscard]] inline CachedScript cached(const ::torch::jit::Module& module,
                                         const Options& options = {}) {
  auto source = std::make_unique<internal::ScriptSource>(module);
  std::vector<internal::Parameter> parameters = internal::parameters_of(source->arguments());
  return {std::make_shared<internal::Layer>(std::move(source), std::move(parameters), options),
          module};
}

// A function of tensors. `parameters`: all tensors that it depends on besides its arguments.
template <class F>
requires(!internal::kIsModule<std::decay_t<F>>)
    [[nodiscard]] CachedLayer<std::decay_t<F>> cached(F&& function,
                                                      std::vector<at::Tensor> parameters,
                                                      const Options& options = {}) {
  auto source = std::make_unique<internal::FunctionSource>(
      typeid(std::decay_t<F>), internal::place_of(function), std::move(parameters));
  return {
      std::make_shared<internal::Layer>(std::move(source), internal::unnamed_parameters(), options),
      std::forward<F>(function)};
}

}  // namespace tensorkey::torch
