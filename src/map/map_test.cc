// TensorKeyMap and TensorKeySet against the standard library's containers of bytes.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <tensorkey/map.h>

namespace tensorkey {
namespace {

using Dims = std::vector<std::int64_t>;

// A tensor that owns its memory, for tests.
struct Tensor {
  std::vector<std::byte> bytes = {};
  Dims dims = {};
  Dims strides = {};  // empty: contiguous
  std::ptrdiff_t offset = 0;
  DType dtype = DType::kUInt8;
  std::string params = {};

  [[nodiscard]] TensorView view() const {
    return {.data = bytes.data() + offset,
            .dtype = dtype,
            .shape = dims,
            .strides = strides,
            .dtype_params = params};
  }
};

Tensor floats(const std::vector<float>& values, Dims dims) {
  Tensor t{.bytes = std::vector<std::byte>(values.size() * sizeof(float)),
           .dims = std::move(dims),
           .dtype = DType::kFloat32};
  if (!values.empty()) std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
  return t;
}

std::vector<std::byte> data_of(const TensorView& view) {
  const auto* const data = static_cast<const std::byte*>(view.data);
  return {data, data + byte_count(view)};
}

TEST(Map, FindsEqualTensorsOnly) {
  TensorKeyMap<int> map;
  const Tensor a = floats({1, 2, 3, 4}, {4});
  const Tensor same = floats({1, 2, 3, 4}, {4});
  const Tensor square = floats({1, 2, 3, 4}, {2, 2});
  Tensor ints = a;
  ints.dtype = DType::kInt32;
  Tensor strided = floats({1, 0, 2, 0, 3, 0, 4, 0}, {4});
  strided.strides = {8};
  Tensor backwards = floats({4, 3, 2, 1}, {4});
  backwards.strides = {-4};
  backwards.offset = 12;

  EXPECT_TRUE(map.try_emplace(a.view(), 7).second);
  EXPECT_FALSE(map.try_emplace(same.view(), 8).second);
  EXPECT_EQ(map.at(same.view()), 7);
  EXPECT_EQ(map.at(strided.view()), 7);
  EXPECT_EQ(map.at(backwards.view()), 7);
  EXPECT_FALSE(map.contains(square.view()));
  EXPECT_FALSE(map.contains(ints.view()));
  EXPECT_EQ(map.find(square.view()), map.end());
  EXPECT_EQ(map.count(strided.view()), 1u);
  try {
    static_cast<void>(map.at(square.view()));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
    EXPECT_STREQ(error.what(), "[at] no entry for this float32 tensor of shape (2, 2)");
  }
}

TEST(Map, EmptyTensorsAndScalarsAreKeys) {
  TensorKeyMap<int> map;
  const std::vector<Dims> shapes{{}, {1}, {0}, {0, 3}, {3, 0}, {1, 1}};
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    map[floats({1.5f}, shapes[i]).view()] = static_cast<int>(i);
  }
  EXPECT_EQ(map.size(), shapes.size());
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    EXPECT_EQ(map.at(floats({1.5f}, shapes[i]).view()), static_cast<int>(i));
  }
  EXPECT_TRUE(map.contains({.data = nullptr, .dtype = DType::kFloat32, .shape = shapes[3]}));
}

TEST(Map, DtypeParametersAndManyDimsCount) {
  TensorKeySet set;
  Tensor time{.bytes = std::vector<std::byte>(8), .dims = {1}, .dtype = DType::kDateTime64};
  time.params = "ns";
  EXPECT_TRUE(set.insert(time.view()).second);
  time.params = "us";
  EXPECT_TRUE(set.insert(time.view()).second);
  EXPECT_FALSE(set.insert(time.view()).second);
  Tensor deep = floats({1}, Dims(100, 1));
  EXPECT_TRUE(set.insert(deep.view()).second);
  EXPECT_TRUE(set.contains(deep.view()));
  EXPECT_EQ(set.begin()->dtype_params, "ns");
}

