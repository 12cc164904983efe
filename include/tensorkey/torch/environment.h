// What else the bits of an answer depend on, besides weights and inputs: version, device, threads
// and switches of LibTorch, for this thread now. docs/key_format.md lists the fields, which are
// those of the Python package: entries made with equal environments may be shared.
//
//   std::string encoded = tensorkey::torch::environment(x.device()).encoded();
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <dlfcn.h>
#include <sys/utsname.h>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <torch/version.h>

#include <tensorkey/canonical.h>
#include <tensorkey/torch/view.h>

namespace tensorkey::torch {

namespace internal {

inline std::string machine() {
  utsname names{};
  return uname(&names) == 0 ? names.machine : "";
}

// What /proc/cpuinfo calls the first CPU: libraries choose kernels by it. "model name", or where
// there is none (Arm) "CPU implementer" and "CPU part".
inline std::string cpu_model() {
  constexpr std::string_view kBlank = " \t\n\v\f\r";
  std::map<std::string, std::string> values;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto strip = [&](std::string_view part) {
      const std::size_t first = part.find_first_not_of(kBlank);
      if (first == std::string_view::npos) return std::string();
      return std::string(part.substr(first, part.find_last_not_of(kBlank) - first + 1));
    };
    const std::string_view text = line;
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos) continue;
    values.try_emplace(strip(text.substr(0, colon)), strip(text.substr(colon + 1)));
  }
  if (const auto name = values.find("model name"); name != values.end()) return name->second;
  std::string model;
  for (const char* const key : {"CPU implementer", "CPU part"}) {
    const auto found = values.find(key);
    if (found != values.end()) model += (model.empty() ? "" : " ") + found->second;
  }
  return model;
}

// The name of a CUDA device, from the driver: LibTorch tells it only to those who compile with
// CUDA's headers. Empty if the driver cannot be asked.
inline std::string cuda_name(int index) {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (driver == nullptr) return "";
  const auto get = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
  const auto name = reinterpret_cast<int (*)(char*, int, int)>(dlsym(driver, "cuDeviceGetName"));
  char text[256] = "";
  int device = 0;
  const bool known = get != nullptr && name != nullptr && get(&device, index) == 0 &&
                     name(text, sizeof text, device) == 0;
  dlclose(driver);
  return known ? text : "";
}

inline std::string cuda_version() {
  const long version = at::detail::getCUDAHooks().versionCUDART();
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// "torch.float32", as Python writes a dtype.
inline std::string dtype_text(at::ScalarType type) {
  const std::optional<DType> dtype = dtype_of(type);
  return "torch." + (dtype ? std::string(to_string(*dtype)) : std::string(c10::toString(type)));
}

}  // namespace internal

class Environment {
 public:
  // `portable` leaves out capability and model of the CPU and the number of threads: answers are
  // then equal to rounding, not to the bit.
  explicit Environment(c10::Device device, bool portable = false)
      : kind_(device.type()), index_(device.has_index() ? device.index() : 0), portable_(portable) {
    const at::Context& context = at::globalContext();
    threads_ = portable ? 0 : at::get_num_threads();
    const bool on_cpu = kind_ == c10::DeviceType::CPU;
    const auto backend = on_cpu ? at::Float32Backend::MKLDNN : at::Float32Backend::CUDA;
    matmul_ = context.float32Precision(backend, at::Float32Op::MATMUL);
    conv_ = context.float32Precision(backend, at::Float32Op::CONV);
    rnn_ = context.float32Precision(backend, at::Float32Op::RNN);
    autocast_ = at::autocast::is_autocast_enabled(kind_) ? at::autocast::get_autocast_dtype(kind_)
                                                         : at::ScalarType::Undefined;
    default_dtype_ = c10::get_default_dtype_as_scalartype();
    flag(context.deterministicAlgorithms());
    flag(context.userEnabledMkldnn());
    flag(context.userEnabledNNPACK());
    flag(context.userEnabledFlashSDP());
    flag(context.userEnabledMathSDP());
    const volatile double smallest = 5e-324;
    const volatile double one = 1;
    const volatile double product = smallest * one;
    flag(product == 0);  // denormals are flushed, in this thread
    if (on_cpu) return;
    constexpr auto kReduced = at::CuBLASReductionOption::AllowReducedPrecisionWithSplitK;
    flag(context.userEnabledCuDNN());
    flag(context.benchmarkCuDNN());
    flag(context.deterministicCuDNN());
    flag(context.allowFP16ReductionCuBLAS() == kReduced);
    flag(context.allowBF16ReductionCuBLAS() == kReduced);
    flag(context.userEnabledMemEfficientSDP());
    flag(context.userEnabledCuDNNSDP());
  }

  friend bool operator==(const Environment&, const Environment&) = default;

  // The tuple in the canonical encoding.
  [[nodiscard]] std::string encoded() const {
    using namespace canonical;
    const bool on_cpu = kind_ == c10::DeviceType::CPU;
    const auto precision = [](at::Float32Precision value) {
      // The same to the kernels of a CPU: switched back is as never switched.
      return text(value == at::Float32Precision::NONE ? "ieee" : at::precision2str(value));
    };
    const auto flag = [this](unsigned bit) { return boolean((flags_ >> bit & 1U) != 0); };
    static const std::string machine = internal::machine();
    static const std::string capability = at::get_cpu_capability();
    static const std::string model = internal::cpu_model();
    const std::string version = std::to_string(TORCH_VERSION_MAJOR) + "." +
                                std::to_string(TORCH_VERSION_MINOR) + "." +
                                std::to_string(TORCH_VERSION_PATCH);
    std::vector<std::string> items{text(version), text("eager"),
                                   text(c10::DeviceTypeName(kind_, true)), text(machine)};
    if (on_cpu) {
      items.push_back(text(portable_ ? "" : capability));
      items.push_back(text(portable_ ? "" : model));
    } else {
      items.push_back(text(internal::cuda_version()));
      items.push_back(text(internal::cuda_name(index_)));
    }
    items.push_back(integer(threads_));
    for (const at::Float32Precision value : {matmul_, conv_, rnn_}) {
      items.push_back(precision(value));
    }
    items.push_back(flag(0));
    items.push_back(
        text(autocast_ == at::ScalarType::Undefined ? "" : internal::dtype_text(autocast_)));
    items.push_back(text(internal::dtype_text(default_dtype_)));
    for (const unsigned bit : {1U, 2U, 3U, 4U}) items.push_back(flag(bit));
    items.push_back(boolean(true));  // fused encoder layers: Python alone can switch them off
    items.push_back(flag(5));
    for (unsigned bit = 6; bit < bits_; ++bit) items.push_back(flag(bit));
    return tuple(items);
  }

 private:
  void flag(bool value) { flags_ |= (value ? 1U : 0U) << bits_++; }

  c10::DeviceType kind_;
  int index_;
  bool portable_;
  int threads_ = 0;
  at::Float32Precision matmul_{};
  at::Float32Precision conv_{};
  at::Float32Precision rnn_{};
  at::ScalarType autocast_ = at::ScalarType::Undefined;
  at::ScalarType default_dtype_ = at::ScalarType::Undefined;
  unsigned flags_ = 0;
  unsigned bits_ = 0;
};

}  // namespace tensorkey::torch
