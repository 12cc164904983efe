// Small layers for tests: a batch of float rows, and a function from rows to leaves.
#pragma once

#include <tensorkey/layer.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace tensorkey::testing {

struct Batch {
  Batch(std::size_t rows, std::size_t the_width, unsigned seed) : width(the_width) {
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < rows * width; ++i) {
      values.push_back(static_cast<float>(random() % 20001) / 10000.0F - 1.0F);
    }
  }

  // The rows at these places of another.
  Batch(const Batch& other, const std::vector<std::int64_t>& rows) : width(other.width) {
    for (const std::int64_t row : rows) append(other, row);
  }

  void append(const Batch& other, std::int64_t row) {
    const auto begin = other.values.begin() +
                       static_cast<std::ptrdiff_t>(row) * static_cast<std::ptrdiff_t>(width);
    values.insert(values.end(), begin, begin + static_cast<std::ptrdiff_t>(width));
  }

  [[nodiscard]] std::size_t rows() const noexcept { return values.size() / width; }
  [[nodiscard]] const float* row(std::size_t i) const noexcept { return &values[i * width]; }

  std::size_t width;
  std::vector<float> values;
};

struct Leaf {
  std::string path = "out";
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape = {};
  std::vector<std::byte> data = {};
  std::string params = {};
};

template <class T>
Leaf leaf(const std::string& path, const std::vector<std::int64_t>& shape,
          const std::vector<T>& values) {
  Leaf made{.path = path, .dtype = dtype_of<T>(), .shape = shape};
  const auto bytes = std::as_bytes(std::span(values));
  made.data.assign(bytes.begin(), bytes.end());
  return made;
}

using Leaves = std::vector<Leaf>;
using Function = std::function<Leaves(const Batch&)>;

class HostOutput final : public LayerOutput {
 public:
  HostOutput(Leaves leaves, std::string form) : leaves_(std::move(leaves)), form_(std::move(form)) {
    for (const Leaf& leaf : leaves_) {
      views_.push_back({.data = leaf.data.data(),
                        .dtype = leaf.dtype,
                        .shape = leaf.shape,
                        .dtype_params = leaf.params});
    }
  }
  [[nodiscard]] std::span<const TensorView> leaves() const override { return views_; }
  [[nodiscard]] std::string path(std::size_t leaf) const override { return leaves_[leaf].path; }
  [[nodiscard]] std::string form() const override { return form_; }
  [[nodiscard]] double seconds() const override { return 0.001; }

 private:
  Leaves leaves_;
  std::vector<TensorView> views_;
  std::string form_;
};

class Runner final : public LayerRunner {
 public:
  Runner(const Batch& batch, Function function) : batch_(batch), function_(std::move(function)) {}

  void prepare(std::span<const std::int64_t> positions) override {
    prepared.insert(prepared.end(), positions.begin(), positions.end());
  }
  std::unique_ptr<LayerOutput> run(std::span<const std::int64_t> positions) override {
    ++runs;
    sizes.push_back(positions.size());
    Batch part(batch_, {positions.begin(), positions.end()});
    return std::make_unique<HostOutput>(function_(part), form);
  }
  std::vector<Key> input_keys(std::span<const std::int64_t> positions) override {
    std::vector<Key> keys;
    const std::vector<std::int64_t> shape{static_cast<std::int64_t>(batch_.width)};
    for (const std::int64_t row : positions) {
      keys.push_back(key(view(batch_.row(static_cast<std::size_t>(row)), shape)));
    }
    return keys;
  }
  std::vector<std::string> changes() override { return std::exchange(changed, {}); }
  void restore() override { ++restored; }
  std::string random_state() override { return random; }
  void set_random_state(std::string_view state) override { random = state; }

  std::string form = "tensor";
  std::string random = "seed";
  std::vector<std::string> changed;
  std::vector<std::int64_t> prepared;
  std::vector<std::size_t> sizes;
  int runs = 0;
  int restored = 0;

 private:
  const Batch& batch_;
  Function function_;
};

// Three outputs for each row: sums of products, in one order whatever the slot.
inline float product(const float* row, std::size_t width, std::size_t column) {
  float sum = 0;
  for (std::size_t i = 0; i < width; ++i) {
    sum += row[i] * std::sin(static_cast<float>(1 + i * 3 + column));
  }
  return sum;
}

inline constexpr std::size_t kColumns = 3;

inline Leaves out(const std::vector<float>& values, std::size_t rows) {
  return {leaf<float>("out", {static_cast<std::int64_t>(rows), kColumns}, values)};
}

inline Leaves clean(const Batch& x) {
  std::vector<float> values;
  for (std::size_t r = 0; r < x.rows(); ++r) {
    for (std::size_t c = 0; c < kColumns; ++c) values.push_back(product(x.row(r), x.width, c));
  }
  return out(values, x.rows());
}

// As a kernel that takes four rows at once and the last ones alone, in another order of sums.
inline Leaves by_slot(const Batch& x) {
  Leaves leaves = clean(x);
  std::vector<float> values(x.rows() * kColumns);
  std::memcpy(values.data(), leaves[0].data.data(), leaves[0].data.size());
  for (std::size_t r = 3; r < x.rows(); r += 4) {
    for (std::size_t c = 0; c < kColumns; ++c) {
      float& value = values[r * kColumns + c];
      value = std::nextafter(value, 2.0F);
    }
  }
  return out(values, x.rows());
}

// As dynamic quantization: each row is scaled by the largest value of the batch.
inline Leaves by_largest(const Batch& x) {
  float largest = 0;
  for (const float value : x.values) largest = std::max(largest, std::abs(value));
  std::vector<float> values;
  for (std::size_t r = 0; r < x.rows(); ++r) {
    for (std::size_t c = 0; c < kColumns; ++c) {
      values.push_back(std::round(product(x.row(r), x.width, c) / largest * 16) / 16);
    }
  }
  return out(values, x.rows());
}

// Two leaves with rows, and one that is the same for every row.
inline Leaves several(const Batch& x) {
  Leaves leaves = clean(x);
  std::vector<std::int32_t> signs;
  for (std::size_t r = 0; r < x.rows(); ++r) signs.push_back(x.row(r)[0] < 0 ? -1 : 1);
  leaves.push_back(leaf<std::int32_t>("signs", {static_cast<std::int64_t>(x.rows())}, signs));
  leaves.push_back(leaf<double>("table", {2, 2}, {0.5, 1.5, 2.5, 3.5}));
  return leaves;
}

}  // namespace tensorkey::testing
