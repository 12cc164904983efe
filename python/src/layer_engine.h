// What the parts of the layer engine's binding share: the engine with the counters that only a
// frontend has, and a call as it comes from Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <tensorkey/layer.h>

#include "base/fork.h"
#include "options.h"

namespace tensorkey::python {

using Counts = std::map<std::string, std::uint64_t>;

// What only a frontend can count. Thread-safe.
class Counters {
 public:
  struct Snapshot {
    Counts reasons;  // kinds beyond the first 64 are counted as "others"
    Counts errors;   // likewise
    std::uint64_t host_copy_rows = 0;
    std::uint64_t host_copy_bytes = 0;
  };

  void bypassed(const std::string& reason);
  void failed(const std::string& kind);
  void copied(std::uint64_t rows, std::uint64_t bytes);
  [[nodiscard]] Snapshot read() const;
  void clear();

 private:
  Snapshot counts_;
  mutable internal::ForkMutex mutex_{};
};

struct Engine {
  Engine(std::shared_ptr<ActivationCache> cache, const LayerOptions& options)
      : core(std::move(cache), options), stores(core.cache().has_store()) {}

  LayerEngine core;
  bool stores;  // a tier below memory: calls may wait for a disk
  Counters counters;
};

// The rows of a call, borrowed from Python objects.
class Rows {
 public:
  // Either tensors with their paths or ids: None, or a list of str, bytes and int.
  // Throws LayerBypassed for a tensor that has no key.
  Rows(const nanobind::sequence& tensors, const nanobind::sequence& paths, nanobind::handle ids);

  void fill(LayerCall& call);
  [[nodiscard]] std::size_t bytes() const noexcept { return members_.bytes(); }

 private:
  void add_ids(nanobind::handle ids);
  void add(OwnId::Type type, std::string_view text);

  BorrowedMembers members_;
  std::vector<OwnId::Type> types_;
  std::vector<std::string> texts_;
  std::vector<OwnId> ids_;
};

struct CallParts {
  const nanobind::sequence& tensors;
  const nanobind::sequence& paths;
  nanobind::handle ids;
  const nanobind::bytes& about;
  const nanobind::bytes& weights;
  nanobind::handle secret;
};

// Borrows all of it. Throws kInvalidArgument for digests of another size.
[[nodiscard]] LayerCall call_of(Rows& rows, const CallParts& parts);
[[nodiscard]] Digest digest_of(const nanobind::bytes& bytes, const char* what);

// LayerTask, and the methods of the engine that make one.
void init_layer_task(nanobind::module_& module, nanobind::class_<Engine>& engine);

}  // namespace tensorkey::python
