// A program outside the library: tensors of equal content have one key and one place in a map.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include <tensorkey/tensorkey.h>

int main() {
  const std::array<float, 4> x = {1, 2, 3, 4};
  const std::array<float, 4> same = x;
  const std::array<std::int64_t, 2> square = {2, 2};
  const std::array<std::int64_t, 1> flat = {4};

  const tensorkey::Key key = tensorkey::key(tensorkey::view(x.data(), square));
  if (key != tensorkey::key(tensorkey::view(same.data(), square))) return EXIT_FAILURE;
  if (key == tensorkey::key(tensorkey::view(x.data(), flat))) return EXIT_FAILURE;

  tensorkey::TensorKeyMap<std::string> seen;
  seen.insert_or_assign(tensorkey::view(x.data(), square), "cat");
  if (seen.at(tensorkey::view(same.data(), square)) != "cat") return EXIT_FAILURE;

  // Through the cache and the bytes that leave the process, compressed.
  const std::array<float, 256> zeros{};
  const std::array<std::int64_t, 1> shape = {256};
  std::vector<std::byte> stored;
  const tensorkey::Codec codec =
      tensorkey::encode(tensorkey::Codec::kLossless, tensorkey::DType::kFloat32,
                        std::as_bytes(std::span(zeros)), stored);
  const tensorkey::TensorParts tensor{
      .dtype = tensorkey::DType::kFloat32, .shape = shape, .codec = codec, .data = stored};
  tensorkey::ActivationCache cache;
  cache.insert({.key = key, .seconds = 0.1, .tensors = {&tensor, 1}});
  const tensorkey::EntryPtr found = cache.find(key);
  if (!found) return EXIT_FAILURE;
  const tensorkey::EntryPtr read = tensorkey::decode_entry(tensorkey::encode_entry(*found));
  std::array<float, 256> values{};
  values.fill(1);
  tensorkey::decode(read->tensor(0), std::as_writable_bytes(std::span(values)));
  if (values != zeros) return EXIT_FAILURE;

  std::cout << "tensorkey " << TENSORKEY_VERSION << ": " << key.hex() << '\n';
  return EXIT_SUCCESS;
}
