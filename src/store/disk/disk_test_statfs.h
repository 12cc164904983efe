// In front of the C library's: no test can mount a network file system. For one source of a
// program.
#pragma once

#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace {
std::atomic<std::uint32_t> magic_for_all{0};
}  // namespace

extern "C" int fstatfs(int file, struct statfs* about) noexcept {
  const long result = ::syscall(SYS_fstatfs, file, about);
  const std::uint32_t magic = magic_for_all;
  if (result == 0 && magic != 0) about->f_type = static_cast<std::int32_t>(magic);
  return static_cast<int>(result);
}
