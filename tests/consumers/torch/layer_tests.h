// Cached layers: what is read, run, refused and bypassed; whether answers are the layer's.
#pragma once

#include <atomic>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <tensorkey/torch.h>
#include <torch/script.h>
#include <torch/torch.h>

#include "view_tests.h"

namespace tensorkey::torch {
namespace {

namespace nn = ::torch::nn;

// y = x W + shift, counting its runs; clean in chunks of any size.
struct AffineImpl : nn::Module {
  AffineImpl() {
    weight = register_parameter("weight", at::arange(12, at::kFloat).reshape({3, 4}) / 8);
    shift = register_buffer("shift", at::ones({4}));
  }
  at::Tensor forward(const at::Tensor& x) {
    ++runs;
    rows += x.size(0);
    return (x.unsqueeze(2) * weight).sum(1) + shift;
  }
  at::Tensor weight;
  at::Tensor shift;
  std::int64_t runs = 0;
  std::int64_t rows = 0;
};
TORCH_MODULE(Affine);

at::Tensor batch(std::int64_t first, std::int64_t rows) {
  return at::arange(first * 3, (first + rows) * 3, at::kFloat).reshape({rows, 3}) / 4;
}

Affine frozen() {
  Affine affine;
  affine->weight.requires_grad_(false);
  return affine;
}

// A directory of its own that is gone afterwards.
class Directory {
 public:
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "tensorkey-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
    path_ = name;
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

void expect_same(const at::Tensor& one, const at::Tensor& other) {
  EXPECT_EQ(one.dtype(), other.dtype());
  EXPECT_EQ(one.sizes(), other.sizes());
  EXPECT_EQ(key(one), key(other));  // bit for bit
}

std::uint64_t uncached(const Stats& stats, const std::string& text) {
  std::uint64_t count = 0;
  for (const auto& [reason, times] : stats.uncached) {
    if (reason.find(text) != std::string::npos) count += times;
  }
  return count;
}

TEST(Cached, RowsSeenBeforeAreReadAndTheOthersRun) {
  Affine affine = frozen();
  const auto cached = torch::cached(affine, {.bypass = BypassMode::kNever});
  expect_same(cached(batch(0, 40)), affine->forward(batch(0, 40)));
  EXPECT_EQ(cached.stats().memo.misses, 40U);
  EXPECT_EQ(cached.stats().layer.verdict->chunk, 32U);

  const std::int64_t before = affine->rows;
  expect_same(cached(batch(0, 40)), (frozen()->forward(batch(0, 40))));
  EXPECT_EQ(affine->rows, before);
  const at::Tensor mixed = at::cat({batch(100, 1), batch(5, 3), batch(100, 1), batch(7, 1)});
  expect_same(cached(mixed), frozen()->forward(mixed));
  EXPECT_EQ(affine->rows, before + 32);  // one chunk
  const Stats stats = cached.stats();
  EXPECT_EQ(stats.memo.hits, 40U + 5U);
  EXPECT_EQ(stats.memo.duplicates, 2U);
  EXPECT_EQ(stats.memo.misses, 41U);
  EXPECT_TRUE(stats.uncached.empty());
  EXPECT_FALSE(stats.assumptions.empty());
}

TEST(Cached, AnswersAreTheCallersOwn) {
  const auto cached = torch::cached(frozen());
  at::Tensor first = cached(batch(0, 4));
  const at::Tensor kept = first.clone();
  first.fill_(7);
  at::Tensor input = batch(0, 4);
  expect_same(cached(input), kept);
  input.fill_(9);
  expect_same(cached(batch(0, 4)), kept);
}

TEST(Cached, AnyKindOfModule) {
  const auto check = [](const auto& layer, const auto& bare) {
    const at::NoGradGuard no_grad;
    const at::Tensor first = layer(batch(0, 8));
    expect_same(layer(batch(0, 8)), first);
    EXPECT_TRUE(at::allclose(first, bare(batch(0, 8))));
    EXPECT_EQ(layer.stats().memo.hits, 8U);
  };
  const Affine affine = frozen();
  check(torch::cached(affine), [&](const at::Tensor& x) { return Affine(affine)->forward(x); });
  check(torch::cached(affine.ptr()),
        [&](const at::Tensor& x) { return Affine(affine)->forward(x); });
  nn::Sequential sequential(nn::Linear(3, 16), nn::ReLU());
  sequential->eval();
  check(torch::cached(sequential), [&](const at::Tensor& x) { return sequential->forward(x); });
  nn::AnyModule any(nn::Linear(3, 16));
  check(torch::cached(any), [&](const at::Tensor& x) { return any.forward(x); });
}

TEST(Cached, FunctionsOfSeveralTensorsAndNumbers) {
  const at::Tensor table = at::arange(10, at::kFloat);
  int calls = 0;
  const auto cached = torch::cached(
      [&calls, table](const at::Tensor& ids, const at::Tensor& mask, double scale) {
        ++calls;
        const at::Tensor found = table.index_select(0, ids.flatten()).reshape(ids.sizes()) * scale;
        return std::make_tuple(found * mask, std::vector<at::Tensor>{found.sum(1), table});
      },
      {table}, {.bypass = BypassMode::kNever});
  const at::Tensor ids = at::arange(8).reshape({4, 2});
  const at::Tensor mask = at::ones({4, 2});
  const auto [first, rest] = cached(ids, mask, 2.0);
  expect_same(first, ids.to(at::kFloat) * 2);
  ASSERT_EQ(rest.size(), 2U);
  expect_same(rest[1], table);  // the same for every row
  const int before = calls;
  const auto [again, again_rest] = cached(ids, mask, 2.0);
  EXPECT_EQ(calls, before);
  expect_same(again, first);
  expect_same(again_rest[0], rest[0]);
  expect_same(again_rest[1], table);
  EXPECT_NE(key(std::get<0>(cached(ids, mask, 3.0))), key(first));
  EXPECT_NE(key(std::get<0>(cached(ids, mask * 2, 2.0))), key(first));
}

TEST(Cached, MemoryFormatsComeBack) {
  const auto cached = torch::cached(
      [](const at::Tensor& x) { return (x + 1).contiguous(at::MemoryFormat::ChannelsLast); }, {});
  const at::Tensor x = at::arange(2 * 3 * 4 * 5, at::kFloat).reshape({2, 3, 4, 5});
  for (int i = 0; i < 2; ++i) {
    const at::Tensor y = cached(x);
    EXPECT_TRUE(y.is_contiguous(at::MemoryFormat::ChannelsLast));
    EXPECT_FALSE(y.is_contiguous());
    expect_same(y, x + 1);
  }
  EXPECT_EQ(cached.stats().memo.hits, 2U);
}

TEST(Cached, ChangesOfTheLayerAreSeen) {
  const at::NoGradGuard no_grad;
  Affine affine;
  const auto cached = torch::cached(affine, {.bypass = BypassMode::kNever});
  const at::Tensor x = batch(0, 4);
  const auto check = [&](const char* what) {
    SCOPED_TRACE(what);
    expect_same(cached(x), Affine(affine)->forward(x));
    expect_same(cached(x), Affine(affine)->forward(x));
  };
  check("as made");
  const at::Tensor kept = affine->weight.clone();
  affine->weight.add_(1);
  check("an optimizer's step");
  affine->shift.mul_(3);
  check("a buffer");
  affine->weight.set_data(kept * 2);
  check("other data");
  affine->weight.copy_(kept);
  affine->shift.fill_(1);
  const std::int64_t before = affine->runs;
  cached(x);
  EXPECT_EQ(affine->runs, before);  // earlier weights find the earlier entries
  affine->eval();
  check("inference mode");
  EXPECT_GE(cached.stats().memo.misses, 5U * 4U);
}

TEST(Cached, AWriteThatNoGuardSeesIsLateAndNeverKept) {
  const at::NoGradGuard no_grad;
  const Directory directory;
  Affine affine;
  const at::Tensor x = batch(0, 4);
  {
    const auto cached =
        torch::cached(affine, {.disk = directory.path(), .chunk = 1, .bypass = BypassMode::kNever});
    // Until eight calls that run the layer are measured, each is checked strictly.
    for (int i = 0; i < 9; ++i) cached(batch(100 + i, 1));
    affine->weight.variable_data().add_(5);  // no version moves
    cached.recheck();
    expect_same(cached(x), Affine(affine)->forward(x));
    affine->weight.variable_data().add_(5);
    cached(x + 1);  // looked up under weights that are no more
  }
  affine->weight.variable_data().sub_(5);
  const auto later = torch::cached(affine, {.disk = directory.path(), .chunk = 1});
  expect_same(later(x + 1), Affine(affine)->forward(x + 1));
  expect_same(later(x), Affine(affine)->forward(x));
  EXPECT_EQ(later.stats().memo.hits, 4U);  // of x, which was checked

  const auto strict = torch::cached(affine, {.fingerprint = Fingerprint::kStrict});
  strict(x);
  affine->weight.variable_data().add_(5);
  expect_same(strict(x), Affine(affine)->forward(x));
}

TEST(Cached, ManualIsWhatTheScopeSays) {
  const at::NoGradGuard no_grad;
  Affine affine;
  const auto cache = std::make_shared<ActivationCache>();
  const auto one =
      torch::cached(affine, {.cache = cache, .fingerprint = Fingerprint::kManual, .scope = "v1"});
  const at::Tensor first = one(batch(0, 4));
  affine->weight.add_(1);
  expect_same(one(batch(0, 4)), first);
  const auto two =
      torch::cached(affine, {.cache = cache, .fingerprint = Fingerprint::kManual, .scope = "v2"});
  EXPECT_NE(key(two(batch(0, 4))), key(first));
}

TEST(Cached, GradientsRunUncached) {
  Affine affine;
  const auto cached = torch::cached(affine);
  const at::Tensor y = cached(batch(0, 4));
  EXPECT_TRUE(y.requires_grad());
  y.sum().backward();
  EXPECT_TRUE(affine->weight.grad().defined());
  EXPECT_EQ(uncached(cached.stats(), "requires_grad_(false)"), 1U);

  affine->weight.requires_grad_(false);
  at::Tensor x = batch(0, 4).requires_grad_();
  EXPECT_TRUE(cached(x).requires_grad());
  EXPECT_EQ(uncached(cached.stats(), "input requires grad"), 1U);
  EXPECT_EQ(cached.stats().memo.lookups, 0U);

  // A hit is a plain tensor that a head can learn from, be it made in inference mode.
  {
    const c10::InferenceMode inference;
    EXPECT_TRUE(cached(batch(0, 4)).is_inference());
  }
  const at::Tensor hit = cached(batch(0, 4));
  EXPECT_FALSE(hit.is_inference());
  nn::Linear head(4, 1);
  head->forward(hit).sum().backward();
  EXPECT_TRUE(head->weight.grad().defined());
}

TEST(Cached, LayersThatMixRowsAreRefusedWithTheEvidence) {
  const auto refused = [](const auto& cached, const at::Tensor& x) {
    return failure([&] { static_cast<void>(cached(x)); });
  };
  const at::Tensor x = at::rand({20, 3}, at::detail::getDefaultCPUGenerator());
  const auto sum = torch::cached([](const at::Tensor& r) { return r + r.sum(); }, {});
  const auto [code, text] = refused(sum, x);
  EXPECT_EQ(code, ErrorCode::kUnsupported);
  EXPECT_FALSE(text.empty());
  nn::Sequential random(nn::Linear(3, 8), nn::Dropout(0.5));
  random->train();
  const at::NoGradGuard no_grad;
  EXPECT_EQ(refused(torch::cached(random), x).first, ErrorCode::kUnsupported);
  nn::Sequential normed(nn::BatchNorm1d(3));
  const at::Tensor mean = normed->named_buffers()["0.running_mean"];
  const at::Tensor before = mean.clone();
  normed->train();
  EXPECT_EQ(refused(torch::cached(normed), x).first, ErrorCode::kUnsupported);
  expect_same(mean, before);  // the probe puts back what it changed

  const auto random_state = at::detail::getDefaultCPUGenerator().get_state();
  EXPECT_EQ(
      refused(torch::cached([](const at::Tensor& r) { return r + at::rand({1}); }, {}), x).first,
      ErrorCode::kUnsupported);
  expect_same(at::detail::getDefaultCPUGenerator().get_state(), random_state);
}

TEST(Cached, WhatTheLayerThrowsPassesThrough) {
  bool fail = true;
  const auto cached = torch::cached(
      [&fail](const at::Tensor& x) -> at::Tensor {
        if (fail) throw std::domain_error("mine");
        return x + 1;
      },
      {});
  EXPECT_THROW(cached(batch(0, 4)), std::domain_error);
  fail = false;
  expect_same(cached(batch(0, 4)), batch(0, 4) + 1);
  EXPECT_EQ(cached.stats().memo.misses, 4U);
}

TEST(Cached, RunsUncachedWhereTensorsStandForOthers) {
  const auto cached = torch::cached([](const at::Tensor& x) { return x * 2; }, {});
  ::torch::jit::tracer::trace(
      {batch(0, 4)},
      [&](const ::torch::jit::Stack& inputs) -> ::torch::jit::Stack {
        return {cached(inputs[0].toTensor())};
      },
      [](const at::Tensor&) { return std::string(); }, false);
  EXPECT_EQ(uncached(cached.stats(), "trace"), 1U);
  EXPECT_TRUE(cached(at::empty({2, 3}, at::device(at::kMeta))).is_meta());
  EXPECT_EQ(uncached(cached.stats(), "meta"), 1U);
  EXPECT_EQ(cached(at::empty({0, 3})).size(0), 0);
  {
    const Disabled disabled;
    cached(batch(0, 4));
  }
  cached.bypass(BypassMode::kAlways);
  cached(batch(0, 4));
  EXPECT_EQ(cached.stats().bypass.disabled, 1U);
  EXPECT_EQ(cached.stats().bypass.always, 1U);
  EXPECT_EQ(cached.stats().memo.lookups, 0U);
}

TEST(Cached, OptionsSayWhatIsShared) {
  EXPECT_EQ(failure([] {
              static_cast<void>(torch::cached(
                  frozen(), {.cache = std::make_shared<ActivationCache>(), .memory = 1_GiB}));
            }).first,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(failure([] { static_cast<void>(torch::cached(frozen(), {.chunk = 7})); }).first,
            ErrorCode::kInvalidArgument);

  const Directory directory;
  Affine affine = frozen();
  const std::array<std::uint8_t, 32> secret{1};
  const Options options{.disk = directory.path(), .scope = "a"};
  Options other = options;
  other.scope = "b";
  Options tenant = options;
  tenant.secret = secret;
  const auto rows_run = [&](const Options& with) {
    const auto cached = torch::cached(affine, with);
    expect_same(cached(batch(0, 4)), frozen()->forward(batch(0, 4)));
    cached.flush();
    return cached.stats().memo.misses;
  };
  EXPECT_EQ(rows_run(options), 4U);
  EXPECT_EQ(rows_run(options), 0U);
  EXPECT_EQ(rows_run(other), 4U);
  EXPECT_EQ(rows_run(tenant), 4U);
  EXPECT_EQ(rows_run(tenant), 0U);
  Options half = options;
  half.codec = Codec::kFloat16;
  EXPECT_EQ(torch::cached(affine, half).digests(batch(0, 4)).about ==
                torch::cached(affine, options).digests(batch(0, 4)).about,
            false);
}

TEST(Cached, ThreadsShareALayer) {
  Affine affine = frozen();
  std::atomic<int> wrong = 0;
  const auto cached = torch::cached([](const at::Tensor& x) { return x * 3 + 1; }, {},
                                    {.memory = 1_MiB, .chunk = 32, .bypass = BypassMode::kNever});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const at::Tensor x = batch((i * 7 + t * 3) % 90, 8);
        if (!at::equal(cached(x), x * 3 + 1)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  const Stats stats = cached.stats();
  EXPECT_EQ(stats.memo.lookups, 4U * 50U * 8U);
  EXPECT_EQ(stats.memo.hits + stats.memo.misses, stats.memo.lookups);
  EXPECT_LE(cached.cache().stats().bytes, 1_MiB);
}

TEST(Cached, ScriptedModulesTakeAndGiveNests) {
  const at::NoGradGuard no_grad;
  ::torch::jit::Module module("M");
  module.register_parameter("weight", at::full({3}, 2.0), false);
  module.register_attribute("scale", c10::FloatType::get(), 2.0);
  module.define(R"(
def forward(self, x, k: int = 2):
  y = x * self.weight * self.scale * k
  return {"y": y, "sum": y.sum(1)}
)");
  const auto cached = torch::cached(module, {.bypass = BypassMode::kNever});
  const at::Tensor x = batch(0, 4);
  for (int i = 0; i < 2; ++i) {
    const auto answer = c10::impl::toTypedDict<std::string, at::Tensor>(cached(x).toGenericDict());
    expect_same(answer.at("y"), x * 8);
    expect_same(answer.at("sum"), (x * 8).sum(1));
  }
  EXPECT_EQ(cached.stats().memo.hits, 4U);
  cached(x, 2);  // the default, said aloud
  EXPECT_EQ(cached.stats().memo.hits, 8U);
  expect_same(cached(x, 3).toGenericDict().at("y").toTensor(), x * 12);
  module.setattr("scale", 1.0);
  expect_same(cached(x).toGenericDict().at("y").toTensor(), x * 4);
  module.attr("weight").toTensor().fill_(1);
  expect_same(cached(x).toGenericDict().at("y").toTensor(), x * 2);
  EXPECT_EQ(cached.stats().memo.hits, 8U);
}

TEST(Cached, VerifyFindsWhatTheFingerprintCannot) {
  const auto factor = std::make_shared<float>(2);  // nothing that C++ could read
  const auto cached = torch::cached([factor](const at::Tensor& x) { return x * *factor; }, {},
                                    {.verify = 1, .bypass = BypassMode::kNever});
  cached(batch(0, 4));
  cached(batch(0, 4));
  EXPECT_EQ(cached.stats().layer.deviating, 0U);
  *factor = 3;
  cached(batch(0, 4));
  EXPECT_GT(cached.stats().layer.deviating, 0U);
}

}  // namespace
}  // namespace tensorkey::torch
