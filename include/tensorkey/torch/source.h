// What the answers of a layer depend on besides its input, as far as C++ can read it: a Source
// reads a torch::nn module or a callable into its tensors and a text of all else (script.h:
// TorchScript).
//
// C++ cannot see the code of a function or the plain members of a class. What stands for them is
// the build: the GNU build id (or the contents) of the program or library that defines the class or
// the function, so that entries of another build are not found. Names and training flags of
// submodules, what their pretty_print() says, and names of tensors are read. Stats name what is
// assumed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <tensorkey/canonical.h>
#include <tensorkey/digest.h>

namespace tensorkey::torch::internal {

// A layer, read once.
struct Reading {
  std::string structure;           // all but the contents of the tensors, canonically encoded
  std::vector<std::string> names;  // of the tensors
  std::vector<at::Tensor> tensors;
  std::vector<std::string> assumptions;
};

class Source {
 public:
  virtual ~Source() = default;
  // The layer as it is now. Threads may read at once.
  [[nodiscard]] virtual Reading read() const = 0;
  // Names of the arguments, for those that the caller did not name.
  [[nodiscard]] virtual std::vector<std::string> parameters() const { return {}; }
  // Notes what can change without a tensor's version, and whether it is as it was noted: some 10 ns
  // a module. Not thread-safe.
  virtual void note() {}
  [[nodiscard]] virtual bool unchanged() const { return true; }

 protected:
  Source() = default;
  Source(const Source&) = default;
  Source& operator=(const Source&) = default;
};

inline std::string digest_bytes(std::string_view content) {
  const Digest digest = blake3(std::as_bytes(std::span(content)));
  return {digest.begin(), digest.end()};
}

// The GNU build id in the notes of a loaded object; empty if it has none.
inline std::string build_id(const link_map* object) {
  struct Search {
    const link_map* object;
    std::string found;
  } search{object, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto* const wanted = static_cast<Search*>(data);
        if (info->dlpi_addr != wanted->object->l_addr) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& header = info->dlpi_phdr[i];
          if (header.p_type != PT_NOTE) continue;
          const auto* at = reinterpret_cast<const char*>(info->dlpi_addr + header.p_vaddr);
          const char* const end = at + header.p_memsz;
          while (end - at > static_cast<std::ptrdiff_t>(sizeof(ElfW(Nhdr)))) {
            ElfW(Nhdr) note;
            std::memcpy(&note, at, sizeof note);
            const char* const name = at + sizeof note;
            const char* const body = name + (note.n_namesz + 3U) / 4 * 4;
            if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
                std::memcmp(name, "GNU", 4) == 0) {
              wanted->found.assign(body, note.n_descsz);
              return 1;
            }
            at = body + (note.n_descsz + 3U) / 4 * 4;
          }
        }
        return 1;
      },
      &search);
  return search.found;
}

// Which build of which program or library holds this address; its digest where it has no id. Empty
// for LibTorch itself, whose version is in the environment.
inline std::string build_of(const void* address) {
  static std::mutex mutex;
  static std::map<const link_map*, std::string> known;
  const auto object_of = [](const void* at) -> std::pair<const link_map*, std::string> {
    Dl_info info{};
    link_map* object = nullptr;
    if (dladdr1(at, &info, reinterpret_cast<void**>(&object), RTLD_DL_LINKMAP) == 0) return {};
    return {object, object->l_name};
  };
  const auto [object, path] = object_of(address);
  if (object == nullptr) return "unknown";
  const std::lock_guard lock(mutex);
  const auto [found, fresh] = known.try_emplace(object);
  if (fresh && object != object_of(reinterpret_cast<const void*>(&at::globalContext)).first) {
    found->second = build_id(object);
    if (found->second.empty()) {
      std::ifstream file(path.empty() ? "/proc/self/exe" : path, std::ios::binary);
      found->second = digest_bytes(std::string(std::istreambuf_iterator<char>(file), {}));
    }
  }
  return found->second;
}

class ModuleSource final : public Source {
 public:
  explicit ModuleSource(std::shared_ptr<::torch::nn::Module> module) : module_(std::move(module)) {}

  [[nodiscard]] Reading read() const override {
    using namespace canonical;
    Reading reading;
    std::vector<std::string> items;
    for (const auto& entry : module_->named_modules("layer")) {
      const ::torch::nn::Module& module = *entry.value();
      std::ostringstream shown;
      if (module.children().empty()) module.pretty_print(shown);
      const std::type_info& type = typeid(module);
      items.push_back(tuple({text(entry.key()), text(type.name()), bytes(build_of(&type)),
                             boolean(module.is_training()), text(shown.str())}));
      const auto add = [&](const auto& tensors, std::string_view kind) {
        for (const auto& tensor : tensors) {
          if (!tensor.value().defined()) continue;
          std::string name = entry.key() + '.' + tensor.key();
          items.push_back(canonical::name(kind, name));
          reading.names.push_back(std::move(name));
          reading.tensors.push_back(tensor.value());
        }
      };
      add(module.named_parameters(false), "parameter");
      add(module.named_buffers(false), "buffer");
    }
    reading.structure = tuple({text("torch::nn::Module"), tuple(items)});
    reading.assumptions = {"the code of " + module_->name() +
                           ": known by the build of the program; plain members of its class: not "
                           "read, change scope when they change"};
    return reading;
  }

  // Training flags; a replaced submodule is seen by the next strict check.
  void note() override {
    flags_.clear();
    for (const auto& module : module_->modules()) {
      flags_.emplace_back(module, module->is_training());
    }
  }
  [[nodiscard]] bool unchanged() const override {
    return std::all_of(flags_.begin(), flags_.end(),
                       [](const auto& flag) { return flag.first->is_training() == flag.second; });
  }

 private:
  std::shared_ptr<::torch::nn::Module> module_;
  std::vector<std::pair<std::shared_ptr<::torch::nn::Module>, bool>> flags_;  // as noted
};

// A function, with the tensors that the caller says it depends on.
class FunctionSource final : public Source {
 public:
  FunctionSource(const std::type_info& type, const void* place, std::vector<at::Tensor> parameters)
      : name_(type.name()), build_(build_of(place)), parameters_(std::move(parameters)) {}

  [[nodiscard]] Reading read() const override {
    using namespace canonical;
    Reading reading;
    for (const at::Tensor& tensor : parameters_) {
      reading.names.push_back("parameters[" + std::to_string(reading.names.size()) + "]");
      reading.tensors.push_back(tensor);
    }
    reading.structure = tuple({text("function"), text(name_), bytes(build_),
                               integer(static_cast<std::int64_t>(reading.tensors.size()))});
    reading.assumptions = {
        "the code of the function: known by the build of the program; what it captures besides "
        "`parameters`: not read, change scope when it changes"};
    return reading;
  }

 private:
  std::string name_;
  std::string build_;
  std::vector<at::Tensor> parameters_;
};

// The address that tells which build a callable belongs to.
template <class F>
const void* place_of(const F& function) {
  if constexpr (std::is_pointer_v<F>) {
    return reinterpret_cast<const void*>(function);
  } else if constexpr (requires { function.target_type(); }) {
    return &function.target_type();
  } else {
    return &typeid(F);
  }
}

}  // namespace tensorkey::torch::internal
