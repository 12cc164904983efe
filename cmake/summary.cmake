# The last words of a configure run: what will be built, and from what.
message(STATUS "tensorkey ${PROJECT_VERSION}, ${CMAKE_BUILD_TYPE}, ${CMAKE_CXX_COMPILER_ID} "
  "${CMAKE_CXX_COMPILER_VERSION}")
foreach(part PYTHON TESTS BENCH INSTALL WERROR)
  message(STATUS "  TENSORKEY_${part}: ${TENSORKEY_${part}}")
endforeach()
message(STATUS "  xxHash: ${XXHASH_INCLUDE_DIR}, Highway: ${HWY_INCLUDE_DIR}")
message(STATUS "  zstd: ${zstd_VERSION}, ${zstd_DIR}")
message(STATUS "  SQLite: ${SQLiteArchive_VERSION}, ${SQLiteArchive_LIBRARY}")
message(STATUS "  ccache: ${CCACHE_PROGRAM}")
