// Structure keys: what a tensor is apart from its elements, as named fields in text.
#include <tensorkey/key.h>

#include <string>
#include <vector>

#include "base/bytes.h"
#include "key/header.h"

namespace tensorkey {
namespace {

// Byte strides, comma-separated. The stride of a dim of size 0 or 1 is never used, and frameworks
// disagree about it: it is written as 0, and so are all strides of a tensor without elements.
std::string stride_text(const TensorView& view) {
  const std::size_t rank = view.shape.size();
  std::vector<std::int64_t> strides(rank);
  auto contiguous = static_cast<std::int64_t>(item_size(view.dtype));
  for (std::size_t i = rank; i-- > 0;) {
    strides[i] = view.strides.empty() ? contiguous : view.strides[i] * view.stride_unit;
    contiguous *= view.shape[i];
  }
  const bool empty = contiguous == 0;
  std::string text;
  for (std::size_t i = 0; i < rank; ++i) {
    if (i > 0) text += ',';
    text += std::to_string(empty || view.shape[i] <= 1 ? 0 : strides[i]);
  }
  return text;
}

}  // namespace

Key structure_key(const TensorView& view, const Structure& structure, const KeyOptions& options) {
  TensorView checked = view;
  if (checked.data == nullptr) checked.data = &checked;  // not read: any address will do
  check_view(checked, "structure_key");

  KeyOptions unflagged = options;
  unflagged.canonical = false;  // there are no elements to make canonical
  const Digest header = internal::header_digest({.kind = internal::Kind::kStructure,
                                                 .dtype = view.dtype,
                                                 .shape = view.shape,
                                                 .dtype_params = view.dtype_params},
                                                unflagged, "structure_key");
  internal::ByteWriter fields;
  const auto put = [&](std::string_view name, std::string_view value) {
    fields.put_sized(name);
    fields.put_sized(value);
  };
  // In the order of their names' bytes.
  put("byte_order", view.byteswapped ? "big" : "little");
  put("device", structure.device);
  put("layout", structure.layout);
  put("pinned", structure.pinned ? "true" : "false");
  put("requires_grad", structure.requires_grad ? "true" : "false");
  put("strides", stride_text(view));
  return Key(blake3(fields.bytes(), {.key = &header}));
}

}  // namespace tensorkey
