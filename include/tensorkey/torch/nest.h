// Nests of tensors and plain values, as IValues: taken apart into tensors and a description, and
// made again. The description is that of the Python package (docs/key_format.md, "form"): what one
// language stores, the other reads.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/jit_type.h>

#include <tensorkey/canonical.h>
#include <tensorkey/layer.h>
#include <tensorkey/torch/view.h>

namespace tensorkey::torch::internal {

inline constexpr int kMaxDepth = 100;

// A str as JSON writes it, in UTF-8.
inline std::string json_quoted(std::string_view value) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default:
        if (byte < 0x20) {
          out += "\\u00";
          out += kHex[byte >> 4];
          out += kHex[byte & 15];
        } else {
          out += c;
        }
    }
  }
  return out + '"';
}

// The path of what a dict has under a key, the `position`-th of it.
inline std::string at_key(const std::string& path, const c10::IValue& key, std::size_t position) {
  if (key.isString()) return path + '[' + json_quoted(key.toStringRef()) + ']';
  if (key.isBool()) return path + (key.toBool() ? "[True]" : "[False]");
  if (key.isInt()) return path + '[' + std::to_string(key.toInt()) + ']';
  return path + "[#" + std::to_string(position) + ']';
}

// Dims of a dense tensor from slow to fast; nothing if that is C order. The place of a dim of 1
// says nothing, but for the rows of a layer that was run on one of them.
inline std::vector<std::int64_t> order_of(const at::Tensor& tensor,
                                          std::optional<std::int64_t> rows) {
  const std::int64_t rank = tensor.dim();
  if (tensor.is_contiguous() && !(rank > 0 && rows == 1 && tensor.size(0) == 1)) return {};
  const auto shape = tensor.sizes();
  const auto strides = tensor.strides();
  const auto at = [](auto array, std::int64_t dim) { return array[static_cast<std::size_t>(dim)]; };
  std::vector<std::int64_t> order(static_cast<std::size_t>(rank));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    if (at(strides, a) != at(strides, b)) return at(strides, a) > at(strides, b);
    return (at(shape, a) == 1) < (at(shape, b) == 1);
  });
  std::int64_t step = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    if (at(shape, *dim) == 1) continue;
    if (at(strides, *dim) != step) return {};  // gaps or overlaps: their copy is in C order
    step *= at(shape, *dim);
  }
  const bool one_row = rank > 0 && rows == 1 && shape[0] == 1 && strides[0] > 0;
  std::vector<std::int64_t> moving;
  for (const std::int64_t dim : order) {
    if (at(shape, dim) != 1 || (one_row && dim == 0)) moving.push_back(dim);
  }
  if (std::is_sorted(moving.begin(), moving.end())) return {};
  return order;
}

// A value taken apart.
struct Packed {
  std::string description;
  std::vector<at::Tensor> tensors;
  std::vector<std::string> paths;  // "[0]", "[\"hidden\"]"; empty for a tensor alone
};

// Takes results apart. `rows`: the batch size of the run; `home`: the device that is not noted.
class Packer {
 public:
  Packer(std::int64_t rows, c10::Device home) : rows_(rows), home_(home) {}

  // Throws LayerBypassed for what cannot be described.
  Packed pack(const c10::IValue& value) {
    packed_.description = item(value, "", 0);
    return std::move(packed_);
  }

