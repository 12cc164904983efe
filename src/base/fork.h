// A mutex that survives fork(): the child finds it free, and what it guards consistent. While the
// process forks all of these are held, taken from the newest to the oldest: so a thread that holds
// one may wait only for an older one. Who has callbacks declares the mutex behind the members that
// they change: a fork in another thread calls them until the mutex is destroyed.
#pragma once

#include <functional>
#include <mutex>

namespace tensorkey::internal {

class ForkMutex {
 public:
  // before_fork is called in the parent, in_child in the child, while the mutex is held. They must
  // not throw, and before_fork must not wait for another mutex.
  explicit ForkMutex(std::function<void()> in_child = {}, std::function<void()> before_fork = {});
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }
  bool try_lock() { return mutex_.try_lock(); }

  // For std::condition_variable.
  [[nodiscard]] std::mutex& plain() noexcept { return mutex_; }

 private:
  struct Registry;
  std::mutex mutex_;
  std::function<void()> in_child_;
  std::function<void()> before_fork_;
  ForkMutex* next_ = nullptr;
  ForkMutex* previous_ = nullptr;
};

}  // namespace tensorkey::internal