TEST(Map, KeysAreAlignedSnapshots) {
  TensorKeyMap<char> map;
  Tensor t = floats({1, 2, 3}, {3});
  const auto it = map.try_emplace(t.view(), 'x').first;
  const Tensor before = t;
  t.bytes[0] = std::byte{99};
  EXPECT_FALSE(map.contains(t.view()));
  EXPECT_TRUE(map.contains(before.view()));
  EXPECT_EQ(data_of(it->first), before.bytes);
  EXPECT_EQ(std::bit_cast<std::uintptr_t>(it->first.data) % 16, 0u);
  EXPECT_EQ(it->first.shape.size(), 1u);
  EXPECT_EQ(it->second, 'x');
}

TEST(Map, OverAlignedValuesLieWhereTheyMust) {
  struct alignas(64) Wide {
    int number = 3;
  };
  TensorKeyMap<Wide> map;
  for (int i = 0; i < 20; ++i) {
    const auto it = map.try_emplace(floats({static_cast<float>(i)}, {1}).view()).first;
    EXPECT_EQ(std::bit_cast<std::uintptr_t>(&it->second) % 64, 0u);
    EXPECT_EQ(it->second.number, 3);
  }
}

TEST(Map, CanonicalMergesZerosAndNans) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor plus = floats({0.0f, nan}, {2});
  const Tensor minus = floats({-0.0f, std::copysign(nan, -1.0f)}, {2});
  TensorKeyMap<int> exact;
  exact[plus.view()] = 1;
  EXPECT_TRUE(exact.contains(plus.view()));
  EXPECT_FALSE(exact.contains(minus.view()));
  TensorKeyMap<int> merged(MapOptions{.canonical = true});
  merged[minus.view()] = 1;
  merged[plus.view()] = 2;
  EXPECT_EQ(merged.size(), 1u);
  EXPECT_TRUE(merged.canonical());
  EXPECT_EQ(merged.at(minus.view()), 2);
  EXPECT_TRUE(exact.contains(merged.begin()->first)) << "the snapshot is canonical as well";
}

TEST(Map, FirstKeyAndPlaceStayWhenAValueIsReplaced) {
  TensorKeyMap<std::string> map;
  const Tensor a = floats({1}, {1}), b = floats({2}, {1}), c = floats({3}, {1});
  map.insert_or_assign(a.view(), "a");
  map.insert_or_assign(b.view(), "b");
  map.emplace(c.view(), "c");
  const auto* const first = map.begin()->first.data;
  EXPECT_FALSE(map.insert_or_assign(a.view(), "A").second);
  EXPECT_EQ(map.begin()->first.data, first);
  std::string order;
  for (const auto& [key, value] : map) order += value;
  EXPECT_EQ(order, "Abc");
  EXPECT_EQ(map.erase(b.view()), 1u);
  EXPECT_EQ(map.erase(b.view()), 0u);
  map[b.view()] = "b";
  order.clear();
  for (const auto& [key, value] : map) order += value;
  EXPECT_EQ(order, "Acb");
}

TEST(Map, ReferencesSurviveGrowth) {
  TensorKeyMap<int> map;
  const Tensor a = floats({-1}, {1});
  int& value = map[a.view()];
  const auto it = map.find(a.view());
  for (int i = 0; i < 1000; ++i) map[floats({static_cast<float>(i)}, {1}).view()] = i;
  value = 5;
  EXPECT_EQ(map.at(a.view()), 5);
  EXPECT_EQ(it->second, 5);
}

