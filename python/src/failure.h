// Exceptions of Python on their way through the core: a computation that fails in one thread fails
// for all who wait for it, with the same exception object.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>
#include <memory>

namespace tensorkey::python {

// A Python exception that may be copied and dropped without the GIL, in any thread.
class PythonFailure : public std::exception {
 public:
  // REQUIRES: the GIL.
  explicit PythonFailure(nanobind::handle raised);
  explicit PythonFailure(nanobind::python_error& error) : PythonFailure(error.value()) {}

  // Raises it again. REQUIRES: the GIL.
  void restore() const noexcept;
  // Whether it is an Exception: KeyboardInterrupt and the like end their own thread's work only.
  // REQUIRES: the GIL.
  [[nodiscard]] bool is_exception() const noexcept;
  [[nodiscard]] const char* what() const noexcept override { return "an exception of Python"; }

 private:
  std::shared_ptr<PyObject> exception_;
};

// The computation was given up by its thread: who waits for it begins again.
struct Abandoned : PythonFailure {
  using PythonFailure::PythonFailure;
};

// Runs the handlers of signals, such as Ctrl-C; throws what they raise. Takes the GIL.
void check_signals();

}  // namespace tensorkey::python
