#include "layer_engine.h"

#include <cstring>
#include <mutex>

#include <tensorkey/error.h>

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

constexpr std::size_t kMostReasons = 64;

void count(Counts& counts, const std::string& what) {
  const bool room = counts.size() < kMostReasons || counts.contains(what);
  ++counts[room ? what : "others"];
}

}  // namespace

void Counters::bypassed(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  count(counts_.reasons, reason);
}

void Counters::failed(const std::string& kind) {
  const std::lock_guard lock(mutex_);
  count(counts_.errors, kind);
}

void Counters::copied(std::uint64_t rows, std::uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  counts_.host_copy_rows += rows;
  counts_.host_copy_bytes += bytes;
}

Counters::Snapshot Counters::read() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void Counters::clear() {
  const std::lock_guard lock(mutex_);
  counts_ = {};
}

Digest digest_of(const nb::bytes& bytes, const char* what) {
  if (bytes.size() != sizeof(Digest)) {
    throw Error(ErrorCode::kInvalidArgument, std::string("[LayerEngine] ") + what + " has " +
                                                 std::to_string(bytes.size()) +
                                                 " bytes; expected exactly 32");
  }
  Digest digest;
  std::memcpy(digest.data(), bytes.c_str(), digest.size());
  return digest;
}

Rows::Rows(const nb::sequence& tensors, const nb::sequence& paths, nb::handle ids) {
  if (!ids.is_none()) {
    add_ids(ids);
    return;
  }
  std::size_t count = 0;
  const std::size_t given = nb::len(paths);
  for (const nb::handle tensor : tensors) {
    if (count == given) break;
    try {
      members_.add(nb::cast<std::string>(paths[count++]), tensor.ptr());
    } catch (const Error& error) {
      throw LayerBypassed(std::string("an input has no key: ") + error.what());
    }
  }
  if (count != given || nb::len(tensors) != count) {
    throw Error(ErrorCode::kInvalidArgument, "[LayerEngine] " + std::to_string(nb::len(tensors)) +
                                                 " tensors, but " + std::to_string(given) +
                                                 " paths; expected one path a tensor");
  }
}

void Rows::fill(LayerCall& call) {
  if (ids_.empty()) {
    call.members = members_.members();
  } else {
    call.ids = ids_;
  }
}

void Rows::add_ids(nb::handle ids) {
  const std::size_t number = nb::len(ids);
  texts_.reserve(number);
  for (const nb::handle id : ids) {
    PyObject* object = id.ptr();
    if (PyUnicode_Check(object)) {
      Py_ssize_t size = 0;
      const char* text = PyUnicode_AsUTF8AndSize(object, &size);
      if (text == nullptr) throw nb::python_error();
      add(OwnId::Type::kText, {text, static_cast<std::size_t>(size)});
    } else if (PyBytes_Check(object)) {
      add(OwnId::Type::kBytes,
          {PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object))});
    } else if (PyLong_Check(object) && !PyBool_Check(object)) {
      add(OwnId::Type::kInt, nb::cast<std::string>(nb::str(id)));
    } else {
      throw Error(ErrorCode::kUnsupported, "[CachedLayer] an id is a " +
                                               std::string(Py_TYPE(object)->tp_name) +
                                               "; expected str, bytes or int");
    }
  }
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    ids_.push_back({.type = types_[i], .data = texts_[i]});
  }
}
void Rows::add(OwnId::Type type, std::string_view text) {
  types_.push_back(type);
  texts_.emplace_back(text);
}

LayerCall call_of(Rows& rows, const CallParts& parts) {
  LayerCall call{.about = digest_of(parts.about, "about"),
                 .weights = digest_of(parts.weights, "weights")};
  call.secret = key_options(nb::bytes("", 0), parts.secret, false, "LayerEngine").secret;
  rows.fill(call);
  return call;
}

}  // namespace tensorkey::python
