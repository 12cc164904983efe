// The arguments of a call: which tensors hold rows, and one canonical encoding of everything else,
// the *form* of the call (docs/key_format.md), which is that of the Python package.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <c10/core/GradMode.h>

#include <tensorkey/canonical.h>
#include <tensorkey/layer.h>
#include <tensorkey/torch/environment.h>
#include <tensorkey/torch/nest.h>
#include <tensorkey/torch/view.h>

namespace tensorkey::torch::internal {

// A parameter of a layer: its name, and its default in the canonical encoding, if that is plain.
struct Parameter {
  std::string name;
  std::string fallback = {};
};

// The tensors of one call, in order. Throws LayerBypassed for what has no key, or no rows.
class CallForm {
 public:
  CallForm(const std::vector<c10::IValue>& arguments, const std::vector<Parameter>& parameters) {
    using namespace canonical;
    if (arguments.size() > parameters.size()) {
      throw LayerBypassed("more arguments than Options::inputs names");
    }
    if (arguments.size() == 1 && arguments[0].isTensor()) {
      const at::Tensor& tensor = arguments[0].toTensor();
      if (note(tensor, parameters[0].name)) single_ = {tensor.scalar_type(), tensor.device()};
      check();
      return;
    }
    std::vector<std::string> declared;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      std::string encoded = encode(arguments[i], parameters[i].name, 0);
      if (encoded == parameters[i].fallback) continue;
      declared.push_back(text(parameters[i].name));
      declared.push_back(std::move(encoded));
    }
    check();
    if (const auto found = lengths_.find(rows_); rows_ > 1 && found != lengths_.end()) {
      throw LayerBypassed(found->second +
                          " has as many items as the batch has rows, and may hold one for each: "
                          "pass a tensor");
    }
    encoded_ = tuple({none(), dict(declared), tuple({}), dict({})});
  }

  // Of a call with one tensor and nothing else: all that its encoding depends on, which is then not
  // made before it is asked for.
  using Single = std::optional<std::pair<at::ScalarType, c10::Device>>;
  [[nodiscard]] const Single& single() const noexcept { return single_; }

  [[nodiscard]] std::string encoded() const {
    using namespace canonical;
    if (!single_) return encoded_;
    const std::vector<std::string> declared{text(paths_[0]), row(tensors_[0], home_text())};
    return tuple({none(), dict(declared), tuple({}), dict({})});
  }
  [[nodiscard]] std::int64_t rows() const noexcept { return rows_; }
  // The device of the first tensor with rows.
  [[nodiscard]] c10::Device home() const noexcept { return home_; }
  // Of those with rows.
  [[nodiscard]] const std::vector<at::Tensor>& tensors() const noexcept { return tensors_; }
  [[nodiscard]] const std::vector<std::string>& paths() const noexcept { return paths_; }
  // For each tensor among the arguments.
  [[nodiscard]] const std::vector<bool>& is_row() const noexcept { return is_row_; }

 private:
  std::string encode(const c10::IValue& value, const std::string& path, int depth) {
    using namespace canonical;
    if (depth > kMaxDepth) throw LayerBypassed(path + " is nested too deeply");
    if (value.isTensor()) return tensor(value.toTensor(), path);
    if (value.isNone()) return none();
    if (value.isBool()) return boolean(value.toBool());
    if (value.isInt()) return integer(value.toInt());
    if (value.isDouble()) return real(value.toDouble());
    if (value.isComplexDouble()) {
      return complex(value.toComplexDouble().real(), value.toComplexDouble().imag());
    }
    if (value.isString()) return text(value.toStringRef());
    std::vector<std::string> items;
    const std::size_t before = tensors_.size();
    const auto where = [&] { return path + '[' + std::to_string(items.size()) + ']'; };
    if (value.isTuple() && !value.toTupleRef().type()->schema()) {
      for (const c10::IValue& each : value.toTupleRef().elements()) {
        items.push_back(encode(each, where(), depth + 1));
      }
    } else if (value.isList()) {
      for (const c10::IValue& each : value.toListRef()) {
        items.push_back(encode(each, where(), depth + 1));
      }
    } else if (value.isGenericDict()) {
      std::size_t i = 0;
      for (const auto& entry : value.toGenericDict()) {
        if (entry.key().isTensor()) {
          throw LayerBypassed(path + ": a tensor as a key of a dict has no place of its own");
        }
        items.push_back(encode(entry.key(), path, depth + 1));
        items.push_back(encode(entry.value(), at_key(path, entry.key(), i++), depth + 1));
      }
      return dict(items);
    } else {
      throw LayerBypassed(path + ", a " + value.tagKind() + ", has no key");
    }
    if (tensors_.size() == before) {
      lengths_.try_emplace(static_cast<std::int64_t>(items.size()), path);
    }
    return sequence(value.isTuple() ? 't' : 'l', items);
  }

