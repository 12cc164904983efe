// The memory of a cache's entries, taken from the system by the slab, so that what the cache
// answers for is what the process holds: with malloc the resident set of a churning cache was 1.2
// to 1.9 times its bound. Sizes are rounded up to classes a sixteenth of an octave apart; a slab
// holds places of one class and goes back to the system when it is empty (J. Bonwick, "The Slab
// Allocator", USENIX 1994). What is larger than an eighth of a slab is mapped on its own.
//
// One owner at a time (its lock), but for give_back(). The owner keeps slabs from staying half
// empty: sparse() names one whose blocks would fit elsewhere.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tensorkey::internal {

class Arena {
 public:
  struct Slab;

  // bound: about what the owner will hold at most. A slab takes at least 1/4096 of it, so that they
  // stay few, and at most 1/256 (but 32 KiB), so that the free places of half full ones do.
  explicit Arena(std::size_t bound);
  ~Arena();  // REQUIRES: everything was given back
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // What an allocation of so many bytes takes. Everything below is about such sizes.
  [[nodiscard]] std::size_t rounded(std::size_t bytes) const;

  // What must be taken from the system for it: 0 if there is a free place.
  [[nodiscard]] std::size_t cost(std::size_t size) const noexcept;

  // Aligned to 16 bytes. Throws std::bad_alloc.
  void* allocate(std::size_t size);

  // Any thread, no lock; the place is free after the next reclaim().
  void give_back(void* memory, std::size_t size) noexcept;
  void reclaim() noexcept;

  // Gives the system what was kept for the next large allocation. False if there was nothing.
  bool trim() noexcept;

  [[nodiscard]] std::size_t held() const noexcept { return held_; }  // bytes taken of the system
  [[nodiscard]] std::size_t live() const noexcept { return live_; }  // bytes of allocations

  // The emptiest slab of a class whose other slabs have room for what is in it; null if there is
  // none. No more places are given out in it until it is empty or reopened.
  Slab* close_sparse() noexcept;
  void reopen(Slab& slab) noexcept;
  // Appends the places in use.
  static void places(const Slab& slab, std::vector<void*>& out);

 private:
  static constexpr std::size_t kLeast = 256;    // no entry is smaller
  static constexpr std::size_t kClasses = 256;  // 16 octaves

  struct Class {
    std::vector<Slab*> slabs;
    std::size_t open = 0;  // slabs[i] for i < open have a free place
    std::size_t free = 0;  // places in slabs that are not closed
  };
  // A place on its way back.
  struct Returned {
    Returned* next;
    std::size_t size;
  };

  [[nodiscard]] static std::size_t class_of(std::size_t size) noexcept;
  // Of a slab for places of this size: the address space it stands in, a power of two and aligned
  // to it; the number of places; the bytes that are mapped.
  [[nodiscard]] std::size_t slab_span(std::size_t size) const noexcept;
  [[nodiscard]] std::size_t slab_places(std::size_t size) const noexcept;
  [[nodiscard]] std::size_t slab_bytes(std::size_t size) const noexcept;
  Slab* add_slab(std::size_t size);
  void free_place(void* memory, std::size_t size) noexcept;
  void free_large(void* memory, std::size_t size) noexcept;
  void set_open(Class& group, Slab& slab, bool open) noexcept;

  std::size_t least_slab_;
  std::size_t largest_slab_;
  std::size_t small_;  // the largest size that lives in a slab
  std::size_t held_ = 0;
  std::size_t live_ = 0;
  std::array<Class, kClasses> classes_;
  // A large allocation that was given back: the next one takes over its pages, since faults cost
  // more than writing the values.
  void* spare_ = nullptr;
  std::size_t spare_bytes_ = 0;
  std::atomic<Returned*> returned_{nullptr};
};

}  // namespace tensorkey::internal