 private:
  std::string item(const c10::IValue& value, const std::string& path, int depth) {
    using namespace canonical;
    if (depth > kMaxDepth) throw LayerBypassed("the result is nested too deeply", true);
    if (value.isTensor()) return tensor(value.toTensor(), path);
    if (value.isNone()) return none();
    if (value.isBool()) return boolean(value.toBool());
    if (value.isInt()) return integer(value.toInt());
    if (value.isDouble()) return real(value.toDouble());
    if (value.isComplexDouble()) {
      const c10::complex<double> number = value.toComplexDouble();
      return complex(number.real(), number.imag());
    }
    if (value.isString()) return text(value.toStringRef());
    std::vector<std::string> items;
    if (value.isTuple()) {
      const auto& tuple = value.toTupleRef();
      if (tuple.type()->schema()) throw LayerBypassed("a named tuple in the result", true);
      for (const c10::IValue& element : tuple.elements()) {
        items.push_back(item(element, path + '[' + std::to_string(items.size()) + ']', depth + 1));
      }
      return sequence('t', items);
    }
    if (value.isList()) {
      for (const c10::IValue& element : value.toListRef()) {
        items.push_back(item(element, path + '[' + std::to_string(items.size()) + ']', depth + 1));
      }
      return sequence('l', items);
    }
    if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        const std::string where = at_key(path, entry.key(), items.size() / 2);
        items.push_back(item(entry.key(), where, depth + 1));
        items.push_back(item(entry.value(), where, depth + 1));
      }
      return dict(items);
    }
    throw LayerBypassed("a " + value.tagKind() + " in the result", true);
  }

  std::string tensor(const at::Tensor& tensor, const std::string& path) {
    using namespace canonical;
    if (const char* const why = refusal(tensor)) {
      throw LayerBypassed(std::string("in the result: ") + why, true);
    }
    const auto [met, fresh] = met_.try_emplace(tensor.unsafeGetTensorImpl(), met_.size());
    if (!fresh) return canonical::item('x', integer(static_cast<std::int64_t>(met->second)));
    packed_.tensors.push_back(tensor);
    packed_.paths.push_back(path);
    std::vector<std::string> order;
    for (const std::int64_t dim : order_of(tensor, rows_)) order.push_back(integer(dim));
    const std::string device = tensor.device() == home_ ? "" : tensor.device().str();
    return canonical::item('x', tuple({text("torch"), text(device), tuple(order)}));
  }

  std::int64_t rows_;
  c10::Device home_;
  Packed packed_;
  std::unordered_map<const c10::TensorImpl*, std::size_t> met_;
};

// Makes results again from a description.
class Unpacker {
 public:
  // What a tensor of the result was noted with.
  struct Note {
    std::string device;  // empty: that of the input
    std::vector<std::int64_t> order;
  };

  // Throws LayerBypassed for what C++ cannot make: a class of Python.
  explicit Unpacker(std::string_view description) : description_(description) {
    std::string_view rest = description_;
    scan(take(rest), 0);
    if (!rest.empty()) bad();
  }

  [[nodiscard]] const std::vector<Note>& notes() const noexcept { return notes_; }

  // From the tensors of the result, as many as notes().
  [[nodiscard]] c10::IValue build(const std::vector<at::Tensor>& tensors) const {
    std::string_view rest = description_;
    std::size_t next = 0;
    return make(take(rest), tensors, next);
  }

 private:
  struct Item {
    char tag;
    std::string_view body;
  };

