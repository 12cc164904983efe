#include "base/epoch.h"

#include <pthread.h>

#include <mutex>

namespace tensorkey::internal {

// One for each thread that ever read; reused, never freed. `epoch` is 0 while the thread reads
// nothing.
struct alignas(64) Slot {
  std::atomic<std::uint64_t> epoch{0};
  std::atomic<bool> taken{true};
  Slot* next = nullptr;
  unsigned number = 0;
  unsigned depth = 0;  // the owner's
};

namespace {

std::atomic<std::uint64_t> now{1};
std::atomic<Slot*> slots{nullptr};
thread_local constinit Slot* own_slot = nullptr;

// Gives the slot back when the thread ends.
struct Owner {
  Slot* slot = nullptr;
  ~Owner() {
    own_slot = nullptr;
    if (slot != nullptr) slot->taken.store(false, std::memory_order_release);
  }
};

void forget_other_readers() {
  for (Slot* slot = slots.load(); slot != nullptr; slot = slot->next) {
    if (slot == own_slot) continue;
    slot->depth = 0;
    slot->epoch.store(0);
    slot->taken.store(false);
  }
}

Slot* take_slot() {
  for (Slot* slot = slots.load(); slot != nullptr; slot = slot->next) {
    bool free = false;
    if (slot->taken.compare_exchange_strong(free, true, std::memory_order_acquire)) return slot;
  }
  auto* const fresh = new Slot;
  Slot* head = slots.load();
  do {
    fresh->next = head;
    fresh->number = head == nullptr ? 0 : head->number + 1;
  } while (!slots.compare_exchange_weak(head, fresh));
  return fresh;
}

[[gnu::noinline]] Slot* register_thread() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, forget_other_readers); });
  thread_local Owner owner;
  owner.slot = take_slot();
  own_slot = owner.slot;
  return own_slot;
}

Slot* slot_of_thread() {
  Slot* const slot = own_slot;
  return slot != nullptr ? slot : register_thread();
}

}  // namespace

EpochGuard::EpochGuard() noexcept : slot_(slot_of_thread()) {
  if (slot_->depth++ == 0) slot_->epoch.store(now.load());
}

EpochGuard::~EpochGuard() {
  if (--slot_->depth == 0) slot_->epoch.store(0, std::memory_order_release);
}

std::uint64_t retire_epoch() noexcept { return now.fetch_add(1); }

bool epoch_passed(std::uint64_t tag) noexcept {
  for (const Slot* slot = slots.load(); slot != nullptr; slot = slot->next) {
    const std::uint64_t epoch = slot->epoch.load();
    if (epoch != 0 && epoch <= tag) return false;
  }
  return true;
}

unsigned thread_number() noexcept { return slot_of_thread()->number; }

}  // namespace tensorkey::internal
