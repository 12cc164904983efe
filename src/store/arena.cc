#include "store/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <limits>
#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) static_cast<void>(0)
#endif

namespace tensorkey::internal {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kLeastSlab = std::size_t{4} << 10;
constexpr std::size_t kLargestSlab = std::size_t{64} << 20;
constexpr std::size_t kMostSlabs = 4096;
constexpr std::size_t kFewestSlabs = 256;
constexpr std::size_t kSmallCacheSlab = std::size_t{32} << 10;
constexpr std::size_t kPlaces = 8;  // in a slab, at least
constexpr unsigned kSteps = 16;     // classes an octave

void* map(std::size_t bytes) {
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

void unmap(void* memory, std::size_t bytes) noexcept { ::munmap(memory, bytes); }

// Aligned to `span`, a power of two. REQUIRES: bytes <= span.
std::byte* map_aligned(std::size_t bytes, std::size_t span) {
  auto* const wide = static_cast<std::byte*>(map(bytes + span));
  const std::size_t skip = (span - reinterpret_cast<std::uintptr_t>(wide) % span) % span;
  if (skip > 0) unmap(wide, skip);
  unmap(wide + skip + bytes, span - skip);
  return wide + skip;
}

// Between the sizes of the octave in which bytes lies.
std::size_t step_of(std::size_t bytes) {
  return std::max<std::size_t>(1, std::bit_floor(bytes - 1) / kSteps);
}

// The largest size of a class that is not above.
std::size_t rounded_down(std::size_t bytes) {
  const std::size_t step = step_of(bytes);
  return bytes / step * step;
}

}  // namespace

// At the beginning of the memory it describes. The places follow, then nothing.
struct Arena::Slab {
  std::size_t size;   // of a place
  std::size_t count;  // places
  std::size_t used = 0;
  std::size_t position;  // in its class
  std::size_t first;     // of its bits that may be 0: those before are 1
  bool closed = false;

  static std::size_t words(std::size_t count) { return (count + 63) / 64; }
  static std::size_t header(std::size_t count) {
    return (sizeof(Slab) + words(count) * sizeof(std::uint64_t) + 63) / 64 * 64;
  }
  // One for each place that is in use; those behind the last are 1.
  std::uint64_t* bits() noexcept { return reinterpret_cast<std::uint64_t*>(this + 1); }
  [[nodiscard]] const std::uint64_t* bits() const noexcept {
    return reinterpret_cast<const std::uint64_t*>(this + 1);
  }
  [[nodiscard]] std::byte* place(std::size_t i) const noexcept {
    return reinterpret_cast<std::byte*>(const_cast<Slab*>(this)) + header(count) + i * size;
  }
  [[nodiscard]] bool has_room() const noexcept { return used < count && !closed; }
};

Arena::Arena(std::size_t bound)
    : least_slab_(std::clamp(std::bit_floor(bound / kMostSlabs), kLeastSlab, kLargestSlab)),
      largest_slab_(std::clamp(std::bit_floor(bound / kFewestSlabs),
                               std::min(kSmallCacheSlab, std::bit_floor(bound / kPlaces)),
                               kLargestSlab)),
      small_(rounded_down(largest_slab_ / (kPlaces + 1))) {}

Arena::~Arena() {
  reclaim();
  trim();
  assert(live_ == 0 && held_ == 0);
}

std::size_t Arena::rounded(std::size_t bytes) const {
  bytes = std::max(bytes, kLeast);
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) throw std::bad_alloc();
  const std::size_t step = step_of(bytes);
  const std::size_t size = (bytes + step - 1) / step * step;
  if (size <= small_) return size;
  return (bytes + kPage - 1) / kPage * kPage;
}

// The sizes are step * (17 ... 32), step a power of two.
std::size_t Arena::class_of(std::size_t size) noexcept {
  const auto octave = static_cast<std::size_t>(std::bit_width((size - 1) / kLeast));
  return octave * kSteps + (size - 1) / step_of(size) - kSteps;
}

std::size_t Arena::slab_span(std::size_t size) const noexcept {
  return std::clamp(std::bit_ceil((kPlaces + 1) * size), least_slab_, largest_slab_);
}

std::size_t Arena::slab_places(std::size_t size) const noexcept {
  const std::size_t span = slab_span(size);
  std::size_t count = (span - sizeof(Slab)) / size;
  while (Slab::header(count) + count * size > span) --count;
  return count;
}

std::size_t Arena::slab_bytes(std::size_t size) const noexcept {
  const std::size_t count = slab_places(size);
  return (Slab::header(count) + count * size + kPage - 1) / kPage * kPage;
}

std::size_t Arena::cost(std::size_t size) const noexcept {
  if (size > small_) return size - std::min(size, spare_bytes_);
  return classes_[class_of(size)].open > 0 ? 0 : slab_bytes(size);
}

// Slabs with a free place stand before those without.
void Arena::set_open(Class& group, Slab& slab, bool open) noexcept {
  const bool is_open = slab.position < group.open;
  if (is_open == open) return;
  const std::size_t to = open ? group.open++ : --group.open;
  Slab* const other = group.slabs[to];
  std::swap(group.slabs[to], group.slabs[slab.position]);
  std::swap(other->position, slab.position);
}