TEST(Map, IsAContainer) {
  static_assert(std::forward_iterator<TensorKeyMap<int>::iterator>);
  static_assert(std::forward_iterator<TensorKeyMap<int>::const_iterator>);
  static_assert(std::forward_iterator<TensorKeySet::iterator>);
  static_assert(std::is_nothrow_move_constructible_v<TensorKeyMap<int>>);
  static_assert(std::is_nothrow_default_constructible_v<TensorKeySet>);
  static_assert(
      !std::is_assignable_v<decltype(*std::declval<TensorKeySet::iterator>()), TensorView>);
  const Tensor a = floats({1}, {1}), b = floats({2}, {1});
  TensorKeyMap<int> map{{a.view(), 1}, {b.view(), 2}, {a.view(), 3}};
  EXPECT_EQ(map.size(), 2u);
  EXPECT_EQ(map.at(a.view()), 1);
  TensorKeyMap<int> copy = map;
  EXPECT_EQ(copy, map);
  copy[a.view()] = 9;
  EXPECT_NE(copy, map);
  EXPECT_EQ(map.at(a.view()), 1);
  TensorKeyMap<int> moved = std::move(copy);
  EXPECT_EQ(moved.at(a.view()), 9);
  copy = map;  // a moved-from map is empty and usable
  EXPECT_EQ(copy, map);
  swap(copy, moved);
  EXPECT_EQ(copy.at(a.view()), 9);
  EXPECT_EQ(erase_if(copy, [](const auto& item) { return item.second == 9; }), 1u);
  EXPECT_EQ(copy.size(), 1u);
  TensorKeyMap<int>::const_iterator position = copy.find(b.view());
  EXPECT_EQ(copy.erase(position), copy.end());
  EXPECT_TRUE(copy.empty());
  moved.clear();
  EXPECT_EQ(moved, copy);
  EXPECT_EQ(moved.begin(), moved.end());

  TensorKeyMap<std::unique_ptr<int>> owners;
  auto owner = std::make_unique<int>(4);
  owners.try_emplace(a.view(), std::move(owner));
  auto second = std::make_unique<int>(5);
  owners.try_emplace(a.view(), std::move(second));
  EXPECT_NE(second, nullptr) << "try_emplace leaves its arguments alone if the key is present";
  owners.insert_or_assign(a.view(), std::move(second));
  EXPECT_EQ(*owners.at(a.view()), 5);

  TensorKeySet set{a.view(), b.view(), a.view()};
  TensorKeySet other{b.view(), a.view()};
  EXPECT_EQ(set.size(), 2u);
  EXPECT_EQ(set, other);
  other.erase(a.view());
  EXPECT_NE(set, other);
  other = set;
  EXPECT_EQ(set, other);
}

TEST(Map, BadViewsAreErrorsAndChangeNothing) {
  TensorKeyMap<int> map;
  const Dims negative{-1};
  const TensorView bad{.data = &map, .dtype = DType::kFloat32, .shape = negative};
  EXPECT_THROW(map[bad] = 1, Error);
  EXPECT_THROW(static_cast<void>(map.contains(bad)), Error);
  EXPECT_TRUE(map.empty());
}

// Tensors above the size that is gathered: walked in tiles, compared in tiles.
TEST(Map, LargeStridedTensors) {
  constexpr std::int64_t kRows = 300, kColumns = 400;
  std::vector<float> values(kRows * kColumns), transposed(kRows * kColumns);
  std::mt19937 random(3);
  for (std::int64_t r = 0; r < kRows; ++r) {
    for (std::int64_t c = 0; c < kColumns; ++c) {
      const auto value = static_cast<float>(random());
      values[static_cast<std::size_t>(r * kColumns + c)] = value;
      transposed[static_cast<std::size_t>(c * kRows + r)] = value;
    }
  }
  const Tensor plain = floats(values, {kRows, kColumns});
  Tensor turned = floats(transposed, {kRows, kColumns});
  turned.strides = {4, kRows * 4};
  TensorKeyMap<int> map;
  map[turned.view()] = 1;
  EXPECT_EQ(map.at(plain.view()), 1);
  map[plain.view()] = 2;
  EXPECT_EQ(map.at(turned.view()), 2);
  turned.bytes[turned.bytes.size() - 1] ^= std::byte{1};
  EXPECT_FALSE(map.contains(turned.view()));
}

