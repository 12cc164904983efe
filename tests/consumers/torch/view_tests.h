// Views, keys and mappings of tensors.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <tensorkey/map.h>
#include <tensorkey/torch/view.h>

namespace tensorkey::torch {
namespace {

// The code of the Error that a call throws, and its text.
template <class Call>
std::pair<ErrorCode, std::string> failure(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

// Elements 0, 1, 2, ... of a dtype, as raw bytes of `bytes` each.
at::Tensor numbered(at::ScalarType type, std::int64_t rows, std::int64_t columns) {
  at::Tensor out = at::empty({rows, columns}, type);
  auto* const bytes = static_cast<std::uint8_t*>(out.mutable_data_ptr());
  for (std::size_t i = 0; i < out.nbytes(); ++i) bytes[i] = static_cast<std::uint8_t>(i % 2);
  return out;
}

TEST(View, EveryDTypeKeepsItsNameAndItsBits) {
  for (const internal::DTypePair& pair : internal::kDTypes) {
    SCOPED_TRACE(std::string(to_string(pair.dtype)));
    // The names are those of PyTorch: torch.<name>.
    const std::pair<std::string_view, std::string_view> names = c10::getDtypeNames(pair.torch);
    EXPECT_EQ(to_string(pair.dtype), names.first);
    EXPECT_EQ(item_size(pair.dtype), c10::elementSize(pair.torch));
    EXPECT_EQ(scalar_type_of(pair.dtype), pair.torch);

    const at::Tensor x = numbered(pair.torch, 2, 3);
    const std::int64_t shape[] = {2, 3};
    const TensorView plain{.data = x.const_data_ptr(), .dtype = pair.dtype, .shape = shape};
    EXPECT_EQ(key(x), tensorkey::key(plain));
  }
}

TEST(View, EveryDTypeOfLibTorchHasAnIdOrIsRefused) {
  for (int i = 0; i < static_cast<int>(at::ScalarType::NumOptions); ++i) {
    const auto type = static_cast<at::ScalarType>(i);
    const bool opaque =
        at::isQIntType(type) || c10::isBitsType(type) || type == at::ScalarType::Undefined;
    EXPECT_EQ(dtype_of(type).has_value(), !opaque) << c10::toString(type);
  }
}

TEST(View, EqualContentHasOneKeyWhateverItsStrides) {
  const at::Tensor x = at::arange(24, at::kFloat).reshape({2, 3, 4});
  const Key expected = key(x);
  EXPECT_EQ(key(x.clone()), expected);
  EXPECT_EQ(key(x.permute({2, 0, 1}).contiguous().permute({1, 2, 0})), expected);
  EXPECT_EQ(key(at::cat({x, x}, 1).narrow(1, 3, 3)), expected);
  EXPECT_EQ(key(x.clone().requires_grad_()), expected);
  EXPECT_NE(key(x.reshape({6, 4})), expected);
  EXPECT_NE(key(x.to(at::kDouble)), expected);
  EXPECT_EQ(key(at::ones({1, 1}).expand({5, 7})), key(at::ones({5, 7})));
  EXPECT_NE(key(at::empty({0, 3})), key(at::empty({3, 0})));
  EXPECT_NE(key(at::scalar_tensor(1)), key(at::ones({1})));
}

TEST(View, ConjugationAndNegationAreResolved) {
  const at::Tensor z = at::complex(at::arange(4, at::kFloat), at::arange(4, at::kFloat) + 1);
  ASSERT_TRUE(z.conj().is_conj());
  EXPECT_EQ(key(z.conj()), key(z.conj().clone()));
  EXPECT_EQ(key(z.conj()), key(z.conj_physical()));
  EXPECT_NE(key(z.conj()), key(z));
  const at::Tensor negative = at::imag(z.conj());
  ASSERT_TRUE(negative.is_neg());
  EXPECT_EQ(key(negative), key(-at::imag(z)));
  EXPECT_NE(key(negative), key(at::imag(z)));
}

TEST(View, OptionsAreThoseOfTheCore) {
  const at::Tensor x = at::ones({3});
  const std::array<std::uint8_t, 32> secret{7};
  EXPECT_NE(key(x, {.scope = "a"}), key(x, {.scope = "b"}));
  EXPECT_NE(key(x, {.secret = secret}), key(x));
  EXPECT_NE(key(at::zeros({2})), key(-at::zeros({2})));
  EXPECT_EQ(key(at::zeros({2}), {.canonical = true}), key(-at::zeros({2}), {.canonical = true}));
}

TEST(View, RowsHaveTheKeysOfTheirTensors) {
  const at::Tensor x = at::arange(30, at::kLong).reshape({5, 6});
  for (const at::Tensor& batch : {x, x.t()}) {
    const std::vector<Key> keys = row_keys(batch, {.scope = "s"});
    ASSERT_EQ(keys.size(), static_cast<std::size_t>(batch.size(0)));
    for (std::int64_t i = 0; i < batch.size(0); ++i) {
      EXPECT_EQ(keys[static_cast<std::size_t>(i)], key(batch[i], {.scope = "s"}));
    }
  }
  EXPECT_TRUE(row_keys(at::empty({0, 3})).empty());
  EXPECT_EQ(failure([] { static_cast<void>(row_keys(at::scalar_tensor(1))); }).first,
            ErrorCode::kInvalidArgument);
}

TEST(View, WhatHasNoValueIsRefusedWithWhatToDo) {
  const auto refused = [](const at::Tensor& tensor, const char* text) {
    const auto [code, message] = failure([&] { static_cast<void>(key(tensor)); });
    EXPECT_EQ(code, ErrorCode::kUnsupported) << text;
    EXPECT_NE(message.find(text), std::string::npos) << message;
  };
  refused(at::Tensor(), "undefined");
  refused(at::empty({2}, at::device(at::kMeta)), "meta");
  refused(at::eye(3).to_sparse(), "to_dense()");
  refused(at::eye(3).to_sparse_csr(), "to_dense()");
  refused(at::quantize_per_tensor(at::ones({2}), 0.1, 0, at::kQInt8), "dequantize()");
  refused(at::_nested_tensor_from_tensor_list({at::ones({2}), at::ones({3})}), "nested");
  refused(at::_efficientzerotensor({2}), "zero tensor");
  refused(at::empty({2}, at::ScalarType::Bits8), "dtype");
  at::Tensor freed = at::ones({1000});
  freed.storage().unsafeGetStorageImpl()->set_nbytes(8);
  refused(freed, "storage");
}

TEST(View, TensorsAreKeysOfAMapByContent) {
  TensorKeyMap<std::string> seen;
  const at::Tensor x = at::arange(6, at::kFloat).reshape({2, 3});
  seen[view(x)] = "cat";
  EXPECT_EQ(seen.at(view(x.clone())), "cat");
  EXPECT_EQ(seen.at(view(x.t().contiguous().t())), "cat");
  EXPECT_FALSE(seen.contains(view(x.reshape({3, 2}))));
  EXPECT_FALSE(seen.contains(view(x.to(at::kDouble))));

  const at::Tensor changed = x.clone();
  seen.insert_or_assign(view(changed), "dog");
  changed.fill_(0);
  EXPECT_EQ(seen.size(), 1U);
  EXPECT_EQ(seen.at(view(x)), "dog");  // a snapshot: later writes change nothing

  const at::Tensor z = at::complex(at::ones({2}), at::ones({2}));
  seen[view(z.conj())] = "conjugated";
  EXPECT_FALSE(seen.contains(view(z)));
  EXPECT_TRUE(seen.contains(view(z.conj().resolve_conj())));
}

}  // namespace
}  // namespace tensorkey::torch
