// The buffer protocol (PEP 3118): its format says the dtype. Only native sizes come up in practice,
// whatever the prefix says (ctypes writes "<l" for eight bytes), so the size is the item size.
#include <string>
#include <string_view>

#include "acquire_loan.h"

namespace nb = nanobind;

namespace tensorkey::python {
namespace {

struct Format {
  DType dtype;
  bool byteswapped;
};

std::optional<DType> sized(DType first, Py_ssize_t size) {
  const auto at = [first](unsigned step) {
    return static_cast<DType>(static_cast<unsigned>(first) + step);
  };
  switch (size) {
    case 1: return at(0);
    case 2: return at(1);
    case 4: return at(2);
    case 8: return at(3);
    default: return std::nullopt;
  }
}

std::optional<DType> dtype_of_letter(std::string_view letter, Py_ssize_t size) {
  if (letter == "?") return size == 1 ? std::optional(DType::kBool) : std::nullopt;
  if (letter == "e") return size == 2 ? std::optional(DType::kFloat16) : std::nullopt;
  if (letter == "f") return size == 4 ? std::optional(DType::kFloat32) : std::nullopt;
  if (letter == "d") return size == 8 ? std::optional(DType::kFloat64) : std::nullopt;
  if (letter == "Zf") return size == 8 ? std::optional(DType::kComplex64) : std::nullopt;
  if (letter == "Zd") return size == 16 ? std::optional(DType::kComplex128) : std::nullopt;
  if (letter.size() != 1) return std::nullopt;
  if (std::string_view("bhilqn").find(letter[0]) != std::string_view::npos) {
    return sized(DType::kInt8, size);
  }
  if (std::string_view("BHILQN").find(letter[0]) != std::string_view::npos) {
    return sized(DType::kUInt8, size);
  }
  return std::nullopt;
}

std::string cure(std::string_view letter) {
  if (letter.ends_with('g')) return "long double differs between machines; pass x.astype(float64)";
  if (letter.starts_with('T')) return "it is structured; pass its fields to tuple_key";
  if (letter == "O") return "it holds Python objects; pass an array of numbers";
  if (letter.ends_with('w') || letter.ends_with('s') || letter.ends_with('u')) {
    return "it holds strings; pass their bytes as uint8";
  }
  return "expected numbers or bools; pass x.view of an integer dtype";
}

Format parse(const Py_buffer& buffer) {
  // No format stands for unsigned bytes.
  std::string_view format = buffer.format == nullptr ? "B" : buffer.format;
  std::string_view letter = format;
  bool big = false;
  if (!letter.empty() && std::string_view("@=<>!").find(letter[0]) != std::string_view::npos) {
    big = letter[0] == '>' || letter[0] == '!';
    letter.remove_prefix(1);
  }
  const std::optional<DType> dtype = dtype_of_letter(letter, buffer.itemsize);
  if (!dtype) {
    unsupported("elements of format '" + std::string(format) + "', " +
                std::to_string(buffer.itemsize) + " bytes each, have no key: " + cure(letter));
  }
  return {*dtype, big};
}

}  // namespace

bool borrow_buffer(PyObject* object, Loan& loan) {
  if (PyObject_GetBuffer(object, &loan.buffer, PyBUF_FORMAT | PyBUF_STRIDES) != 0) {
    loan.buffer.obj = nullptr;
    return false;
  }
  const Py_buffer& buffer = loan.buffer;
  const Format format = parse(buffer);
  if (buffer.ndim < 0 || (buffer.ndim > 0 && buffer.shape == nullptr)) {
    unsupported("the buffer of " + type_name(object) + " has no shape; expected one");
  }
  static_assert(sizeof(Py_ssize_t) == sizeof(std::int64_t));
  const auto rank = static_cast<std::size_t>(buffer.ndim);
  loan.object = nb::borrow(object);
  loan.view = {.data = buffer.buf,
               .dtype = format.dtype,
               .shape = {buffer.shape, rank},
               .strides = {buffer.strides, buffer.strides == nullptr ? 0 : rank},
               .byteswapped = format.byteswapped};
  return true;
}

}  // namespace tensorkey::python
