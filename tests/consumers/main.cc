// A program outside the library: tensors of equal content have one key and one place in a map.
#include <array>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

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

  std::cout << "tensorkey " << TENSORKEY_VERSION << ": " << key.hex() << '\n';
  return EXIT_SUCCESS;
}
