// Reads a TorchScript module: code, attributes and tensors, in the encoding of docs/key_format.md,
// "Structure of a TorchScript module". The Python package computes the same from the same file.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/ivalue.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/inliner.h>

#include <tensorkey/canonical.h>
#include <tensorkey/error.h>
#include <tensorkey/torch/source.h>

namespace tensorkey::torch::internal {

namespace script {

namespace jit = ::torch::jit;

// Without each `mark` that a number and `end_mark` follow.
inline std::string without(std::string_view value, std::string_view mark, char end_mark) {
  std::string out;
  while (true) {
    const std::size_t at = value.find(mark);
    if (at == std::string_view::npos) return out += value;
    std::size_t end = at + mark.size();
    while (end < value.size() && value[end] >= '0' && value[end] <= '9') ++end;
    const bool whole = end > at + mark.size() && end < value.size() && value[end] == end_mark;
    out += value.substr(0, whole ? at : end);
    value.remove_prefix(whole ? end + 1 : end);
  }
}

// Without what tells several loads of one process apart: "___torch_mangle_17.".
inline std::string unmangled(std::string_view value) {
  return without(value, "___torch_mangle_", '.');
}

// The text of a graph without places in files, which inner blocks show whatever is asked.
inline std::string printed(const jit::Graph& graph) {
  const std::string text = graph.toString(false);
  std::string_view rest = text;
  std::string out;
  while (true) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    out += line.substr(0, line.find(" # "));
    if (end == std::string_view::npos) return unmangled(without(out, "[warn_id=", ']'));
    out += '\n';
    rest.remove_prefix(end + 1);
  }
}

[[noreturn]] inline void unreadable(const std::string& what) {
  throw Error(ErrorCode::kUnsupported, "[torch::cached] " + what +
                                           " in a scripted module cannot be read; use fingerprint "
                                           "kManual and a scope");
}

// Names tensors: each once, under the path where it is met first.
class Tensors {
 public:
  explicit Tensors(Reading& reading) : reading_(reading) {}

  std::string add(const at::Tensor& tensor, const std::string& path) {
    const auto [known, fresh] = seen_.try_emplace(tensor.unsafeGetTensorImpl());
    if (!fresh) return known->second;
    const std::size_t count = paths_[path]++;
    const std::string name = count == 0 ? path : path + '#' + std::to_string(count);
    reading_.names.push_back(name);
    reading_.tensors.push_back(tensor);
    return known->second = canonical::name("tensor", name);
  }

  std::string value(const c10::IValue& value, const std::string& path) {
    using namespace canonical;
    if (value.isTensor()) return add(value.toTensor(), path);
    if (value.isNone()) return none();
    if (value.isBool()) return boolean(value.toBool());
    if (value.isInt()) return integer(value.toInt());
    if (value.isDouble()) return real(value.toDouble());
    if (value.isComplexDouble()) {
      return complex(value.toComplexDouble().real(), value.toComplexDouble().imag());
    }
    if (value.isString()) return text(value.toStringRef());
    if (value.isDevice()) return name("device", value.toDevice().str());
    std::vector<std::string> items;
    const auto where = [&] { return path + '[' + std::to_string(items.size()) + ']'; };
    if (value.isTuple()) {
      for (const c10::IValue& each : value.toTupleRef().elements()) {
        items.push_back(this->value(each, where()));
      }
      return tuple(items);
    }
    if (value.isList()) {
      for (const c10::IValue& each : value.toListRef()) items.push_back(this->value(each, where()));
      return list(items);
    }
    if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        const std::string place = where();
        items.push_back(this->value(entry.key(), place) + this->value(entry.value(), place));
      }
      return dict(items);
    }
    unreadable(path + ", a " + value.tagKind() + ",");
  }

 private:
  Reading& reading_;
  std::unordered_map<const c10::TensorImpl*, std::string> seen_;
  std::unordered_map<std::string, std::size_t> paths_;
};