Arena::Slab* Arena::add_slab(std::size_t size) {
  Class& group = classes_[class_of(size)];
  group.slabs.reserve(group.slabs.size() + 1);
  const std::size_t bytes = slab_bytes(size);
  const std::size_t count = slab_places(size);
  auto* const slab = new (map_aligned(bytes, slab_span(size)))
      Slab{.size = size, .count = count, .position = group.slabs.size(), .first = 0};
  std::uint64_t* const bits = slab->bits();
  std::fill_n(bits, Slab::words(count), std::uint64_t{0});
  if (count % 64 != 0) bits[count / 64] = ~std::uint64_t{0} << (count % 64);
  ASAN_POISON_MEMORY_REGION(slab->place(0), count * size);
  group.slabs.push_back(slab);
  group.free += count;
  held_ += bytes;
  set_open(group, *slab, true);
  return slab;
}

void* Arena::allocate(std::size_t size) {
  if (size > small_) {
    void* const memory =
        spare_ == nullptr ? map(size) : ::mremap(spare_, spare_bytes_, size, MREMAP_MAYMOVE);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    held_ += size - spare_bytes_;
    live_ += size;
    spare_ = nullptr;
    spare_bytes_ = 0;
    return memory;
  }
  Class& group = classes_[class_of(size)];
  Slab& slab = group.open > 0 ? *group.slabs[0] : *add_slab(size);
  std::uint64_t* const bits = slab.bits();
  std::size_t word = slab.first / 64;
  while (~bits[word] == 0) ++word;
  const auto bit = static_cast<std::size_t>(std::countr_one(bits[word]));
  bits[word] |= std::uint64_t{1} << bit;
  const std::size_t place = word * 64 + bit;
  slab.first = place + 1;
  ++slab.used;
  --group.free;
  live_ += size;
  if (!slab.has_room()) set_open(group, slab, false);
  ASAN_UNPOISON_MEMORY_REGION(slab.place(place), size);
  return slab.place(place);
}

void Arena::give_back(void* memory, std::size_t size) noexcept {
  auto* const place = new (memory) Returned{.next = nullptr, .size = size};
  place->next = returned_.load(std::memory_order_relaxed);
  while (!returned_.compare_exchange_weak(place->next, place, std::memory_order_release)) {
  }
}

void Arena::reclaim() noexcept {
  if (returned_.load(std::memory_order_relaxed) == nullptr) return;
  Returned* place = returned_.exchange(nullptr, std::memory_order_acquire);
  while (place != nullptr) {
    Returned* const next = place->next;
    free_place(place, place->size);
    place = next;
  }
}

void Arena::free_place(void* memory, std::size_t size) noexcept {
  live_ -= size;
  if (size > small_) return free_large(memory, size);
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::size_t span = slab_span(size);
  Slab& slab = *reinterpret_cast<Slab*>(address / span * span);
  Class& group = classes_[class_of(size)];
  const auto place =
      static_cast<std::size_t>(static_cast<std::byte*>(memory) - slab.place(0)) / size;
  slab.bits()[place / 64] &= ~(std::uint64_t{1} << (place % 64));
  slab.first = std::min(slab.first, place);
  --slab.used;
  if (!slab.closed) ++group.free;
  ASAN_POISON_MEMORY_REGION(memory, size);
  if (slab.used > 0) {
    set_open(group, slab, slab.has_room());
    return;
  }
  set_open(group, slab, false);
  if (!slab.closed) group.free -= slab.count;
  group.slabs.back()->position = slab.position;
  std::swap(group.slabs[slab.position], group.slabs.back());
  group.slabs.pop_back();
  const std::size_t bytes = slab_bytes(size);
  held_ -= bytes;
  ASAN_UNPOISON_MEMORY_REGION(slab.place(0), slab.count * slab.size);
  unmap(&slab, bytes);
}

void Arena::free_large(void* memory, std::size_t size) noexcept {
  trim();
  spare_ = memory;
  spare_bytes_ = size;
}

bool Arena::trim() noexcept {
  if (spare_ == nullptr) return false;
  unmap(spare_, spare_bytes_);
  held_ -= spare_bytes_;
  spare_ = nullptr;
  spare_bytes_ = 0;
  return true;
}

Arena::Slab* Arena::close_sparse() noexcept {
  Slab* best = nullptr;
  for (Class& group : classes_) {
    for (std::size_t i = 0; i < group.open; ++i) {
      Slab* const slab = group.slabs[i];
      // What is in it fits into the free places of the others.
      if (group.free < slab->count) break;
      if (best == nullptr || slab->used * slab->size < best->used * best->size) best = slab;
    }
  }
  if (best != nullptr) {
    Class& group = classes_[class_of(best->size)];
    best->closed = true;
    group.free -= best->count - best->used;
    set_open(group, *best, false);
  }
  return best;
}

void Arena::reopen(Slab& slab) noexcept {
  Class& group = classes_[class_of(slab.size)];
  slab.closed = false;
  group.free += slab.count - slab.used;
  set_open(group, slab, slab.has_room());
}

void Arena::places(const Slab& slab, std::vector<void*>& out) {
  for (std::size_t i = 0; i < slab.count; ++i) {
    if ((slab.bits()[i / 64] >> (i % 64) & 1) != 0) out.push_back(slab.place(i));
  }
}

}  // namespace tensorkey::internal
