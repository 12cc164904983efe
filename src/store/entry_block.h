// The memory of an entry: one block that holds everything, from the count of its owners to its
// values, so that a hit touches as few cache lines as possible.
//
//   Block | [input key] | Item for each tensor | dims of all | names of all | data of each, aligned
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

#include <tensorkey/entry.h>

#include "policy/node.h"
#include "store/arena.h"

namespace tensorkey::internal {

// What a hit reads stands first and together.
struct Block final : Entry {
  PolicyNode policy;  // first of all: a node has the address of its block
  mutable std::atomic<std::uint32_t> owners{1};
  std::uint32_t tensors = 0;
  Key key;
  std::atomic<std::int64_t> expires{0};  // milliseconds of the monotonic clock; 0: never
  // Of the first tensor, if there is one.
  const std::byte* data = nullptr;
  std::size_t bytes = 0;

  std::uint64_t scope = 0;  // purge() finds entries by it
  double seconds = 0;
  std::size_t size = 0;          // of the block
  std::size_t footprint = 0;     // of the place it is in
  std::shared_ptr<Arena> arena;  // whose memory it is; null: of the heap
  bool has_input = false;
  // Guarded by the cache's mutex.
  bool linked = false;  // in the index
  bool pinned = false;

  Block() = default;
  ~Block() = default;

  // The block that a node is part of.
  static Block& of(PolicyNode& node) noexcept;
};

inline Block& Block::of(PolicyNode& node) noexcept {
  // Entry has no members, so the node is the first thing in a block; allocate_block checks that.
  return *reinterpret_cast<Block*>(&node);
}

// Of one tensor; places are bytes from the beginning of the block.
struct Item {
  std::uint64_t data;
  std::uint64_t bytes;
  std::uint64_t dims;
  std::uint64_t name;
  std::uint32_t name_bytes;
  DType dtype;
  std::uint8_t rank;
  Strides strides;
  Codec codec;
};

inline bool same_key(const Key& a, const Key& b) noexcept {
  std::uint64_t x[4];
  std::uint64_t y[4];
  std::memcpy(x, a.bytes().data(), sizeof x);
  std::memcpy(y, b.bytes().data(), sizeof y);
  return ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3])) == 0;
}

// The size of the block; checks the parts as make_entry does.
std::size_t block_bytes(const EntryParts& parts);

// Fills a block that was made in memory of block_bytes(parts) bytes.
void fill_block(Block& block, const EntryParts& parts);

// A copy of a block, with one owner, in other memory of the same size.
Block* copy_block(const Block& block, void* memory);

inline const Block& block_of(const Entry& entry) { return static_cast<const Block&>(entry); }

void retain(const Entry& entry) noexcept;
void release(const Entry& entry) noexcept;  // the last owner frees the block

}  // namespace tensorkey::internal
