#include "base/fork.h"

#include <pthread.h>

#include <utility>

namespace tensorkey::internal {

struct ForkMutex::Registry {
  // Never destroyed: threads may still run when the process ends.
  static Registry& instance() {
    static Registry* const registry = [] {
      auto* made = new Registry;
      pthread_atfork(before, after_in_parent, after_in_child);
      return made;
    }();
    return *registry;
  }

  static void before() {
    Registry& self = instance();
    self.mutex.lock();
    for (ForkMutex* each = self.first; each != nullptr; each = each->next_) {
      each->lock();
      if (each->before_fork_) each->before_fork_();
    }
  }

  static void after_in_parent() {
    Registry& self = instance();
    for (ForkMutex* each = self.first; each != nullptr; each = each->next_) each->unlock();
    self.mutex.unlock();
  }

  static void after_in_child() {
    Registry& self = instance();
    for (ForkMutex* each = self.first; each != nullptr; each = each->next_) {
      if (each->in_child_) each->in_child_();
      each->unlock();
    }
    self.mutex.unlock();
  }

  std::mutex mutex;
  ForkMutex* first = nullptr;
};

ForkMutex::ForkMutex(std::function<void()> in_child, std::function<void()> before_fork)
    : in_child_(std::move(in_child)), before_fork_(std::move(before_fork)) {
  Registry& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  next_ = registry.first;
  if (next_ != nullptr) next_->previous_ = this;
  registry.first = this;
}

ForkMutex::~ForkMutex() {
  Registry& registry = Registry::instance();
  const std::lock_guard lock(registry.mutex);
  if (previous_ != nullptr) {
    previous_->next_ = next_;
  } else {
    registry.first = next_;
  }
  if (next_ != nullptr) next_->previous_ = previous_;
}

}  // namespace tensorkey::internal
