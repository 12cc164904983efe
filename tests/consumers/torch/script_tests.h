// What is read of a layer: TorchScript modules, torch::nn modules, functions; arguments and results
// as nests; the environment.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <tensorkey/torch.h>
#include <torch/script.h>
#include <torch/torch.h>

namespace tensorkey::torch {
namespace {

using internal::Arguments;
using internal::CallForm;
using internal::Packer;
using internal::Parameter;
using internal::Reading;
using internal::ScriptSource;
using internal::Unpacker;

::torch::jit::Module scripted(const std::string& code) {
  ::torch::jit::Module module("M");
  module.register_parameter("weight", at::ones({3}), false);
  module.register_buffer("shift", at::zeros({3}));
  module.register_attribute("scale", c10::FloatType::get(), 2.0);
  module.register_attribute("unused", c10::IntType::get(), 1);
  module.define(code);
  return module;
}

constexpr const char* kForward = "def forward(self, x, k: int = 2):\n  return x * self.scale * k\n";

TEST(Script, ReadsCodeAttributesAndTensors) {
  const std::string base = ScriptSource(scripted(kForward)).read().structure;
  EXPECT_EQ(ScriptSource(scripted(kForward)).read().structure, base);
  EXPECT_NE(ScriptSource(scripted("def forward(self, x, k: int = 2):\n"
                                  "  return x * self.scale + k\n"))
                .read()
                .structure,
            base);

  ::torch::jit::Module module = scripted(kForward);
  ScriptSource source(module);
  const Reading reading = source.read();
  source.note();
  EXPECT_EQ(reading.structure, base);
  EXPECT_EQ(reading.names, (std::vector<std::string>{"layer.shift", "layer.weight"}));
  EXPECT_EQ(source.parameters(), (std::vector<std::string>{"x", "k"}));
  EXPECT_TRUE(source.unchanged());

  module.setattr("scale", 3.0);
  EXPECT_FALSE(source.unchanged());
  EXPECT_NE(source.read().structure, base);
  source.note();
  EXPECT_TRUE(source.unchanged());
  module.setattr("scale", 2.0);
  EXPECT_EQ(source.read().structure, base);
  module.setattr("unused", 5);  // no code reads it
  EXPECT_EQ(source.read().structure, base);
  source.note();
  module.setattr("weight", at::ones({3}));  // equal, but another tensor: the guard must know it
  EXPECT_FALSE(source.unchanged());
}

TEST(Script, NamesOfSeveralLoadsAreOne) {
  EXPECT_EQ(internal::script::unmangled("__torch__.___torch_mangle_17.M and ___torch_mangle_3.N"),
            "__torch__.M and N");
  EXPECT_EQ(internal::script::unmangled("___torch_mangle_x.M ___torch_mangle_7"),
            "___torch_mangle_x.M ___torch_mangle_7");
  EXPECT_EQ(internal::script::unmangled(""), "");
}

TEST(Module, ReadsClassesFlagsAndTensors) {
  using internal::ModuleSource;
  const auto make = [](double eps) {
    return std::make_shared<::torch::nn::SequentialImpl>(
        ::torch::nn::Linear(3, 2),
        ::torch::nn::BatchNorm1d(::torch::nn::BatchNorm1dOptions(2).eps(eps)));
  };
  const auto module = make(1e-5);
  ModuleSource source(module);
  const Reading reading = source.read();
  source.note();
  EXPECT_EQ(reading.names,
            (std::vector<std::string>{"layer.0.weight", "layer.0.bias", "layer.1.weight",
                                      "layer.1.bias", "layer.1.running_mean", "layer.1.running_var",
                                      "layer.1.num_batches_tracked"}));
  EXPECT_EQ(ModuleSource(make(1e-5)).read().structure, reading.structure);
  EXPECT_NE(ModuleSource(make(1e-3)).read().structure, reading.structure);
  EXPECT_TRUE(source.unchanged());
  module->eval();
  EXPECT_FALSE(source.unchanged());
  EXPECT_NE(source.read().structure, reading.structure);
  ASSERT_EQ(reading.assumptions.size(), 1U);
}

TEST(Function, IsKnownByItsBuild) {
  // Of a program of ours there is a build; LibTorch's version is in the environment.
  static const char ours = 0;
  EXPECT_FALSE(internal::build_of(&ours).empty());
  EXPECT_EQ(internal::build_of(reinterpret_cast<const void*>(&at::globalContext)), "");
  EXPECT_NE(internal::build_of(reinterpret_cast<const void*>(&std::malloc)),
            internal::build_of(&ours));
}

TEST(Arguments, RowsMakeKeysAndAllElseTheForm) {
  const std::vector<Parameter> names{{"x"}, {"mask"}, {"scale", canonical::real(1)}};
  const at::Tensor x = at::ones({4, 3});
  const CallForm form({x, at::ones({4}), 1.0}, names);
  EXPECT_EQ(form.rows(), 4);
  EXPECT_EQ(form.paths(), (std::vector<std::string>{"x", "mask"}));
  EXPECT_EQ(form.encoded(), CallForm({x, at::zeros({4})}, names).encoded());  // the default
  EXPECT_NE(form.encoded(), CallForm({x, at::zeros({4}), 2.0}, names).encoded());
  EXPECT_NE(form.encoded(), CallForm({x, at::zeros({4}, at::kDouble)}, names).encoded());
  EXPECT_NE(form.encoded(), CallForm({x, c10::IValue()}, names).encoded());

  // What has no row for each of the batch counts with its contents.
  const CallForm table({x, at::ones({5})}, names);
  EXPECT_EQ(table.paths(), (std::vector<std::string>{"x"}));
  EXPECT_EQ(table.is_row(), (std::vector<bool>{true, false}));
  EXPECT_NE(table.encoded(), CallForm({x, at::zeros({5})}, names).encoded());

  c10::Dict<std::string, at::Tensor> nest;
  nest.insert("ids", x);
  nest.insert("a\"b", x);
  EXPECT_EQ(CallForm({nest}, names).paths(),
            (std::vector<std::string>{"x[\"ids\"]", "x[\"a\\\"b\"]"}));
  EXPECT_EQ(CallForm({std::make_tuple(x, x)}, names).paths(),
            (std::vector<std::string>{"x[0]", "x[1]"}));
}

TEST(Arguments, WhatHasNoRowsIsBypassed) {
  const std::vector<Parameter> names{{"x"}, {"y"}};
  const auto reason = [&](const Arguments& arguments) -> std::string {
    try {
      static_cast<void>(CallForm(arguments, names));
    } catch (const LayerBypassed& bypassed) {
      return bypassed.what();
    }
    return "";
  };
  EXPECT_NE(reason({1}).find("no tensor"), std::string::npos);
  EXPECT_NE(reason({at::scalar_tensor(1)}).find("no tensor"), std::string::npos);
  EXPECT_NE(reason({at::ones({0, 2})}).find("0 rows"), std::string::npos);
  EXPECT_NE(reason({at::ones({2}).requires_grad_()}).find("requires grad"), std::string::npos);
  EXPECT_NE(reason({at::ones({2}, at::device(at::kMeta))}).find("meta"), std::string::npos);
  EXPECT_NE(reason({at::ones({2}), std::vector<std::int64_t>{1, 2}}).find("pass a tensor"),
            std::string::npos);
  EXPECT_NE(reason({at::ones({2}), 1, 2}).find("Options::inputs"), std::string::npos);
  const at::NoGradGuard no_grad;
  EXPECT_EQ(reason({at::ones({2}).requires_grad_()}), "");
}

TEST(Nest, ResultsComeBackAsTheyWere) {
  const at::Tensor image = at::rand({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  c10::Dict<std::string, at::Tensor> dict;
  dict.insert("a", image);
  dict.insert("b", at::ones({2}));
  const std::vector<c10::IValue> values{
      image,
      std::make_tuple(at::ones({2}), std::vector<at::Tensor>{image, at::zeros({2})}),
      dict,
      std::make_tuple(at::ones({2}), c10::IValue(), true, 7, 2.5, std::string("text")),
  };
  for (const c10::IValue& value : values) {
    const internal::Packed packed = Packer(2, at::kCPU).pack(value);
    const Unpacker unpacker(packed.description);
    ASSERT_EQ(unpacker.notes().size(), packed.tensors.size());
    std::vector<at::Tensor> stored;
    for (std::size_t i = 0; i < packed.tensors.size(); ++i) {
      const at::Tensor plain = packed.tensors[i].contiguous();
      const auto& order = unpacker.notes()[i].order;
      stored.push_back(order.empty() ? plain : internal::reordered(plain, order));
      EXPECT_EQ(stored[i].strides(), packed.tensors[i].strides());
    }
    const c10::IValue made = unpacker.build(stored);
    EXPECT_EQ(*made.type(), *value.type());
    EXPECT_EQ(Packer(2, at::kCPU).pack(made).description, packed.description);
  }
}

TEST(Nest, ATensorThatComesTwiceStaysOne) {
  const at::Tensor x = at::ones({2});
  const internal::Packed packed = Packer(2, at::kCPU).pack(std::make_tuple(x, x));
  EXPECT_EQ(packed.tensors.size(), 1U);
  const c10::IValue made = Unpacker(packed.description).build(packed.tensors);
  const auto& elements = made.toTupleRef().elements();
  EXPECT_TRUE(elements[0].toTensor().is_same(elements[1].toTensor()));
}

TEST(Nest, WhatIsNoDescriptionIsBypassed) {
  const std::string good = Packer(2, at::kCPU).pack(at::ones({2})).description;
  EXPECT_NO_THROW(Unpacker{good});
  for (std::size_t size = 0; size < good.size(); ++size) {
    EXPECT_THROW(Unpacker{good.substr(0, size)}, LayerBypassed) << size;
  }
  EXPECT_THROW(Unpacker{good + "x"}, LayerBypassed);
  EXPECT_THROW(Unpacker{canonical::item('o', canonical::text("namedtuple"))}, LayerBypassed);
  EXPECT_THROW(Unpacker{canonical::item('x', canonical::integer(0))}, LayerBypassed);
}

TEST(Environment, FollowsTheSwitches) {
  const Environment before(at::kCPU);
  EXPECT_EQ(before, Environment(at::kCPU));
  const bool enabled = at::globalContext().userEnabledMkldnn();
  at::globalContext().setUserEnabledMkldnn(!enabled);
  EXPECT_NE(before, Environment(at::kCPU));
  EXPECT_NE(before.encoded(), Environment(at::kCPU).encoded());
  at::globalContext().setUserEnabledMkldnn(enabled);
  EXPECT_EQ(before.encoded(), Environment(at::kCPU).encoded());

  const Environment portable(at::kCPU, true);
  EXPECT_NE(portable.encoded(), before.encoded());
  const int threads = at::get_num_threads();
  at::set_num_threads(threads + 1);
  EXPECT_NE(Environment(at::kCPU), before);
  EXPECT_EQ(Environment(at::kCPU, true), portable);
  at::set_num_threads(threads);
}

}  // namespace
}  // namespace tensorkey::torch
