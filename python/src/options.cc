#include "options.h"

#include <Python.h>

#include <tensorkey/error.h>

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

[[noreturn]] void wrong(ErrorCode code, std::string_view where, const std::string& text) {
  throw Error(code, "[" + std::string(where) + "] " + text);
}

std::string name_of_type(nb::handle object) { return Py_TYPE(object.ptr())->tp_name; }

std::string_view scope_text(nb::handle scope, std::string_view where) {
  PyObject* object = scope.ptr();
  if (PyBytes_Check(object)) {
    return {PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object))};
  }
  if (PyUnicode_Check(object)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (text == nullptr) throw nb::python_error();
    return {text, static_cast<std::size_t>(size)};
  }
  wrong(ErrorCode::kUnsupported, where,
        "scope is a " + name_of_type(scope) + "; expected bytes or str");
}

std::span<const std::uint8_t, 32> secret_bytes(nb::handle secret, std::string_view where) {
  PyObject* object = secret.ptr();
  const char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_Check(object)) {
    data = PyBytes_AS_STRING(object);
    size = PyBytes_GET_SIZE(object);
  } else {
    // A bytearray could be resized by another thread while the GIL is released.
    wrong(ErrorCode::kUnsupported, where,
          "secret is a " + name_of_type(secret) + "; expected 32 bytes");
  }
  if (size != 32) {
    wrong(ErrorCode::kInvalidArgument, where,
          "secret has " + std::to_string(size) + " bytes; expected exactly 32");
  }
  return std::span<const std::uint8_t, 32>(reinterpret_cast<const std::uint8_t*>(data), 32);
}

}  // namespace

KeyOptions key_options(nb::handle scope, nb::handle secret, bool canonical,
                       std::string_view where) {
  KeyOptions options{.scope = scope_text(scope, where), .canonical = canonical};
  if (!secret.is_none()) options.secret = secret_bytes(secret, where);
  return options;
}

void BorrowedMembers::add(std::string path, PyObject* tensor) {
  auto borrowed = std::make_unique<Borrowed>(tensor);
  bytes_ += checked_bytes(borrowed->view(), path);
  items_.push_back({std::move(path), std::move(borrowed)});
}

std::span<const TupleMember> BorrowedMembers::members() {
  members_.clear();
  for (const Item& item : items_) {
    members_.push_back({.path = item.path, .view = item.tensor->view()});
  }
  return members_;
}

std::size_t checked_bytes(const TensorView& view, std::string_view where) {
  check_view(view, where);
  return byte_count(view);
}

}  // namespace tensorkey::python