  // Notes a tensor: whether it has a row for each of the batch.
  bool note(const at::Tensor& tensor, const std::string& path) {
    if (const char* const why = refusal(tensor)) throw LayerBypassed(path + ": " + why);
    if (!tensor.is_cpu() && !tensor.is_cuda()) {
      throw LayerBypassed("a tensor on the device " + tensor.device().str());
    }
    if (c10::GradMode::is_enabled() && tensor.requires_grad()) {
      throw LayerBypassed(path +
                          " requires grad: make the call under torch::NoGradGuard, or detach it");
    }
    if (tensor.unsafeGetTensorImpl()->autograd_meta() != nullptr && tensor._fw_grad(0).defined()) {
      throw LayerBypassed("forward-mode differentiation");
    }
    if (tensor.dim() > 0 && rows_ < 0) rows_ = tensor.size(0);
    is_row_.push_back(tensor.dim() > 0 && tensor.size(0) == rows_);
    if (!is_row_.back()) return false;
    if (tensors_.empty()) home_ = tensor.device();
    tensors_.push_back(tensor);
    paths_.push_back(path);
    return true;
  }

  void check() const {
    if (rows_ < 0) throw LayerBypassed("no tensor with rows among the arguments");
    if (rows_ == 0) throw LayerBypassed("a batch of 0 rows");
  }

  [[nodiscard]] std::string home_text() const { return c10::DeviceTypeName(home_.type(), true); }

  static std::string row(const at::Tensor& tensor, const std::string& device) {
    using namespace canonical;
    return sequence('r', std::vector{text("torch.Tensor"), text(dtype_text(tensor.scalar_type())),
                                     text(device)});
  }

  std::string tensor(const at::Tensor& tensor, const std::string& path) {
    using namespace canonical;
    if (!note(tensor, path)) {
      const Digest digest = key(tensor).bytes();
      return text("torch.Tensor " + tensor.device().str()) +
             item('K', {reinterpret_cast<const char*>(digest.data()), digest.size()});
    }
    if (tensors_.size() == 1) return row(tensor, home_text());
    return row(tensor, tensor.device() == home_ ? "" : tensor.device().str());
  }

  Single single_;
  std::string encoded_;
  std::int64_t rows_ = -1;
  c10::Device home_{c10::kCPU};
  std::vector<at::Tensor> tensors_;
  std::vector<std::string> paths_;
  std::vector<bool> is_row_;
  std::map<std::int64_t, std::string> lengths_;  // of sequences without row tensors: their paths
};

// The encoding of a plain default; empty for any other.
inline std::string encoded_default(const std::optional<c10::IValue>& value) {
  if (!value) return "";
  if (value->isNone()) return canonical::none();
  if (value->isBool()) return canonical::boolean(value->toBool());
  if (value->isInt()) return canonical::integer(value->toInt());
  if (value->isDouble()) return canonical::real(value->toDouble());
  if (value->isString()) return canonical::text(value->toStringRef());
  return "";
}

}  // namespace tensorkey::torch::internal
