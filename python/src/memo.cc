// Memo and MemoBatch: what the frontends run on.
#include <tensorkey/memo.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/error.h>

#include "module.h"
#include "options.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

MemoBatch lookup(Memo& memo, const nb::sequence& tensors, const std::vector<std::string>& paths,
                 nb::handle scope, nb::handle secret) {
  const KeyOptions options = key_options(scope, secret, false, "Memo.lookup");
  BorrowedMembers borrowed;
  std::size_t count = 0;
  for (const nb::handle tensor : tensors) {
    if (count == paths.size()) break;
    borrowed.add(paths[count++], tensor.ptr());
  }
  if (count != paths.size() || nb::len(tensors) != count) {
    throw Error(ErrorCode::kInvalidArgument, "[Memo.lookup] " + std::to_string(nb::len(tensors)) +
                                                 " tensors, but " + std::to_string(paths.size()) +
                                                 " paths; expected one path a tensor");
  }
  const auto members = borrowed.members();
  const MaybeReleaseGil release(borrowed.bytes());
  return memo.lookup(members, options);
}

void insert(MemoBatch& batch, std::size_t first, std::size_t count, nb::handle output,
            double seconds) {
  const Borrowed borrowed(output.ptr());
  const MaybeReleaseGil release(borrowed.view());
  batch.insert(first, count, borrowed.view(), seconds);
}

// A buffer that Python lets us write, C-contiguous.
class Writable {
 public:
  explicit Writable(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) != 0) {
      throw nb::python_error();
    }
  }
  ~Writable() { PyBuffer_Release(&buffer_); }
  Writable(const Writable&) = delete;
  Writable& operator=(const Writable&) = delete;
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return {static_cast<std::byte*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
  }

 private:
  Py_buffer buffer_;
};

void assemble_into_buffer(const MemoBatch& batch, nb::handle destination) {
  const Writable out(destination);
  const MaybeReleaseGil release(out.bytes().size());
  batch.assemble(out.bytes());
}

// A PyTorch tensor exports no buffer: its memory comes over DLPack, where nothing is read-only.
void assemble(const MemoBatch& batch, nb::handle destination) {
  if (PyObject_CheckBuffer(destination.ptr()) != 0) return assemble_into_buffer(batch, destination);
  const Borrowed borrowed(destination.ptr());
  const TensorView& view = borrowed.view();
  const std::size_t bytes = checked_bytes(view, "MemoBatch.assemble");
  std::int64_t contiguous = static_cast<std::int64_t>(item_size(view.dtype));
  for (std::size_t i = view.strides.size(); i-- > 0;) {
    if (view.shape[i] > 1 && view.strides[i] * view.stride_unit != contiguous) {
      throw Error(ErrorCode::kInvalidArgument,
                  "[MemoBatch.assemble] the destination is not C-contiguous");
    }
    contiguous *= view.shape[i];
  }
  if (borrowed.framework() != Framework::kTorch || borrowed.host_copy()) {
    throw Error(ErrorCode::kUnsupported,
                "[MemoBatch.assemble] expected a PyTorch tensor on the CPU or a writable buffer");
  }
  const MaybeReleaseGil release(bytes);
  batch.assemble({const_cast<std::byte*>(static_cast<const std::byte*>(view.data)), bytes});
}

std::optional<std::pair<std::string, nb::tuple>> example(const MemoBatch& batch) {
  const Entry* entry = batch.example();
  if (entry == nullptr) return std::nullopt;
  nb::list shape;
  for (const std::int64_t dim : entry->shape) shape.append(dim);
  return std::pair(std::string(to_string(entry->dtype)), nb::tuple(shape));
}

nb::dict stats(const Memo& memo) {
  const MemoStats stats = memo.stats();
  const StoreStats store = memo.store().stats();
  nb::dict result;
  result["batches"] = stats.batches;
  result["lookups"] = stats.lookups;
  result["hits"] = stats.hits;
  result["duplicates"] = stats.duplicates;
  result["misses"] = stats.misses;
  result["padded_rows"] = stats.padded_rows;
  result["seconds_saved"] = stats.seconds_saved;
  result["seconds_spent"] = stats.seconds_spent;
  result["bound"] = store.bound;
  result["bytes"] = store.bytes;
  result["entries"] = store.entries;
  result["insertions"] = store.insertions;
  result["evictions"] = store.evictions;
  result["rejections"] = store.rejections;
  return result;
}

std::shared_ptr<MemoryStore> make_store(std::int64_t memory) {
  if (memory <= 0) {
    throw Error(ErrorCode::kInvalidArgument, "[Memo] memory is " + std::to_string(memory) +
                                                 " bytes; expected a positive number");
  }
  return std::make_shared<MemoryStore>(static_cast<std::size_t>(memory));
}

}  // namespace

void init_memo(nb::module_& m) {
  nb::class_<MemoBatch>(m, "MemoBatch", "One batch on its way through a Memo; for one thread.")
      .def_prop_ro("rows", &MemoBatch::rows, "Number of rows of the batch.")
      .def_prop_ro(
          "missing",
          [](const MemoBatch& batch) {
            return std::vector<std::int64_t>(batch.missing().begin(), batch.missing().end());
          },
          "Positions of the rows to compute: the first of each distinct one, ascending.")
      .def_prop_ro("example", &example,
                   nb::sig("def example(self) -> tuple[str, tuple[int, ...]] | None"),
                   "Name of the dtype and shape of a known row; None if none is known yet.")
      .def(
          "insert", &insert, "first"_a, "count"_a, "output"_a, "seconds"_a,
          nb::sig("def insert(self, first: int, count: int, output: object, seconds: float) "
                  "-> None"),
          "Give the answers to the missing rows first .. first + count: the first `count` rows of\n"
          "`output`, whose further rows are padding. `seconds` is what the whole chunk took.")
      .def("assemble", &assemble, "destination"_a,
           nb::sig("def assemble(self, destination: object) -> None"),
           "Write the answers to all rows, in order, into a C-contiguous tensor or buffer.");

  nb::class_<Memo>(m, "Memo",
                   "The memo engine over a memory store of at most `memory` bytes. Thread-safe.")
      .def(
          "__init__", [](Memo* self, std::int64_t memory) { new (self) Memo(make_store(memory)); },
          "memory"_a)
      .def("lookup", &lookup, "tensors"_a, "paths"_a, "scope"_a.none(),
           "secret"_a.none() = nb::none(),
           nb::sig("def lookup(self, tensors: collections.abc.Sequence[object], "
                   "paths: collections.abc.Sequence[str], scope: bytes | str, "
                   "secret: bytes | None = None) -> MemoBatch"),
           "Look up the rows of tensors that share their first dimension.")
      .def("stats", &stats, nb::sig("def stats(self) -> dict[str, int | float]"),
           "Counters of the engine and of its store; hits + misses == lookups.")
      .def(
          "clear", [](Memo& self) { self.store().clear(); }, "Drop all entries.");
}

}  // namespace tensorkey::python
