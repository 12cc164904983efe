// Directories that a cache does not take: said at construction, with the reason and the remedy, and
// nothing in them is touched.
#include <tensorkey/error.h>

#include <sqlite3.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#include <fstream>
#include <map>
#include <tuple>

#include "store/disk/disk_test_processes.h"
#include "store/disk/disk_test_statfs.h"

namespace tensorkey::test {
namespace {

namespace fs = std::filesystem;

using Listing = std::map<std::string, std::tuple<std::string, unsigned, unsigned, timespec>>;

bool same(const Listing& a, const Listing& b) {
  return std::ranges::equal(a, b, [](const auto& left, const auto& right) {
    const auto& [text, mode, owner, time] = left.second;
    const auto& [text2, mode2, owner2, time2] = right.second;
    return left.first == right.first && text == text2 && mode == mode2 && owner == owner2 &&
           time.tv_sec == time2.tv_sec && time.tv_nsec == time2.tv_nsec;
  });
}

Listing listing(const std::string& folder) {
  Listing all;
  for (const auto& file : fs::directory_iterator(folder)) {
    struct stat about {};
    ::lstat(file.path().c_str(), &about);
    std::string text;
    if (S_ISREG(about.st_mode)) {
      std::ifstream stream(file.path(), std::ios::binary);
      text.assign(std::istreambuf_iterator<char>(stream), {});
    }
    all.emplace(file.path().filename().string(),
                std::tuple(text, about.st_mode, about.st_uid, about.st_mtim));
  }
  return all;
}

class DiskRefuse : public ::testing::Test {
 protected:
  DiskRefuse() : options_(on_disk(folder_)) {
    ActivationCache cache(options_);
    for (std::uint64_t id = 0; id < 20; ++id) put_value(cache, id);
  }
  ~DiskRefuse() override { magic_for_all = 0; }
  DiskRefuse(const DiskRefuse&) = delete;
  DiskRefuse& operator=(const DiskRefuse&) = delete;

  void expect_refused(const std::string& reason, const std::string& remedy) const {
    const Listing before = listing(options_.disk);
    try {
      const ActivationCache cache(options_);
      ADD_FAILURE() << "it was taken; expected: " << reason;
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(error.code(), ErrorCode::kUnavailable) << text;
      EXPECT_NE(text.find(reason), std::string::npos) << text;
      EXPECT_NE(text.find(remedy), std::string::npos) << text;
      EXPECT_NE(text.find(options_.disk), std::string::npos) << text;
    }
    EXPECT_TRUE(same(before, listing(options_.disk)));
  }
  void expect_taken() const {
    ActivationCache cache(options_);
    for (std::uint64_t id = 0; id < 20; ++id) EXPECT_EQ(ask(cache, id), Answer::kRight) << id;
    EXPECT_EQ(disk_stats(cache).state, "");
  }
  [[nodiscard]] std::string file(const std::string& name) const {
    return options_.disk + "/" + name;
  }

  const Folder folder_;
  CacheOptions options_;
};

TEST_F(DiskRefuse, ANewerFormat) {
  std::ofstream(file("tensorkey.lock")) << "tensorkey directory, format 2\n";
  expect_refused("newer", "update tensorkey");
  std::ofstream(file("tensorkey.lock")) << "tensorkey directory, format 1\n";
  expect_taken();
}

TEST_F(DiskRefuse, ANewerIndex) {
  const auto set_version = [&](const char* sql) {
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open(file("index.db").c_str(), &database), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(database, sql, nullptr, nullptr, nullptr), SQLITE_OK);
    sqlite3_close(database);  // moves the log
  };
  set_version("PRAGMA user_version = 2");
  expect_refused("newer", "update tensorkey");
  set_version("PRAGMA user_version = 1");
  expect_taken();
}

TEST_F(DiskRefuse, ForeignFiles) {
  std::ofstream(file("thesis.txt")) << "mine";
  expect_refused("thesis.txt", "new or empty");
  fs::remove(file("thesis.txt"));
  fs::create_directory(file("000000000009.seg"));
  expect_refused("000000000009.seg", "expected");
  fs::remove(file("000000000009.seg"));
  expect_taken();
}

TEST_F(DiskRefuse, ADirectoryThatIsNoCache) {
  options_.disk = (folder_.path() / "home").string();
  fs::create_directory(options_.disk);
  fs::permissions(options_.disk, fs::perms{0700});
  std::ofstream(file("photo.jpg")) << "cat";
  expect_refused("photo.jpg", "new or empty");
}

TEST_F(DiskRefuse, OneThatOthersMayWrite) {
  fs::permissions(options_.disk, fs::perms{0777});
  expect_refused("everybody", "expected that others may not");
  fs::permissions(options_.disk, fs::perms{0770});
  expect_refused("its group", "expected that it may not");
  fs::permissions(options_.disk, fs::perms{0700});
  expect_taken();
}

TEST_F(DiskRefuse, OneOfAnotherOwner) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(::chown(options_.disk.c_str(), 65534, 65534), 0);
  expect_refused("decide what hits answer", "directory of one's own");
  ASSERT_EQ(::chown(options_.disk.c_str(), 0, 0), 0);
  expect_taken();
}

TEST_F(DiskRefuse, NetworkFileSystems) {
  for (const std::uint32_t magic : {0x6969U, 0xFF534D42U, 0x65735546U, 0x0BD00BD0U}) {
    magic_for_all = magic;
    expect_refused("shared safely", "node-local disk");
    magic_for_all = 0;
  }
  expect_taken();
  magic_for_all = 0x6969;
  options_.allow_network = true;
  expect_taken();
}

// Where there was nothing, nothing is left.
TEST_F(DiskRefuse, WhatItWouldHaveMade) {
  magic_for_all = 0x6969;
  options_.disk = (folder_.path() / "a" / "b").string();
  EXPECT_THROW(ActivationCache{options_}, Error);
  EXPECT_FALSE(fs::exists(folder_.path() / "a"));
  magic_for_all = 0;
  options_.disk = (folder_.path() / "cache" / "index.db" / "c").string();
  EXPECT_THROW(ActivationCache{options_}, Error);
}

}  // namespace
}  // namespace tensorkey::test