  [[noreturn]] static void bad() {
    throw LayerBypassed("a stored output is of a form that C++ cannot make");
  }
  static std::uint64_t number(std::string_view bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
    }
    return value;
  }
  static Item take(std::string_view& rest) {
    if (rest.size() < 9) bad();
    const std::uint64_t size = number(rest.substr(1));
    if (size > rest.size() - 9) bad();
    const Item item{rest[0], rest.substr(9, size)};
    rest.remove_prefix(9 + size);
    return item;
  }
  static std::int64_t integer(const Item& item) {
    std::int64_t value = 0;
    const char* const end = item.body.data() + item.body.size();
    const auto [last, error] = std::from_chars(item.body.data(), end, value);
    if (item.tag != 'i' || error != std::errc() || last != end) bad();
    return value;
  }
  static double real(std::string_view bytes) { return std::bit_cast<double>(number(bytes)); }

  void scan(const Item& item, int depth) {
    if (depth > kMaxDepth) bad();
    std::string_view rest = item.body;
    switch (item.tag) {
      case 'x': {
        const Item note = take(rest);
        if (note.tag == 'i') {
          const std::int64_t met = integer(note);
          if (met < 0 || static_cast<std::size_t>(met) >= notes_.size()) bad();
          return;
        }
        std::string_view fields = note.body;
        if (note.tag != 't' || take(fields).body != "torch") bad();
        Note& known = notes_.emplace_back();
        known.device = take(fields).body;
        std::string_view order = take(fields).body;
        while (!order.empty()) known.order.push_back(integer(take(order)));
        return;
      }
      case 't':
      case 'l':
      case 'd':
        while (!rest.empty()) scan(take(rest), depth + 1);
        return;
      case 'i': static_cast<void>(integer(item)); return;
      case 'b':
        if (rest.size() != 1) bad();
        return;
      case 'f':
        if (rest.size() != 8) bad();
        return;
      case 'c':
        if (rest.size() != 16) bad();
        return;
      case 'N':
      case 'S': return;
      default: bad();
    }
  }

  static c10::IValue make(const Item& item, const std::vector<at::Tensor>& tensors,
                          std::size_t& next) {
    std::string_view rest = item.body;
    switch (item.tag) {
      case 'x': {
        const Item note = take(rest);
        return note.tag == 'i' ? tensors[static_cast<std::size_t>(integer(note))] : tensors[next++];
      }
      case 'N': return {};
      case 'b': return rest[0] != '\0';
      case 'i': return integer(item);
      case 'f': return real(rest);
      case 'c': return c10::complex<double>(real(rest), real(rest.substr(8)));
      case 'S': return std::string(rest);
      default: break;
    }
    std::vector<c10::IValue> items;
    while (!rest.empty()) items.push_back(make(take(rest), tensors, next));
    if (item.tag == 't') return c10::ivalue::Tuple::create(std::move(items));
    if (item.tag == 'l') return list_of(std::move(items));
    if (items.size() % 2 != 0) bad();
    return dict_of(items);
  }

 public:
  // With the type that all elements share, if they do: a list of tensors is a List<Tensor>.
  static c10::IValue list_of(std::vector<c10::IValue> items) {
    c10::impl::GenericList list(common_type(items, 0, 1));
    list.reserve(items.size());
    for (c10::IValue& item : items) list.push_back(std::move(item));
    return list;
  }
  static c10::IValue dict_of(const std::vector<c10::IValue>& items) {
    c10::impl::GenericDict dict(common_type(items, 0, 2), common_type(items, 1, 2));
    for (std::size_t i = 0; i < items.size(); i += 2) dict.insert(items[i], items[i + 1]);
    return dict;
  }

 private:
  static c10::TypePtr common_type(const std::vector<c10::IValue>& items, std::size_t first,
                                  std::size_t step) {
    const auto type_of = [](const c10::IValue& value) -> c10::TypePtr {
      return value.isTensor() ? c10::TypePtr(c10::TensorType::get()) : value.type();
    };
    if (first >= items.size()) return c10::TensorType::get();
    const c10::TypePtr type = type_of(items[first]);
    for (std::size_t i = first + step; i < items.size(); i += step) {
      if (*type_of(items[i]) != *type) return c10::AnyType::get();
    }
    return type;
  }

  std::string_view description_;
  std::vector<Note> notes_;
};

// A tensor with the same elements, its dims in this order in memory, from slow to fast.
inline at::Tensor reordered(const at::Tensor& tensor, const std::vector<std::int64_t>& order) {
  std::vector<std::int64_t> back(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] < 0 || static_cast<std::size_t>(order[i]) >= order.size()) return tensor;
    back[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
  }
  if (static_cast<std::int64_t>(order.size()) != tensor.dim()) return tensor;
  return tensor.permute(order).contiguous().permute(back);
}

// Calls f(tensor, path) for each tensor in a nest of arguments, in order, and returns the nest with
// the tensors that f returns.
template <class F>
c10::IValue transformed(const c10::IValue& value, const std::string& path, F& f) {
  if (value.isTensor()) return f(value.toTensor(), path);
  std::vector<c10::IValue> items;
  if (value.isTuple()) {
    for (const c10::IValue& item : value.toTupleRef().elements()) {
      items.push_back(transformed(item, path + '[' + std::to_string(items.size()) + ']', f));
    }
    return c10::ivalue::Tuple::create(std::move(items));
  }
  if (value.isList()) {
    const c10::impl::GenericList list = value.toList();
    c10::impl::GenericList out(list.elementType());
    for (std::size_t i = 0; i < list.size(); ++i) {
      out.push_back(transformed(list.get(i), path + '[' + std::to_string(i) + ']', f));
    }
    return out;
  }
  if (value.isGenericDict()) {
    const c10::impl::GenericDict dict = value.toGenericDict();
    c10::impl::GenericDict out(dict.keyType(), dict.valueType());
    std::size_t i = 0;
    for (const auto& entry : dict) {
      out.insert(entry.key(), transformed(entry.value(), at_key(path, entry.key(), i++), f));
    }
    return out;
  }
  return value;
}

}  // namespace tensorkey::torch::internal
