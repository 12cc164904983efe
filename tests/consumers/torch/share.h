// The other half of python/tests/frontends/test_torch_cpp.py: entries made in one language are read
// in the other. Prints "name value" lines.
//
//   torch_test share digests FILE        what a call of a scripted module is found under
//   torch_test share script FILE DIR     answers rows 0 to 3 through the entries of a directory
//   torch_test share manual DIR          the same for a C++ function under the scope "shared v1"
#pragma once

#include <cstdint>
#include <iostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/ATen.h>
#include <tensorkey/torch.h>
#include <torch/script.h>

namespace share {

inline std::string hex(const void* data, std::size_t size) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < size; ++i) {
    const auto byte = static_cast<const std::uint8_t*>(data)[i];
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

inline void print(std::string_view name, const tensorkey::Digest& digest) {
  std::cout << name << ' ' << hex(digest.data(), digest.size()) << '\n';
}

inline at::Tensor input() { return at::arange(12, at::kFloat).reshape({4, 3}); }

inline void print_run(const tensorkey::torch::Stats& stats, const at::Tensor& output) {
  std::cout << "hits " << stats.memo.hits << "\nmisses " << stats.memo.misses << '\n';
  for (const auto& [reason, count] : stats.uncached) std::cout << "uncached " << reason << '\n';
  const at::Tensor plain = output.contiguous();
  std::cout << "output " << hex(plain.const_data_ptr(), plain.nbytes()) << '\n';
}

inline void digests(const std::string& file) {
  namespace internal = tensorkey::torch::internal;
  const torch::jit::Module module = torch::jit::load(file);
  const internal::ScriptSource source(module);
  const internal::Reading reading = source.read();
  const at::Tensor x = input();
  const internal::CallForm form({c10::IValue(x)}, internal::parameters_of(source.arguments()));
  const tensorkey::torch::Environment environment(x.device());
  print("structure", tensorkey::blake3(std::as_bytes(std::span(reading.structure))));
  std::cout << "environment " << hex(environment.encoded().data(), environment.encoded().size())
            << "\nform " << hex(form.encoded().data(), form.encoded().size()) << "\nkey "
            << tensorkey::torch::key(x).hex() << '\n';
  for (const std::string& name : reading.names) std::cout << "tensor " << name << '\n';
  const auto cached = tensorkey::torch::cached(module, {.scope = "shared v1"});
  const tensorkey::torch::CallDigests found = cached.digests(x);
  print("about", found.about);
  print("weights", found.weights);
}

inline void script(const std::string& file, const std::string& directory) {
  const at::NoGradGuard no_grad;
  const auto cached =
      tensorkey::torch::cached(torch::jit::load(file), {.disk = directory, .scope = "shared v1"});
  const at::Tensor output = cached(input()).toTensor();
  cached.flush();
  print_run(cached.stats(), output);
}

inline void manual(const std::string& directory) {
  const auto cached =
      tensorkey::torch::cached([](const at::Tensor& x) { return x * 2 + 1; }, {},
                               {.disk = directory,
                                .fingerprint = tensorkey::torch::Fingerprint::kManual,
                                .scope = "shared v1",
                                .inputs = {"x"}});
  const at::Tensor output = cached(input());
  cached.flush();
  print_run(cached.stats(), output);
}

inline int main(const std::vector<std::string>& words) {
  if (words.size() == 2 && words[0] == "digests") {
    digests(words[1]);
  } else if (words.size() == 3 && words[0] == "script") {
    script(words[1], words[2]);
  } else if (words.size() == 2 && words[0] == "manual") {
    manual(words[1]);
  } else {
    std::cerr << "torch_test share: expected digests FILE, script FILE DIR or manual DIR\n";
    return 2;
  }
  return 0;
}

}  // namespace share
