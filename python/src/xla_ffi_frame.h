// A call that XLA makes, as its handler sees it: arguments as views, results as memory to fill.
//
//   Failure* handler(CallFrame* frame) noexcept {
//     return handled(frame, [](const Frame& call) { ... call.argument(0) ... });
//   }
//
// Borrowed for as long as the handler runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include <tensorkey/error.h>
#include <tensorkey/view.h>

#include "xla_ffi_abi.h"

namespace tensorkey::python::xla {

class Frame {
 public:
  explicit Frame(const CallFrame& frame) noexcept : frame_(&frame) {}

  [[nodiscard]] std::size_t arguments() const noexcept {
    return static_cast<std::size_t>(frame_->args.size);
  }
  [[nodiscard]] std::size_t results() const noexcept {
    return static_cast<std::size_t>(frame_->rets.size);
  }
  // These throw kInvalidArgument for what is not there or not of that kind, and kUnsupported for a
  // dtype whose elements do not take whole bytes.
  [[nodiscard]] TensorView argument(std::size_t index) const;
  [[nodiscard]] TensorView result(std::size_t index) const;
  [[nodiscard]] std::span<std::byte> memory(std::size_t result) const;
  [[nodiscard]] std::int32_t number(std::size_t argument) const;  // an int32 of rank 0
  [[nodiscard]] std::int64_t attribute(std::string_view name) const;

 private:
  const CallFrame* frame_;
};

// Answers a runtime that asks for the metadata of a handler; false for any other frame.
[[nodiscard]] bool described(const CallFrame& frame) noexcept;
// Of the runtime that asked last: major << 32 | minor; -1 if none did.
[[nodiscard]] std::int64_t runtime_version() noexcept;

// The exception that is being handled, as one of XLA.
[[nodiscard]] Failure* failure_of(const CallFrame& frame) noexcept;

template <class Run>
Failure* handled(CallFrame* frame, Run&& run) noexcept {
  if (described(*frame)) return nullptr;
  try {
    std::forward<Run>(run)(Frame(*frame));
    return nullptr;
  } catch (const std::exception&) {
    return failure_of(*frame);
  }
}

}  // namespace tensorkey::python::xla
