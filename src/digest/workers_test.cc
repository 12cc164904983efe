// Threads for large digests: how many, and what happens when the system refuses them.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <tensorkey/digest.h>

#include "digest/workers.h"

namespace {

// Of thread starts, once counting began. Sanitizers replace pthread_create themselves.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TENSORKEY_COUNTS_THREADS 1
std::atomic<int> started = 0;
std::atomic<int> allowed = INT32_MAX;
#endif

}  // namespace

#ifdef TENSORKEY_COUNTS_THREADS
// Found before libc's by std::thread: refuses when `allowed` threads were started.
extern "C" __attribute__((visibility("default"))) int pthread_create(
    pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto kNext = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (started >= allowed) return EAGAIN;
  ++started;
  return kNext(thread, attributes, run, argument);
}
#endif

namespace tensorkey::internal {
namespace {

TEST(Workers, AreWorthTheirStart) {
  EXPECT_EQ(worker_count(8, 0), 1U);
  EXPECT_EQ(worker_count(8, 2 * kBytesPerThread - 1), 1U);
  EXPECT_EQ(worker_count(8, 2 * kBytesPerThread), 2U);
  EXPECT_EQ(worker_count(1, SIZE_MAX), 1U);
  EXPECT_EQ(worker_count(3, SIZE_MAX), 3U);
  EXPECT_LE(worker_count(0, SIZE_MAX), 8U);
}

TEST(Workers, DoEachUnitOnce) {
  for (const unsigned threads : {1U, 2U, 5U}) {
    std::vector<std::atomic<int>> done(1000);
    run_units(threads, done.size(), [&](std::size_t unit) { ++done[unit]; });
    for (const auto& times : done) ASSERT_EQ(times, 1);
  }
}

#ifdef TENSORKEY_COUNTS_THREADS
TEST(Workers, AreDoneWithoutWhenRefused) {
  const std::vector<std::byte> data(std::size_t{17} << 20, std::byte{7});
  const Digest expected = blake3(data, {.threads = 1});
  for (const int most : {0, 1, 2}) {
    started = 0;
    allowed = most;
    EXPECT_EQ(blake3(data, {.threads = 4}), expected);
    EXPECT_EQ(started, most);
  }
  allowed = INT32_MAX;
}

TEST(Workers, AreNotStartedForSmallInputs) {
  const std::vector<std::byte> data(std::size_t{7} << 20);
  std::vector<Digest> out(7);
  started = 0;
  EXPECT_EQ(blake3(data, {.threads = 8}), blake3(data));
  blake3_rows({.data = data.data(), .count = 7, .bytes = 1 << 20, .stride = 1 << 20}, out);
  EXPECT_EQ(started, 0);
}
#endif

}  // namespace
}  // namespace tensorkey::internal
