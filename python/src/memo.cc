// Memo and MemoBatch: what the frontends run on.
#include <tensorkey/memo.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <tensorkey/codec.h>
#include <tensorkey/error.h>

#include "failure.h"
#include "module.h"
#include "options.h"
#include "writable.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tensorkey::python {
namespace {

constexpr double kSlice = 0.1;  // seconds between looks for signals

// A batch that can be dropped before Python lets go of it: an exception keeps its frames alive, and
// other threads wait for the rows.
class Batch {
 public:
  // stores: whether there is a tier below memory, so that insert() may wait for a disk.
  Batch(MemoBatch batch, bool stores) : batch_(std::move(batch)), stores_(stores) {}
  [[nodiscard]] MemoBatch& get() {
    if (!batch_) throw Error(ErrorCode::kInvalidArgument, "[MemoBatch] the batch is closed");
    return *batch_;
  }
  void close() noexcept { batch_.reset(); }
  [[nodiscard]] bool stores() const noexcept { return stores_; }

 private:
  std::optional<MemoBatch> batch_;
  bool stores_;
};

Codec codec_of(const std::string& name) {
  if (const std::optional<Codec> codec = codec_from_name(name)) return *codec;
  throw Error(ErrorCode::kInvalidArgument,
              "[Memo] codec is '" + name + "'; expected 'raw', 'lossless', 'fp16' or 'bf16'");
}

Batch lookup(Memo& memo, const nb::sequence& tensors, const std::vector<std::string>& paths,
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
  const bool stores = memo.cache().has_store();
  const MaybeReleaseGil release(stores ? kReleaseGilBytes : borrowed.bytes());
  return Batch(memo.lookup(members, options), stores);
}

void insert(Batch& self, std::size_t first, std::size_t count, nb::handle output, double seconds) {
  MemoBatch& batch = self.get();
  const Borrowed borrowed(output.ptr());
  const MaybeReleaseGil release(self.stores() ? kReleaseGilBytes
                                              : checked_bytes(borrowed.view(), "MemoBatch.insert"));
  batch.insert(first, count, {&borrowed.view(), 1}, seconds);
}

// Whether all rows are known. Most batches have nothing to wait for.
bool wait(Batch& self) {
  MemoBatch& batch = self.get();
  for (MemoBatch::Wait outcome = batch.wait(0);;) {
    if (outcome != MemoBatch::Wait::kTimeout) return outcome == MemoBatch::Wait::kDone;
    check_signals();
    const nb::gil_scoped_release release;
    outcome = batch.wait(kSlice);
  }
}

void assemble_bytes(const MemoBatch& batch, std::span<std::byte> out) {
  batch.assemble({&out, 1});
}

void assemble_into_buffer(const MemoBatch& batch, nb::handle destination) {
  const Writable out(destination);
  const MaybeReleaseGil release(out.bytes().size());
  assemble_bytes(batch, out.bytes());
}

// A PyTorch tensor exports no buffer: its memory comes over DLPack, where nothing is read-only.
void assemble(Batch& self, nb::handle destination) {
  const MemoBatch& batch = self.get();
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
  assemble_bytes(batch, {const_cast<std::byte*>(static_cast<const std::byte*>(view.data)), bytes});
}

std::optional<std::pair<std::string, nb::tuple>> example(Batch& self) {
  const Entry* entry = self.get().example();
  if (entry == nullptr) return std::nullopt;
  const TensorParts row = entry->tensor(0);
  nb::list shape;
  for (const std::int64_t dim : row.shape) shape.append(dim);
  return std::pair(std::string(to_string(row.dtype)), nb::tuple(shape));
}

}  // namespace

void init_memo(nb::module_& m) {
  nb::class_<Batch>(m, "MemoBatch",
                    "One batch on its way through a Memo; for one thread. On the way out of a\n"
                    "`with` block it gives up the rows that it has not answered.")
      .def_prop_ro(
          "rows", [](Batch& self) { return self.get().rows(); }, "Number of rows of the batch.")
      .def_prop_ro(
          "missing",
          [](Batch& self) {
            const auto missing = self.get().missing();
            return std::vector<std::int64_t>(missing.begin(), missing.end());
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
      .def(
          "fail",
          [](Batch& self, nb::handle error) {
            self.get().fail(std::make_exception_ptr(PythonFailure(error)));
          },
          "error"_a, nb::sig("def fail(self, error: BaseException) -> None"),
          "Raise `error` in all who wait for rows of this batch.")
      .def("wait", &wait,
           "Wait for rows that other threads compute. True: all rows are known. False: `missing`\n"
           "lists rows that others gave up. Raises what their computation raised.")
      .def("assemble", &assemble, "destination"_a,
           nb::sig("def assemble(self, destination: object) -> None"),
           "Write the answers to all rows, in order, into a C-contiguous tensor or buffer.")
      .def(
          "__enter__", [](nb::handle self) { return nb::borrow(self); },
          nb::sig("def __enter__(self) -> MemoBatch"))
      .def(
          "__exit__", [](Batch& self, const nb::args&) { self.close(); },
          nb::sig("def __exit__(self, *exception: object) -> None"));

  nb::class_<Memo>(m, "Memo", "The memo engine over a cache. Thread-safe.")
      .def(
          "__init__",
          [](Memo* self, std::shared_ptr<ActivationCache> cache, const std::string& codec) {
            new (self) Memo(std::move(cache), {.codec = codec_of(codec)});
          },
          "cache"_a, "codec"_a = "raw")
      .def("lookup", &lookup, "tensors"_a, "paths"_a, "scope"_a.none(),
           "secret"_a.none() = nb::none(),
           nb::sig("def lookup(self, tensors: collections.abc.Sequence[object], "
                   "paths: collections.abc.Sequence[str], scope: bytes | str, "
                   "secret: bytes | None = None) -> MemoBatch"),
           "Look up the rows of tensors that share their first dimension.");
}

}  // namespace tensorkey::python
