#include "store/disk/directory.h"

#include <gtest/gtest.h>

#include <fcntl.h>
#include <grp.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <tensorkey/error.h>

#include "store/disk/disk_test_statfs.h"

namespace tensorkey::internal {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kOther = 65534;  // a user and group that this process is not
constexpr unsigned kTeam = 4242;    // a group
constexpr std::string_view kText = "tensorkey directory, format 1\n";

void write(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

unsigned permissions(const fs::path& path) {
  struct stat about {};
  EXPECT_EQ(::lstat(path.c_str(), &about), 0);
  return about.st_mode & 07777;
}

class DirectoryTest : public ::testing::Test {
 protected:
  DirectoryTest() {
    std::string name = (fs::temp_directory_path() / "tensorkey_directory_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
    base_ = name;
    fs::permissions(base_, fs::perms{0755});
  }
  ~DirectoryTest() override {
    std::error_code ignored;
    fs::remove_all(base_, ignored);
  }

  [[nodiscard]] std::string path(const std::string& name = "store") const { return base_ / name; }

  // Makes a directory with these permissions, as if by hand.
  [[nodiscard]] std::string by_hand(unsigned mode, const std::string& name = "store") const {
    fs::create_directory(path(name));
    EXPECT_EQ(::chmod(path(name).c_str(), mode), 0);
    return path(name);
  }

  // What the refusal says; that nothing else is in the directory than before is checked too.
  static std::string refusal(const DirectoryOptions& options) {
    const auto names = [&] {
      std::vector<std::string> all;
      std::error_code ignored;
      for (const auto& each : fs::directory_iterator(options.path, ignored))
        all.push_back(each.path());
      std::ranges::sort(all);
      return all;
    };
    const auto before = names();
    std::string message;
    try {
      const Directory directory(options);
      ADD_FAILURE() << options.path << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnavailable) << error.what();
      message = error.what();
      EXPECT_TRUE(message.starts_with("[ActivationCache] " + options.path + " ")) << message;
      EXPECT_NE(message.find("; expected "), std::string::npos) << message;
    }
    EXPECT_EQ(names(), before);
    return message;
  }

  // In a process of another user; false if one of its expectations failed.
  static bool as_user(unsigned user, unsigned group, const std::vector<gid_t>& groups,
                      const std::function<void()>& work) {
    const pid_t child = ::fork();
    if (child == 0) {
      if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(group) != 0 ||
          ::setuid(user) != 0) {
        ::_exit(2);
      }
      try {
        work();
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
      ::_exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

  static bool is_root() { return ::geteuid() == 0; }

  fs::path base_;
};

TEST_F(DirectoryTest, SegmentNames) {
  EXPECT_EQ(segment_name(12), "000000000012.seg");
  EXPECT_EQ(segment_of("000000000012.seg"), 12U);
  EXPECT_EQ(segment_of(segment_name(0xffffffff)), 0xffffffffU);
  for (const std::string_view other :
       {"", ".seg", "12.seg", "000000000000.seg", "0000000000012.seg", "00000000012.seg",
        "00000000001a.seg", "-00000000001.seg", "+00000000001.seg", " 00000000001.seg",
        "000000000012.sog", "000000000012.seg ", "000000000012.SEG", "004294967296.seg",
        "999999999999.seg"}) {
    EXPECT_EQ(segment_of(other), 0U) << other;
  }
}

TEST_F(DirectoryTest, IsMadeWithItsParentsWhateverTheUmask) {
  const mode_t before = ::umask(0);
  { const Directory open({.path = path("a/b/c")}); }
  ::umask(077);
  { const Directory team({.path = path("team"), .mode = 0770}); }
  { const Directory readers({.path = path("readers"), .mode = 0750}); }
  ::umask(before);
  EXPECT_EQ(permissions(path("a")), 0700U);
  EXPECT_EQ(permissions(path("a/b")), 0700U);
  EXPECT_EQ(permissions(path("a/b/c")), 0700U);
  EXPECT_EQ(permissions(path("a/b/c/tensorkey.lock")), 0600U);
  EXPECT_EQ(permissions(path("team")), 02770U);
  EXPECT_EQ(permissions(path("team/tensorkey.lock")), 0660U);
  EXPECT_EQ(permissions(path("readers")), 02750U);
  EXPECT_EQ(permissions(path("readers/tensorkey.lock")), 0640U);
  EXPECT_EQ(read(path("team/tensorkey.lock")), kText);
}

TEST_F(DirectoryTest, IsOpenedAgain) {
  for (int i = 0; i < 3; ++i) {
    const Directory directory({.path = path()});
    EXPECT_EQ(directory.path(), path());
    EXPECT_EQ(directory.path_of("index.db"), path() + "/index.db");
    EXPECT_EQ(directory.file_mode(), 0600U);
    EXPECT_FALSE(directory.read_only() || directory.moved());
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(path()), {}), 1);
}

TEST_F(DirectoryTest, APathIsMadeAbsolute) {
  const fs::path before = fs::current_path();
  fs::current_path(base_);
  const Directory directory({.path = "./x//y/./z/"});
  fs::current_path(before);
  EXPECT_EQ(directory.path(), path("x/y/z"));
  EXPECT_FALSE(directory.moved());
}

TEST_F(DirectoryTest, BadOptions) {
  const auto code = [](const DirectoryOptions& options) {
    try {
      const Directory directory(options);
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kInternal;
  };
  EXPECT_EQ(code({.path = ""}), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.path = path() + std::string("\0x", 2)}), ErrorCode::kInvalidArgument);
  for (const unsigned mode : {0777U, 0600U, 0070U, 01700U, 04700U, 0701U, 0100700U}) {
    EXPECT_EQ(code({.path = path(), .mode = mode}), ErrorCode::kInvalidArgument) << mode;
  }
  EXPECT_FALSE(fs::exists(path()));
}

TEST_F(DirectoryTest, ALinkAFileAndABadParentAreRefused) {
  const std::string target = by_hand(0700, "target");
  fs::create_directory_symlink(target, path("link"));
  EXPECT_NE(refusal({.path = path("link")}).find("symbolic link"), std::string::npos);
  EXPECT_THROW(Directory({.path = path("link/")}), Error);
  EXPECT_THROW(Directory({.path = path("link/.")}), Error);
  EXPECT_TRUE(fs::is_empty(target));
  fs::create_symlink(path("nowhere"), path("dangling"));
  EXPECT_NE(refusal({.path = path("dangling")}).find("symbolic link"), std::string::npos);
  write(path("file"), "");
  EXPECT_NE(refusal({.path = path("file")}).find("no directory"), std::string::npos);
  EXPECT_NE(refusal({.path = path("file/store")}).find("cannot be"), std::string::npos);
  // A link on the way is the user's own matter.
  const Directory through({.path = path("link/store")});
  EXPECT_TRUE(fs::exists(target + "/store/tensorkey.lock"));
}

TEST_F(DirectoryTest, PermissionsWiderThanTheModeAreRefused) {
  EXPECT_NE(refusal({.path = by_hand(0777)}).find("everybody"), std::string::npos);
  EXPECT_NE(refusal({.path = by_hand(01777), .mode = 0770}).find("everybody"), std::string::npos);
  EXPECT_NE(refusal({.path = by_hand(02770)}).find("0o770"), std::string::npos);
  EXPECT_NE(refusal({.path = by_hand(02770), .mode = 0750}).find("02770"), std::string::npos);
  { const Directory readable({.path = by_hand(0755)}); }
  EXPECT_EQ(permissions(path()), 0755U);
  { const Directory narrower({.path = by_hand(0700), .mode = 0770}); }
  EXPECT_EQ(permissions(path()), 0700U);
}

TEST_F(DirectoryTest, AnotherOwnerIsAcceptedInATeamOnly) {
  if (!is_root()) GTEST_SKIP() << "needs root";
  const std::string store = by_hand(02770);
  ASSERT_EQ(::chown(store.c_str(), kOther, kTeam), 0);
  ASSERT_EQ(::chmod(store.c_str(), 02770), 0);
  EXPECT_NE(refusal({.path = store}).find("another user (65534)"), std::string::npos);
  EXPECT_NE(refusal({.path = store, .mode = 0700}).find("another user"), std::string::npos);
  EXPECT_NE(refusal({.path = store, .mode = 0770}).find("group (4242)"), std::string::npos);
  const auto join = [&] {
    const Directory directory({.path = store, .mode = 0770});
    EXPECT_FALSE(directory.read_only());
    EXPECT_TRUE(directory.open("index.db", O_RDWR | O_CREAT));
  };
  EXPECT_TRUE(as_user(1234, 1234, {1, kTeam}, join));
  EXPECT_TRUE(as_user(1235, kTeam, {}, join));
  struct stat about {};
  ASSERT_EQ(::stat((store + "/index.db").c_str(), &about), 0);
  EXPECT_EQ(about.st_gid, kTeam);
  EXPECT_EQ(about.st_mode & 0777, 0660U);
  EXPECT_TRUE(as_user(1234, 1234, {}, [&] { refusal({.path = store, .mode = 0770}); }));
}

TEST_F(DirectoryTest, ATeamWithoutTheGroupBitIsRefused) {
  if (!is_root()) GTEST_SKIP() << "needs root";
  const std::string store = by_hand(0770);
  ASSERT_EQ(::chown(store.c_str(), kOther, kTeam), 0);
  EXPECT_TRUE(as_user(1234, 1234, {kTeam}, [&] {
    EXPECT_NE(refusal({.path = store, .mode = 0770}).find("g+s"), std::string::npos);
  }));
  EXPECT_TRUE(as_user(1234, kTeam, {}, [&] { Directory({.path = store, .mode = 0770}); }));
}

TEST_F(DirectoryTest, ForeignFilesAreRefused) {
  const std::string store = by_hand(0700);
  for (const std::string name : {"photo.jpg", "index.db-wal2", "index.sqlite", ".hidden", "12.seg",
                                 "tensorkey.lock~", "index.db.damaged2", "000000000000.seg"}) {
    write(fs::path(store) / name, "precious");
    EXPECT_NE(refusal({.path = store}).find("holds " + name), std::string::npos) << name;
    EXPECT_EQ(read(fs::path(store) / name), "precious");
    fs::remove(fs::path(store) / name);
  }
  { const Directory directory({.path = store}); }
  for (const std::string name :
       {"index.db", "index.db-wal", "index.db-shm", "index.db-journal", "index.db.new",
        "index.db.new.12-wal", "index.db.damaged", "index.db.damaged-wal", "000000000001.seg"}) {
    write(fs::path(store) / name, "");
  }
  { const Directory directory({.path = store}); }
  write(store + "/notes", "");
  EXPECT_NE(refusal({.path = store}).find("holds notes"), std::string::npos);
}

// SQLite opens its files by their names, and would follow a link.
TEST_F(DirectoryTest, ANameOfOursThatIsNoFileIsForeign) {
  { const Directory directory({.path = path()}); }
  write(path("target"), "precious");
  fs::create_symlink(path("target"), path("store/index.db"));
  EXPECT_NE(refusal({.path = path()}).find("holds index.db"), std::string::npos);
  fs::remove(path("store/index.db"));
  fs::create_directory(path("store/000000000001.seg"));
  EXPECT_NE(refusal({.path = path()}).find("holds 000000000001.seg"), std::string::npos);
}

TEST_F(DirectoryTest, FilesWithoutALockFileAreRefused) {
  const std::string store = by_hand(0700);
  write(store + "/index.db", "");
  EXPECT_NE(refusal({.path = store}).find("no tensorkey.lock"), std::string::npos);
}

TEST_F(DirectoryTest, LeftoversOfMakingTheLockFileAreRemoved) {
  const std::string store = by_hand(0700);
  write(store + "/tensorkey.lock.new.17", "tens");
  const Directory directory({.path = store});
  EXPECT_FALSE(directory.exists("tensorkey.lock.new.17"));
  EXPECT_EQ(read(store + "/tensorkey.lock"), kText);
}

TEST_F(DirectoryTest, OtherFormatsAreRefused) {
  const std::string store = by_hand(0700);
  const auto with = [&](std::string_view text) {
    write(store + "/tensorkey.lock", text);
    std::string message = refusal({.path = store});
    EXPECT_EQ(read(store + "/tensorkey.lock"), text);
    return message;
  };
  const std::string newer = with("tensorkey directory, format 2\nmore");
  EXPECT_NE(newer.find("newer version (format 2)"), std::string::npos) << newer;
  EXPECT_NE(with("tensorkey directory, format 99999999999999999999999\n").find("newer"),
            std::string::npos);
  for (const std::string_view text :
       {"", "tensorkey", "tensorkey directory, format 1", "tensorkey directory, format 0\n",
        "tensorkey directory, format 2", "tensorkey directory, format -2\n",
        "tensorkey directory, format \n", "another\n"}) {
    EXPECT_NE(with(text).find("another text"), std::string::npos) << text;
  }
  write(store + "/tensorkey.lock", std::string(kText) + "what later versions add\n");
  EXPECT_NO_THROW(Directory({.path = store}));
}

TEST_F(DirectoryTest, NetworkFileSystemsAreRefused) {
  for (const std::uint32_t magic :
       {0x6969U, 0x517BU, 0xFF534D42U, 0xFE534D42U, 0x0BD00BD0U, 0x01021997U, 0x65735546U,
        0x00C36400U, 0x5346414FU, 0x73757245U, 0x47504653U, 0x19830326U}) {
    magic_for_all = magic;
    const std::string message = refusal({.path = path("a/b")});
    EXPECT_NE(message.find("node-local disk, or a pack"), std::string::npos) << message;
    EXPECT_FALSE(fs::exists(path("a")));  // what it made is gone
    EXPECT_NO_THROW(Directory({.path = path(), .allow_network = true}));
  }
  for (const std::uint32_t magic : {0xEF53U, 0x01021994U, 0x794C7630U}) {
    magic_for_all = magic;
    EXPECT_NO_THROW(Directory({.path = path()}));
  }
  magic_for_all = 0;
}

TEST_F(DirectoryTest, WhatCannotBeWrittenIsOpenedReadOnly) {
  { const Directory directory({.path = path()}); }
  const std::string bare = by_hand(0500, "bare");
  const auto look = [&] {
    ASSERT_EQ(::chmod(path().c_str(), 0500), 0);
    const Directory directory({.path = path()});
    EXPECT_TRUE(directory.read_only());
    EXPECT_FALSE(directory.open("index.db", O_RDWR | O_CREAT));
    EXPECT_EQ(errno, EACCES);
    ASSERT_EQ(::chmod(path().c_str(), 0700), 0);
    ASSERT_EQ(::chmod(path("store/tensorkey.lock").c_str(), 0400), 0);
    EXPECT_TRUE(Directory({.path = path()}).read_only());
    ASSERT_EQ(::chmod(path("store/tensorkey.lock").c_str(), 0), 0);
    refusal({.path = path()});
    EXPECT_NE(refusal({.path = bare}).find("none can be made"), std::string::npos);
    refusal({.path = bare + "/below"});
  };
  if (!is_root()) return look();
  for (const std::string& each : {path(), path("store/tensorkey.lock"), bare}) {
    ASSERT_EQ(::chown(each.c_str(), kOther, kOther), 0);
  }
  EXPECT_TRUE(as_user(kOther, kOther, {}, look));
}

TEST_F(DirectoryTest, AReadOnlyMount) {
  const std::string mount = by_hand(0700, "mount");
  if (!is_root() || ::mount("none", mount.c_str(), "tmpfs", 0, "size=1m,mode=0700") != 0) {
    GTEST_SKIP() << "needs to mount";
  }
  { const Directory directory({.path = mount + "/store"}); }
  fs::create_directory(mount + "/bare");
  fs::permissions(mount + "/bare", fs::perms{0700});
  EXPECT_EQ(::mount("none", mount.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr), 0);
  EXPECT_TRUE(Directory({.path = mount + "/store"}).read_only());
  EXPECT_NE(refusal({.path = mount + "/bare"}).find("none can be made"), std::string::npos);
  refusal({.path = mount + "/new"});
  EXPECT_EQ(::umount(mount.c_str()), 0);
}

TEST_F(DirectoryTest, AFullDisk) {
  const std::string mount = by_hand(0700, "mount");
  if (!is_root() || ::mount("none", mount.c_str(), "tmpfs", 0, "size=64k,mode=0700") != 0) {
    GTEST_SKIP() << "needs to mount";
  }
  write(mount + "/filler", std::string(1 << 17, 'x'));
  EXPECT_NE(refusal({.path = mount + "/store"}).find("No space"), std::string::npos);
  EXPECT_FALSE(fs::exists(mount + "/store"));
  EXPECT_EQ(::umount(mount.c_str()), 0);
}

TEST_F(DirectoryTest, OpensRegularFilesOnly) {
  const Directory directory({.path = path(), .mode = 0770});
  EXPECT_FALSE(directory.open("index.db", O_RDONLY));
  EXPECT_EQ(errno, ENOENT);
  const mode_t before = ::umask(0777);
  {
    const Descriptor file = directory.open("index.db", O_RDWR | O_CREAT);
    ASSERT_TRUE(file);
    EXPECT_EQ(::write(file.get(), "abc", 3), 3);
    EXPECT_NE(::fcntl(file.get(), F_GETFD) & FD_CLOEXEC, 0);
  }
  ::umask(before);
  EXPECT_EQ(permissions(directory.path_of("index.db")), 0660U);
  EXPECT_FALSE(directory.open("index.db", O_RDWR | O_CREAT | O_EXCL));
  EXPECT_EQ(errno, EEXIST);
  ASSERT_EQ(::chmod(directory.path_of("index.db").c_str(), 0640), 0);
  EXPECT_TRUE(directory.open("index.db", O_RDWR | O_CREAT));  // not made by this call
  EXPECT_EQ(permissions(directory.path_of("index.db")), 0640U);
  EXPECT_EQ(read(directory.path_of("index.db")), "abc");

  fs::create_symlink(directory.path_of("index.db"), directory.path_of("000000000001.seg"));
  fs::create_directory(directory.path_of("000000000002.seg"));
  ASSERT_EQ(::mkfifo(directory.path_of("000000000003.seg").c_str(), 0600), 0);
  for (const int flags : {O_RDONLY, O_RDWR, O_RDWR | O_CREAT}) {
    for (const std::uint64_t id : {1U, 2U, 3U}) {
      EXPECT_FALSE(directory.open(segment_name(id), flags)) << id;
      EXPECT_NE(errno, 0);
    }
  }
  EXPECT_TRUE(directory.segments().empty());
  EXPECT_FALSE(directory.open(std::string(300, 'x'), O_RDONLY));
  EXPECT_EQ(errno, ENAMETOOLONG);
}

TEST_F(DirectoryTest, RemovesAndRenames) {
  const Directory directory({.path = path()});
  EXPECT_FALSE(directory.remove("index.db"));
  EXPECT_EQ(errno, ENOENT);
  EXPECT_TRUE(directory.open("index.db.new", O_RDWR | O_CREAT));
  EXPECT_TRUE(directory.rename("index.db.new", "index.db"));
  EXPECT_TRUE(directory.exists("index.db"));
  EXPECT_FALSE(directory.exists("index.db.new"));
  EXPECT_FALSE(directory.rename("index.db.new", "index.db"));
  EXPECT_TRUE(directory.remove("index.db"));
  EXPECT_FALSE(directory.exists("index.db"));
}

TEST_F(DirectoryTest, CountsBlocks) {
  const Directory directory({.path = path()});
  const std::uint64_t lock = directory.allocated("tensorkey.lock");
  EXPECT_EQ(directory.allocated(), lock);
  EXPECT_EQ(directory.allocated(segment_name(7)), 0U);
  for (const std::uint64_t id : {300U, 7U, 12U}) {
    const Descriptor file = directory.open(segment_name(id), O_RDWR | O_CREAT);
    if (::fallocate(file.get(), 0, 0, 1 << 20) != 0) GTEST_SKIP() << "needs fallocate";
  }
  EXPECT_GE(directory.allocated(segment_name(7)), 1U << 20);
  const std::uint64_t three = directory.allocated(segment_name(7)) +
                              directory.allocated(segment_name(12)) +
                              directory.allocated(segment_name(300));
  EXPECT_EQ(directory.allocated(), lock + three);
  EXPECT_EQ(directory.segments(), (std::vector<std::uint64_t>{7, 12, 300}));
  write(path("store/foreign"), std::string(10'000, 'x'));
  EXPECT_EQ(directory.allocated(), lock + three + directory.allocated("foreign"));
}

TEST_F(DirectoryTest, NoticesThatItIsGone) {
  const Directory directory({.path = path()});
  fs::rename(path(), path("elsewhere"));
  EXPECT_TRUE(directory.moved());
  EXPECT_TRUE(directory.open("tensorkey.lock", O_RDONLY));
  const Directory other({.path = path()});
  EXPECT_TRUE(directory.moved());
  EXPECT_FALSE(other.moved());
  fs::remove_all(path("elsewhere"));
  EXPECT_TRUE(directory.moved());
  EXPECT_FALSE(directory.open("index.db", O_RDWR | O_CREAT));
  EXPECT_EQ(directory.allocated(), 0U);
  EXPECT_TRUE(directory.segments().empty());
}

TEST_F(DirectoryTest, ManyMakeItAtOnce) {
  for (int round = 0; round < 20; ++round) {
    const std::string store = path(std::to_string(round) + "/store");
    std::atomic<int> good{0};
    std::array<std::thread, 8> threads;
    for (std::thread& thread : threads) {
      thread = std::thread([&] {
        const Directory directory({.path = store});
        if (directory.open("index.db", O_RDWR | O_CREAT)) ++good;
        (void)directory.allocated();
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(good, 8);
    EXPECT_EQ(read(store + "/tensorkey.lock"), kText);
    EXPECT_EQ(std::distance(fs::directory_iterator(store), {}), 2);
  }
}

}  // namespace
}  // namespace tensorkey::internal