// The code of one module: the graph of each method and hook, with all that it calls inlined.
class Methods {
 public:
  Methods(const jit::Module& module, std::string path, std::set<std::string>& names)
      : type_(module.type()->name()->qualifiedName()), path_(std::move(path)) {
    std::vector<std::pair<std::string, jit::Function*>> functions;
    for (const jit::Method& method : module.get_methods()) {
      functions.emplace_back(method.name(), &method.function());
    }
    std::sort(functions.begin(), functions.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    for (jit::Function* const hook : module.type()->getForwardPreHooks()) {
      functions.emplace_back("(pre-hook)", hook);
    }
    for (jit::Function* const hook : module.type()->getForwardHooks()) {
      functions.emplace_back("(hook)", hook);
    }
    for (const auto& [key, function] : functions) {
      const std::shared_ptr<jit::Graph> graph = jit::toGraphFunction(*function).graph()->copy();
      jit::Inline(*graph);
      texts_.push_back(canonical::text(key));
      texts_.push_back(canonical::text(printed(*graph)));
      std::size_t count = 0;
      walk(*graph->block(), path_ + '.' + key, count, names);
    }
  }

  [[nodiscard]] std::string encoded(Tensors& tensors) const {
    using namespace canonical;
    std::vector<std::string> constants;
    for (const auto& [where, value] : constants_) constants.push_back(tensors.value(value, where));
    return text(unmangled(type_)) + text(path_) + list(texts_) + list(constants);
  }

 private:
  // Notes names of attributes, and constants in order: the text of a graph rounds them.
  void walk(const jit::Block& block, const std::string& where, std::size_t& count,
            std::set<std::string>& names) {
    for (const jit::Node* const node : block.nodes()) {
      if (node->kind() == c10::prim::GetAttr || node->kind() == c10::prim::SetAttr) {
        names.insert(node->s(c10::attr::name));
      } else if (node->kind() == c10::prim::Constant && node->hasAttribute(c10::attr::value)) {
        constants_.emplace_back(where + '#' + std::to_string(count++), constant(*node));
      }
      for (const c10::Symbol attribute : node->attributeNames()) {
        if (node->kindOf(attribute) == jit::AttributeKind::g) {
          walk(*node->g(attribute)->block(), where, count, names);
        }
      }
      for (const jit::Block* const inner : node->blocks()) walk(*inner, where, count, names);
    }
  }

  static c10::IValue constant(const jit::Node& node) {
    using jit::AttributeKind;
    constexpr auto kValue = c10::attr::value;
    const auto of = [](const auto& values) {
      c10::impl::GenericList list(c10::AnyType::get());
      for (const auto& value : values) list.push_back(c10::IValue(value));
      return c10::IValue(list);
    };
    switch (node.kindOf(kValue)) {
      case AttributeKind::f: return node.f(kValue);
      case AttributeKind::i: return node.i(kValue);
      case AttributeKind::s: return node.s(kValue);
      case AttributeKind::c: return node.c(kValue);
      case AttributeKind::t: return node.t(kValue);
      case AttributeKind::ival: return node.ival(kValue);
      case AttributeKind::fs: return of(node.fs(kValue));
      case AttributeKind::is: return of(node.is(kValue));
      case AttributeKind::ss: return of(node.ss(kValue));
      case AttributeKind::ts: return of(node.ts(kValue));
      default: unreadable(std::string("a constant of kind ") + jit::toString(node.kindOf(kValue)));
    }
  }

  std::string type_;
  std::string path_;
  std::vector<std::string> texts_;
  std::vector<std::pair<std::string, c10::IValue>> constants_;
};

}  // namespace script

class ScriptSource final : public Source {
 public:
  explicit ScriptSource(const ::torch::jit::Module& module) {
    std::set<std::string> names;
    gather(module, "layer", names);
    names_ = std::move(names);
    for (const auto& argument : module.get_method("forward").function().getSchema().arguments()) {
      arguments_.push_back(argument);
    }
    arguments_.erase(arguments_.begin());  // self
  }

  [[nodiscard]] Reading read() const override {
    Reading reading;
    script::Tensors tensors(reading);
    std::vector<std::string> parts;
    for (const Part& part : tree_) {
      parts.push_back(part.methods.encoded(tensors) + attributes(part, tensors));
    }
    reading.structure = canonical::sequence('J', parts);
    return reading;
  }

  [[nodiscard]] std::vector<std::string> parameters() const override {
    std::vector<std::string> names;
    for (const c10::Argument& argument : arguments_) names.push_back(argument.name());
    return names;
  }
  [[nodiscard]] std::vector<c10::Argument> arguments() const { return arguments_; }

  // Attributes: the same tensors, numbers and texts, and the same lists and dicts.
  void note() override {
    slots_.clear();
    for (const Part& part : tree_) {
      const auto object = part.module._ivalue();
      for (std::size_t i = 0; i < object->slots().size(); ++i) {
        if (!object->getSlot(i).isModule()) slots_.push_back({object, i, object->getSlot(i)});
      }
    }
  }
  [[nodiscard]] bool unchanged() const override {
    for (const Slot& slot : slots_) {
      if (!same(slot.object->getSlot(slot.index), slot.value)) return false;
    }
    return true;
  }

 private:
  struct Part {
    ::torch::jit::Module module;
    std::string path;
    script::Methods methods;
  };
  struct Slot {
    c10::intrusive_ptr<c10::ivalue::Object> object;
    std::size_t index;
    c10::IValue value;
  };

  // A module, then in order those below it.
  void gather(const ::torch::jit::Module& module, const std::string& path,
              std::set<std::string>& names) {
    tree_.push_back({module, path, script::Methods(module, path, names)});
    for (const auto& child : module.named_children()) {
      gather(child.value, path + '.' + child.name, names);
    }
  }

  // Parameters, buffers, and what the code uses of the other attributes.
  [[nodiscard]] std::string attributes(const Part& part, script::Tensors& tensors) const {
    std::set<std::string> found;
    for (const auto& each : part.module.named_parameters(false)) found.insert(each.name);
    for (const auto& each : part.module.named_buffers(false)) found.insert(each.name);
    for (const std::string& name : names_) {
      if (part.module.hasattr(name)) found.insert(name);
    }
    for (const auto& child : part.module.named_children()) found.erase(child.name);
    std::vector<std::string> items;
    for (const std::string& name : found) {
      items.push_back(canonical::text(name) +
                      tensors.value(part.module.attr(name), part.path + '.' + name));
    }
    return canonical::dict(items);
  }

  static bool same(const c10::IValue& now, const c10::IValue& then) {
    if (now.isDevice() && then.isDevice()) return now.toDevice() == then.toDevice();
    if (now.isDouble() && then.isDouble()) {  // NaN is itself
      return std::bit_cast<std::uint64_t>(now.toDouble()) ==
             std::bit_cast<std::uint64_t>(then.toDouble());
    }
    return now.isSameIdentity(then);
  }

  std::vector<Part> tree_;
  std::set<std::string> names_;  // of all attributes, of any module, that the code uses
  std::vector<c10::Argument> arguments_;
  std::vector<Slot> slots_;  // as noted
};

}  // namespace tensorkey::torch::internal
