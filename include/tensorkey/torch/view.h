// Tensors of LibTorch as views and keys. A HostView holds its tensor alive and converts to the
// TensorView that the whole core takes:
//
//   tensorkey::Key k = tensorkey::torch::key(x);
//   std::vector<tensorkey::Key> rows = tensorkey::torch::row_keys(batch);
//   tensorkey::TensorKeyMap<std::string> seen;
//   seen[tensorkey::torch::view(x)] = "cat";
//   auto found = seen.find(tensorkey::torch::view(x.clone()));
//
// A tensor on the CPU is borrowed where it lies, whatever its strides; one on a device, or with its
// conjugation or negation pending, is copied first. Equal content has an equal key in Python, too.
// Refused, with Error kUnsupported and what to do instead: undefined, meta, sparse, quantised,
// nested and zero tensors, and those inside a transformation, which have no value of their own.
// Thread-safe as the tensor is: reading needs that nobody writes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/ScalarType.h>

#include <tensorkey/dtype.h>
#include <tensorkey/error.h>
#include <tensorkey/key.h>
#include <tensorkey/view.h>

namespace tensorkey::torch {

namespace internal {

struct DTypePair {
  at::ScalarType torch;
  DType dtype;
};

// Quantised and opaque (bits1x8 ...) types have no id.
inline constexpr DTypePair kDTypes[] = {
    {at::ScalarType::Bool, DType::kBool},
    {at::ScalarType::Char, DType::kInt8},
    {at::ScalarType::Short, DType::kInt16},
    {at::ScalarType::Int, DType::kInt32},
    {at::ScalarType::Long, DType::kInt64},
    {at::ScalarType::Byte, DType::kUInt8},
    {at::ScalarType::UInt16, DType::kUInt16},
    {at::ScalarType::UInt32, DType::kUInt32},
    {at::ScalarType::UInt64, DType::kUInt64},
    {at::ScalarType::Half, DType::kFloat16},
    {at::ScalarType::Float, DType::kFloat32},
    {at::ScalarType::Double, DType::kFloat64},
    {at::ScalarType::BFloat16, DType::kBFloat16},
    {at::ScalarType::ComplexHalf, DType::kComplex32},
    {at::ScalarType::ComplexFloat, DType::kComplex64},
    {at::ScalarType::ComplexDouble, DType::kComplex128},
    {at::ScalarType::Float8_e4m3fn, DType::kFloat8E4M3FN},
    {at::ScalarType::Float8_e4m3fnuz, DType::kFloat8E4M3FNUZ},
    {at::ScalarType::Float8_e5m2, DType::kFloat8E5M2},
    {at::ScalarType::Float8_e5m2fnuz, DType::kFloat8E5M2FNUZ},
    {at::ScalarType::Float8_e8m0fnu, DType::kFloat8E8M0FNU},
    {at::ScalarType::Float4_e2m1fn_x2, DType::kFloat4E2M1FNx2},
    {at::ScalarType::Int1, DType::kInt1},
    {at::ScalarType::Int2, DType::kInt2},
    {at::ScalarType::Int3, DType::kInt3},
    {at::ScalarType::Int4, DType::kInt4},
    {at::ScalarType::Int5, DType::kInt5},
    {at::ScalarType::Int6, DType::kInt6},
    {at::ScalarType::Int7, DType::kInt7},
    {at::ScalarType::UInt1, DType::kUInt1},
    {at::ScalarType::UInt2, DType::kUInt2},
    {at::ScalarType::UInt3, DType::kUInt3},
    {at::ScalarType::UInt4, DType::kUInt4},
    {at::ScalarType::UInt5, DType::kUInt5},
    {at::ScalarType::UInt6, DType::kUInt6},
    {at::ScalarType::UInt7, DType::kUInt7},
};

[[noreturn]] inline void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupported, "[torch::view] " + message);
}

}  // namespace internal

// The id of a dtype of LibTorch, if it has one.
inline std::optional<DType> dtype_of(at::ScalarType type) noexcept {
  for (const internal::DTypePair& pair : internal::kDTypes) {
    if (pair.torch == type) return pair.dtype;
  }
  return std::nullopt;
}

// The other way round: none for a dtype that LibTorch does not have.
inline std::optional<at::ScalarType> scalar_type_of(DType dtype) noexcept {
  for (const internal::DTypePair& pair : internal::kDTypes) {
    if (pair.dtype == dtype) return pair.torch;
  }
  return std::nullopt;
}