TEST(MapThreads, ManyReaders) {
  TensorKeyMap<int> map;
  for (int i = 0; i < 200; ++i) map[floats({static_cast<float>(i), 0}, {2}).view()] = i;
  const TensorKeyMap<int>& shared = map;
  std::vector<std::thread> readers;
  for (int t = 0; t < 3; ++t) {
    readers.emplace_back([&shared] {
      for (int i = 0; i < 400; ++i) {
        Tensor spread = floats({static_cast<float>(i), 5, 0, 5}, {2});
        spread.strides = {8};
        EXPECT_EQ(shared.contains(spread.view()), i < 200);
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
}

// Random operations against a std::map from (dtype, shape, logical bytes). hash_mask forces the
// collisions that XXH3 would never show.
class MapModel : public testing::TestWithParam<std::uint64_t> {};

TEST_P(MapModel, AgreesWithAStandardMap) {
  using ModelKey = std::tuple<DType, Dims, std::vector<std::byte>>;
  std::map<ModelKey, int> model;
  std::vector<ModelKey> order;
  TensorKeyMap<int> map(internal::TableOptions{.hash_mask = GetParam()});
  std::mt19937 random(17);
  const auto draw = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const std::array<DType, 4> dtypes{DType::kUInt8, DType::kInt16, DType::kFloat32,
                                    DType::kComplex128};
  const auto random_tensor = [&] {
    Tensor t{.dtype = dtypes[static_cast<std::size_t>(draw(4))]};
    std::int64_t count = 1;
    for (int d = draw(3); d >= 0; --d) {
      t.dims.push_back(draw(4));
      count *= t.dims.back();
    }
    const std::size_t item = item_size(t.dtype);
    t.bytes.assign(static_cast<std::size_t>(count) * item, std::byte{0});
    if (!t.bytes.empty() && draw(3) != 0) t.bytes[t.bytes.size() / 2] = std::byte(draw(4));
    return t;
  };
  for (int step = 0; step < 20000; ++step) {
    Tensor t = random_tensor();
    const ModelKey key{t.dtype, t.dims, t.bytes};
    Tensor spread;  // the same tensor with gaps between its elements
    if (draw(2) == 0) {
      const std::size_t item = item_size(t.dtype);
      spread = t;
      spread.bytes.assign(t.bytes.size() * 3, std::byte{0xAA});
      for (std::size_t i = 0; i < t.bytes.size() / item; ++i) {
        std::memcpy(&spread.bytes[i * item * 3], &t.bytes[i * item], item);
      }
      std::int64_t stride = static_cast<std::int64_t>(item) * 3;
      spread.strides.resize(t.dims.size());
      for (std::size_t d = t.dims.size(); d > 0;) {
        --d;
        spread.strides[d] = stride;
        stride *= t.dims[d];
      }
    }
    const TensorView view = spread.dims.empty() ? t.view() : spread.view();
    const bool present = model.contains(key);
    switch (draw(6)) {
      case 0:
        ASSERT_EQ(map.try_emplace(view, step).second, !present);
        if (model.try_emplace(key, step).second) order.push_back(key);
        break;
      case 1:
        ASSERT_EQ(map.insert_or_assign(view, step).second, !present);
        if (model.insert_or_assign(key, step).second) order.push_back(key);
        break;
      case 2:
      case 3:
        ASSERT_EQ(map.erase(view), model.erase(key));
        std::erase(order, key);
        break;
      case 4: {
        const auto it = map.find(view);
        ASSERT_EQ(it != map.end(), present);
        if (present) {
          ASSERT_EQ(it->second, model.at(key));
          if (draw(8) == 0) {
            map.erase(it);
            model.erase(key);
            std::erase(order, key);
          }
        }
        break;
      }
      default:
        if (draw(2000) == 0) {
          map.clear();
          model.clear();
          order.clear();
        }
        if (draw(200) == 0) map.reserve(static_cast<std::size_t>(draw(400)));
    }
    ASSERT_EQ(map.size(), model.size());
    if (step % 500 != 0) continue;
    const TensorKeyMap<int> copy = map;
    ASSERT_EQ(copy, map);
    auto it = copy.begin();
    for (const ModelKey& expected : order) {
      ASSERT_NE(it, copy.end());
      ASSERT_EQ((ModelKey{it->first.dtype, Dims(it->first.shape.begin(), it->first.shape.end()),
                          data_of(it->first)}),
                expected);
      ASSERT_EQ(it->second, model.at(expected));
      ++it;
    }
    ASSERT_EQ(it, copy.end());
  }
}

INSTANTIATE_TEST_SUITE_P(HashMask, MapModel,
                         testing::Values(~std::uint64_t{0}, 0, 3, std::uint64_t{1} << 63));

}  // namespace
}  // namespace tensorkey
