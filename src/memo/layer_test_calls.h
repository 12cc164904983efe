// Calls of a LayerEngine for tests, and what their answers must be.
#pragma once

#include <tensorkey/layer.h>

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/error.h>

#include "memo/layer_impl.h"
#include "memo/layer_test_layers.h"

namespace tensorkey::testing {

inline std::shared_ptr<ActivationCache> memory(std::size_t bytes = 4 << 20) {
  return std::make_shared<ActivationCache>(CacheOptions{.memory = bytes});
}

// A directory of its own, that goes with it.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "tensorkey-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  // As another process would open it.
  [[nodiscard]] std::shared_ptr<ActivationCache> cache() const {
    return std::make_shared<ActivationCache>(
        CacheOptions{.memory = 4 << 20, .disk = path_ + "/store", .disk_limit = 16 << 20});
  }

 private:
  std::string path_;
};

// A batch as the only input of a layer.
class Members {
 public:
  explicit Members(const Batch& batch)
      : shape_{static_cast<std::int64_t>(batch.rows()), static_cast<std::int64_t>(batch.width)},
        member_{"x", view(batch.values.data(), shape_)} {}
  Members(const Members&) = delete;
  Members& operator=(const Members&) = delete;
  [[nodiscard]] std::span<const TupleMember> span() const noexcept { return {&member_, 1}; }

 private:
  std::vector<std::int64_t> shape_;
  TupleMember member_;
};

struct Answered {
  std::uint64_t hits = 0;
  std::uint64_t rows_run = 0;
  int runs = 0;
  std::vector<LeafShape> leaves = {};
  std::string form = {};
  std::vector<std::byte> bytes = {};  // of all leaves
  Deviation deviation = {};
};

inline std::vector<std::byte> assemble(const LayerAnswer& answer) {
  std::vector<std::size_t> sizes;
  std::size_t total = 0;
  for (const LeafShape& leaf : answer.leaves()) {
    std::size_t size = item_size(leaf.dtype);
    for (const std::int64_t dim : leaf.shape) size *= static_cast<std::size_t>(dim);
    sizes.push_back(size);
    total += size;
  }
  std::vector<std::byte> bytes(total);
  std::vector<std::span<std::byte>> outs;
  std::size_t at = 0;
  for (const std::size_t size : sizes) {
    outs.push_back(std::span(bytes).subspan(at, size));
    at += size;
  }
  answer.assemble(outs);
  return bytes;
}

// Answers by content unless `call` has ids.
inline Answered ask(LayerEngine& engine, Runner& runner, const Batch& batch, LayerCall call = {}) {
  const Members members(batch);
  if (call.ids.empty()) call.members = members.span();
  const int before = runner.runs;
  LayerAnswer answer = engine.answer(call, runner);
  Answered got{.hits = answer.hits(),
               .rows_run = answer.rows_run(),
               .runs = runner.runs - before,
               .leaves = {answer.leaves().begin(), answer.leaves().end()},
               .form = std::string(answer.form()),
               .bytes = assemble(answer),
               .deviation = answer.deviation()};
  answer.finish(0.001);
  return got;
}

inline Answered ask(LayerEngine& engine, const Batch& batch, const Function& function,
                    const LayerCall& call = {}) {
  Runner runner(batch, function);
  return ask(engine, runner, batch, call);
}

// The leaves of a batch as a layer gives them that runs in chunks of exactly `chunk` rows, each row
// at the slot where it stands in the batch, the last chunk padded.
inline std::vector<std::byte> in_chunks(const Function& function, const Batch& batch,
                                        std::size_t chunk) {
  std::vector<std::vector<std::byte>> leaves;
  for (std::size_t first = 0; first < batch.rows(); first += chunk) {
    const std::size_t count = std::min(chunk, batch.rows() - first);
    std::vector<std::int64_t> places;
    for (std::size_t i = 0; i < chunk; ++i) {
      places.push_back(static_cast<std::int64_t>(first + std::min(i, count - 1)));
    }
    const Leaves part = function(Batch(batch, places));
    leaves.resize(part.size());
    for (std::size_t k = 0; k < part.size(); ++k) {
      const bool by_row = !part[k].shape.empty() &&
                          part[k].shape[0] == static_cast<std::int64_t>(chunk) &&
                          part[k].path != "table";
      const auto& data = part[k].data;
      if (!by_row) {
        leaves[k] = data;
      } else {
        const auto bytes = static_cast<std::ptrdiff_t>(data.size() / chunk * count);
        leaves[k].insert(leaves[k].end(), data.begin(), data.begin() + bytes);
      }
    }
  }
  std::vector<std::byte> all;
  for (const auto& leaf : leaves) all.insert(all.end(), leaf.begin(), leaf.end());
  return all;
}

inline const Batch& data() {
  static const Batch batch(400, 7, 5);
  return batch;
}

// Some of it.
inline Batch rows(std::size_t first, std::size_t count) {
  std::vector<std::int64_t> places;
  for (std::size_t i = 0; i < count; ++i) places.push_back(static_cast<std::int64_t>(first + i));
  return {data(), places};
}

// Why a call runs without the cache; empty if it does not.
template <class Call>
std::string bypassed(const Call& call) {
  try {
    call();
  } catch (const LayerBypassed& reason) {
    return reason.what();
  }
  return "";
}

// The text of the error that a call throws; empty if it throws none.
template <class Call>
std::string error(ErrorCode code, const Call& call) {
  try {
    call();
  } catch (const Error& failure) {
    EXPECT_EQ(failure.code(), code);
    return failure.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace tensorkey::testing