namespace internal {

// Why a tensor has no key: null if it has one. On the CPU or not.
inline const char* refusal(const at::Tensor& tensor) {
  if (!tensor.defined()) return "an undefined tensor has no key; pass one that has a value";
  const c10::DispatchKeySet keys = tensor.unsafeGetTensorImpl()->key_set();
  constexpr c10::DispatchKeySet kTransformed(
      {c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
       c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
       c10::DispatchKey::Batched});
  if (keys.has_any(kTransformed)) {
    return "a tensor inside a transformation, or of a subclass, has no value of its own; "
           "pass a plain tensor";
  }
  if (tensor.is_meta()) return "a meta tensor has no value; pass one with memory";
  if (tensor.is_nested()) {
    return "a nested tensor has no key; pass its parts to tuple_key, or x.to_padded_tensor(0)";
  }
  if (tensor.is_quantized()) {
    return "a quantised tensor has no key; pass x.dequantize(), or x.int_repr() and its scales "
           "to tuple_key";
  }
  if (tensor.layout() != at::kStrided) {
    return "a sparse tensor, or one of another layout, has no key; pass x.to_dense()";
  }
  if (tensor._is_zerotensor()) {
    return "a zero tensor of autograd has no memory; pass x.clone()";
  }
  return nullptr;
}

// On the CPU, with nothing pending. REQUIRES: no refusal().
inline at::Tensor resolved(const at::Tensor& tensor) {
  at::Tensor out = tensor;
  if (!out.is_cpu()) out = out.detach().cpu();
  if (out.is_conj() || out.is_neg()) out = out.detach().resolve_conj().resolve_neg();
  return out;
}

// A storage may have shrunk behind its tensor (resize_): no reading past its end.
inline void check_storage(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return;
  std::size_t reach = 1;
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
    reach += static_cast<std::size_t>(tensor.size(dim) - 1) *
             static_cast<std::size_t>(tensor.stride(dim));
  }
  reach = (reach + static_cast<std::size_t>(tensor.storage_offset())) * tensor.element_size();
  if (!tensor.has_storage() || tensor.const_data_ptr() == nullptr ||
      tensor.storage().nbytes() < reach) {
    unsupported("the tensor's storage is smaller than the tensor, or was freed");
  }
}

}  // namespace internal

class HostView {
 public:
  // Throws Error kUnsupported for a tensor that has no key.
  explicit HostView(const at::Tensor& tensor) {
    if (const char* const why = internal::refusal(tensor)) internal::unsupported(why);
    const std::optional<DType> dtype = dtype_of(tensor.scalar_type());
    if (!dtype) {
      internal::unsupported(std::string("a tensor of dtype ") +
                            c10::toString(tensor.scalar_type()) +
                            " has no key; view it as an integer dtype of the same size");
    }
    tensor_ = internal::resolved(tensor);
    internal::check_storage(tensor_);
    view_ = {.data = tensor_.numel() == 0 ? nullptr : tensor_.const_data_ptr(),
             .dtype = *dtype,
             .shape = {tensor_.sizes().data(), tensor_.sizes().size()},
             .strides = {tensor_.strides().data(), tensor_.strides().size()},
             .stride_unit = static_cast<std::int64_t>(tensor_.element_size())};
  }

  [[nodiscard]] const TensorView& get() const noexcept { return view_; }
  // Implicit: a HostView stands for a TensorView in every call. The view borrows from *this.
  operator const TensorView&() const& noexcept { return view_; }
  // The tensor that is read: the caller's own, or the copy.
  [[nodiscard]] const at::Tensor& tensor() const noexcept { return tensor_; }

 private:
  at::Tensor tensor_;
  TensorView view_;
};

[[nodiscard]] inline HostView view(const at::Tensor& tensor) { return HostView(tensor); }

[[nodiscard]] inline Key key(const at::Tensor& tensor, const KeyOptions& options = {}) {
  return tensorkey::key(HostView(tensor).get(), options);
}

// Element i is key(batch[i]). Throws Error kInvalidArgument for a tensor of rank 0.
[[nodiscard]] inline std::vector<Key> row_keys(const at::Tensor& batch,
                                               const KeyOptions& options = {}) {
  const HostView host(batch);
  std::vector<Key> keys(batch.dim() == 0 ? 0 : static_cast<std::size_t>(batch.size(0)));
  tensorkey::row_keys(host, keys, options);
  return keys;
}

}  // namespace tensorkey::torch
