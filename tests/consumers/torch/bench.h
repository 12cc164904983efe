// torch_test bench: what all hits cost, beside indexing a precomputed table. Ratios in one run.
#pragma once

#include <algorithm>
#include <chrono>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <tensorkey/torch.h>
#include <torch/torch.h>

namespace bench {

// Microseconds of a call: the median of many short runs, taken in turn with the others'.
template <class... Calls>
std::vector<double> microseconds(Calls&&... calls) {
  constexpr int kRounds = 301;
  constexpr int kCalls = 20;
  std::vector<std::vector<double>> times(sizeof...(calls));
  for (int round = 0; round < kRounds; ++round) {
    std::size_t i = 0;
    const auto measure = [&](auto& call) {
      const auto start = std::chrono::steady_clock::now();
      for (int n = 0; n < kCalls; ++n) call();
      const std::chrono::duration<double, std::micro> took =
          std::chrono::steady_clock::now() - start;
      times[i++].push_back(took.count() / kCalls);
    };
    (measure(calls), ...);
  }
  std::vector<double> medians;
  for (std::vector<double>& each : times) {
    std::nth_element(each.begin(), each.begin() + kRounds / 2, each.end());
    medians.push_back(each[kRounds / 2]);
  }
  return medians;
}

struct EncoderImpl : torch::nn::Module {
  EncoderImpl() {
    embed = register_module("embed", torch::nn::Embedding(1000, 64));
    linear = register_module("linear", torch::nn::Linear(64, 384));
    for (at::Tensor& each : parameters()) each.requires_grad_(false);
  }
  at::Tensor forward(const at::Tensor& ids) { return linear(embed(ids).mean(1)); }
  torch::nn::Embedding embed{nullptr};
  torch::nn::Linear linear{nullptr};
};

inline int main() {
  using tensorkey::torch::Fingerprint;
  constexpr std::int64_t kRows = 64;
  const at::NoGradGuard no_grad;
  const auto encoder = std::make_shared<EncoderImpl>();
  const auto make = [&](Fingerprint fingerprint) {
    return tensorkey::torch::cached(
        encoder, {.fingerprint = fingerprint, .bypass = tensorkey::BypassMode::kNever});
  };
  const auto guard = make(Fingerprint::kGuard);
  const auto automatic = make(Fingerprint::kAuto);
  const auto strict = make(Fingerprint::kStrict);
  const auto manual = make(Fingerprint::kManual);
  const at::Tensor ids = at::randint(0, 1000, {kRows, 32}, at::kLong);
  for (int i = 0; i < 16; ++i) {
    const at::Tensor warm = at::randint(0, 1000, {kRows, 32}, at::kLong);
    for (const auto* each : {&guard, &automatic, &strict, &manual}) (*each)(warm);
  }
  const at::Tensor table = guard(ids).clone();
  bool equal = true;
  for (const auto* each : {&guard, &automatic, &strict, &manual}) {
    equal = equal && at::equal((*each)(ids), table);
  }
  if (!equal || guard.stats().layer.verdict->chunk != 32) {
    std::cerr << "the answers are wrong\n";
    return 1;
  }
  const at::Tensor rows = at::arange(kRows);

  at::Tensor out;
  const std::vector<double> times =
      microseconds([&] { out = table.index_select(0, rows); }, [&] { out = guard(ids); },
                   [&] { out = automatic(ids); }, [&] { out = strict(ids); },
                   [&] { out = manual(ids); }, [&] { out = encoder->forward(ids); });
  const char* const names[] = {"index_select", "guard",  "auto",
                               "strict",       "manual", "the layer itself"};
  std::cout << "all hits: 64 rows of 32 int64 -> 384 floats, 3 parameters, "
            << at::get_num_threads() << " threads; auto checks every "
            << automatic.stats().strict_interval << " calls\n"
            << std::fixed << std::setprecision(2);
  for (std::size_t i = 0; i < times.size(); ++i) {
    std::cout << "  " << std::setw(16) << std::left << names[i] << std::right << std::setw(9)
              << times[i] << " us  " << times[i] / times[0] << "x\n";
  }
  return 0;
}

}  // namespace bench
