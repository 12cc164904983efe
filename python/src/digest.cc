// Digests of plain buffers, and what tests and benchmarks need of them.
#include <tensorkey/digest.h>
#include <tensorkey/fingerprint.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <tensorkey/error.h>

#include "digest/cpu.h"
#include "digest/xxh3.h"
#include "module.h"
#include "options.h"
#include "view/walk.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

std::optional<Digest> digest_key(const std::optional<nb::bytes>& key, std::string_view where) {
  if (!key) return std::nullopt;
  if (key->size() != 32) {
    throw Error(ErrorCode::kInvalidArgument, "[" + std::string(where) + "] the key has " +
                                                 std::to_string(key->size()) +
                                                 " bytes; expected exactly 32");
  }
  Digest digest;
  std::memcpy(digest.data(), key->c_str(), digest.size());
  return digest;
}

// The elements of a tensor that lies in one piece.
std::span<const std::byte> contiguous_bytes(const Borrowed& tensor, std::string_view where) {
  const std::size_t bytes = checked_bytes(tensor.view(), where);
  if (!internal::is_plain(tensor.view(), false)) {
    throw Error(ErrorCode::kInvalidArgument,
                "[" + std::string(where) + "] expected a C-contiguous buffer");
  }
  return {static_cast<const std::byte*>(tensor.view().data), bytes};
}

nb::bytes blake3_of(nb::handle data, const std::optional<nb::bytes>& key, unsigned threads) {
  const auto digest_of_key = digest_key(key, "blake3");
  const Borrowed tensor(data.ptr());
  const auto bytes = contiguous_bytes(tensor, "blake3");
  Digest digest;
  {
    const MaybeReleaseGil release(bytes.size());
    digest = blake3(bytes, {.key = digest_of_key ? &*digest_of_key : nullptr, .threads = threads});
  }
  return nb::bytes(digest.data(), digest.size());
}

nb::bytes blake3_rows_of(nb::handle rows, const std::optional<nb::bytes>& key, unsigned threads) {
  const auto digest_of_key = digest_key(key, "blake3_rows");
  const Borrowed tensor(rows.ptr());
  const auto bytes = contiguous_bytes(tensor, "blake3_rows");
  if (tensor.view().shape.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "[blake3_rows] expected at least one dim");
  }
  std::vector<Digest> digests(static_cast<std::size_t>(tensor.view().shape[0]));
  const std::size_t row_bytes = digests.empty() ? 0 : bytes.size() / digests.size();
  {
    const MaybeReleaseGil release(bytes.size());
    blake3_rows({.data = bytes.data(),
                 .count = digests.size(),
                 .bytes = row_bytes,
                 .stride = static_cast<std::ptrdiff_t>(row_bytes)},
                digests, {.key = digest_of_key ? &*digest_of_key : nullptr, .threads = threads});
  }
  return nb::bytes(digests.data(), digests.size() * sizeof(Digest));
}

nb::bytes change_digest_of(const nb::sequence& tensors) {
  BorrowedMembers borrowed;
  for (const nb::handle tensor : tensors) borrowed.add({}, tensor.ptr());
  std::vector<TensorView> views;
  for (const TupleMember& member : borrowed.members()) views.push_back(member.view);
  std::array<std::uint8_t, 16> digest;
  {
    const MaybeReleaseGil release(borrowed.bytes());
    digest = change_digest(views);
  }
  return nb::bytes(digest.data(), digest.size());
}

void force_target_named(const std::optional<std::string>& name) {
  if (!name) return internal::force_target(std::nullopt);
  for (const internal::Target target : internal::available_targets()) {
    if (internal::target_name(target) == *name) return internal::force_target(target);
  }
  throw Error(ErrorCode::kInvalidArgument,
              "[force_digest_target] this CPU has no target \"" + *name + "\"");
}

std::vector<std::string> target_names() {
  std::vector<std::string> names;
  for (const internal::Target target : internal::available_targets()) {
    names.emplace_back(internal::target_name(target));
  }
  return names;
}

}  // namespace

void init_digest(nb::module_& m) {
  m.def("blake3", &blake3_of, "data"_a, "key"_a = nb::none(), "threads"_a = 0,
        "BLAKE3-256 of a C-contiguous buffer, keyed if `key` (32 bytes) is given.");
  m.def("blake3_rows", &blake3_rows_of, "rows"_a, "key"_a = nb::none(), "threads"_a = 0,
        "BLAKE3-256 of each row of a C-contiguous buffer, joined.");
  m.def(
      "xxh3",
      [](nb::handle data) {
        const Borrowed tensor(data.ptr());
        const internal::Hash128 hash = internal::xxh3(contiguous_bytes(tensor, "xxh3"));
        return nb::bytes(&hash, sizeof hash);
      },
      "data"_a, "XXH3-128 of a C-contiguous buffer with this process's secret.");
  m.def("change_digest", &change_digest_of, "tensors"_a,
        "16 bytes that change when dtype, shape or any element of the tensors does; valid in this "
        "process only.");
  m.def("digest_targets", &target_names,
        "The instruction sets that digests can use here, the best first.");
  m.def("force_digest_target", &force_target_named, "name"_a.none(),
        "Make digests use this instruction set; None: the best again. For tests and benchmarks.");
}

}  // namespace tensorkey::python
