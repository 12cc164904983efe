#include "store/trace.h"

#include <tensorkey/error.h>

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cinttypes>
#include <mutex>
#include <system_error>

namespace tensorkey::internal {

// The child of a fork writes nothing: the file and what its buffer holds are the parent's.
void Trace::forget() noexcept {
  on_ = false;
  static_cast<void>(file_.release());
}

void Trace::open(const std::string& path, std::size_t limit) {
  std::unique_ptr<std::FILE, Close> file;
  if (!path.empty()) {
    const int descriptor =
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0) {
      throw Error(ErrorCode::kIo, "[ActivationCache::trace] " + path + " cannot be opened: " +
                                      std::generic_category().message(errno));
    }
    file.reset(::fdopen(descriptor, "w"));
    if (file == nullptr) {
      ::close(descriptor);
      throw std::bad_alloc();
    }
  }
  const std::lock_guard lock(mutex_);
  file_.swap(file);
  left_ = limit;
  start_ = std::chrono::steady_clock::now();
  on_ = file_ != nullptr;
}

void Trace::write(const Request& request) {
  const std::lock_guard lock(mutex_);
  if (file_ == nullptr) return;
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start_;
  std::array<char, 128> line;
  const int length =
      std::snprintf(line.data(), line.size(), "%016" PRIx64 " %" PRIu64 " %.9g %.6f\n",
                    request.hash, request.size, request.cost, time.count());
  const auto bytes = static_cast<std::size_t>(length);
  if (bytes > left_ || std::fwrite(line.data(), 1, bytes, file_.get()) != bytes) {
    on_ = false;  // the limit, or a full disk
    file_.reset();
    return;
  }
  left_ -= bytes;
}

}  // namespace tensorkey::internal
