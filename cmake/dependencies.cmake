# Finds each dependency and says which package brings it. Nothing is downloaded.
include(FindPackageHandleStandardArgs)

# xxHash and Highway are used through their headers alone: Debian's static libxxhash lacks the
# run-time dispatched entry points, and it has no static libhwy. Choosing the instruction set at run
# time takes twenty lines (src/digest/cpu.h), and the library links nothing but threads.
find_path(XXHASH_INCLUDE_DIR xxhash.h)
if(NOT XXHASH_INCLUDE_DIR)
  message(FATAL_ERROR "xxHash was not found; on Debian: apt-get install libxxhash-dev")
endif()
find_path(HWY_INCLUDE_DIR hwy/highway.h)
if(NOT HWY_INCLUDE_DIR)
  message(FATAL_ERROR "Highway was not found; on Debian: apt-get install libhwy-dev")
endif()

# The archive, not the shared library: a wheel must need nothing.
find_package(zstd)
if(NOT TARGET zstd::libzstd_static)
  message(FATAL_ERROR "libzstd.a was not found; on Debian: apt-get install libzstd-dev")
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

# 3.37 has extended codes from opening and a full set of switches against hostile files.
list(PREPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
find_package(SQLiteArchive 3.37 QUIET)
list(POP_FRONT CMAKE_MODULE_PATH)
if(NOT SQLiteArchive_FOUND)
  message(FATAL_ERROR
    "libsqlite3.a, 3.37 or newer, was not found; on Debian: apt-get install libsqlite3-dev")
endif()

if(TENSORKEY_TESTS)
  find_package(GTest)
  if(NOT GTest_FOUND)
    message(FATAL_ERROR "GoogleTest was not found; on Debian: apt-get install libgtest-dev")
  endif()
endif()
if(TENSORKEY_BENCH)
  find_package(benchmark)
  if(NOT benchmark_FOUND)
    message(FATAL_ERROR "Google Benchmark was not found; on Debian: apt-get install libbenchmark-dev")
  endif()
endif()
