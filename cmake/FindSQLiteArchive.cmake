# SQLite's archive and header: SQLite brings no CMake package, and CMake's own module finds the shared
# library. Defines SQLiteArchive::sqlite3, SQLiteArchive_VERSION and SQLiteArchive_FOUND. Installed
# beside tensorkey-config.cmake, so that no path of the building machine is in the package.
find_library(SQLiteArchive_LIBRARY
  NAMES ${CMAKE_STATIC_LIBRARY_PREFIX}sqlite3${CMAKE_STATIC_LIBRARY_SUFFIX})
find_path(SQLiteArchive_INCLUDE_DIR sqlite3.h)
mark_as_advanced(SQLiteArchive_LIBRARY SQLiteArchive_INCLUDE_DIR)

if(SQLiteArchive_INCLUDE_DIR)
  file(STRINGS ${SQLiteArchive_INCLUDE_DIR}/sqlite3.h SQLiteArchive_VERSION
    REGEX "^#define SQLITE_VERSION +\"")
  string(REGEX REPLACE ".*\"([0-9.]+)\".*" "\\1" SQLiteArchive_VERSION "${SQLiteArchive_VERSION}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(SQLiteArchive
  REQUIRED_VARS SQLiteArchive_LIBRARY SQLiteArchive_INCLUDE_DIR
  VERSION_VAR SQLiteArchive_VERSION)

if(SQLiteArchive_FOUND AND NOT TARGET SQLiteArchive::sqlite3)
  find_package(Threads)
  add_library(SQLiteArchive::sqlite3 STATIC IMPORTED)
  set_target_properties(SQLiteArchive::sqlite3 PROPERTIES
    IMPORTED_LOCATION ${SQLiteArchive_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${SQLiteArchive_INCLUDE_DIR}
    # Its SQL functions call libm; dlopen and threads are part of libc since glibc 2.34.
    INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS};m")
endif()
