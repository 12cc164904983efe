# What `cmake --install` puts in place: the archive, the public headers, the programs, and a package
# that find_package(tensorkey) finds and that defines tensorkey::tensorkey.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/tensorkey)

install(TARGETS tensorkey tensorkey-torch EXPORT tensorkey-targets FILE_SET HEADERS)
if(TARGET tensorkey-simulate)
  install(TARGETS tensorkey-simulate)
endif()
install(EXPORT tensorkey-targets NAMESPACE tensorkey:: DESTINATION ${package_dir})

configure_package_config_file(cmake/tensorkey-config.cmake.in tensorkey-config.cmake
  INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tensorkey-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/tensorkey-config.cmake
  ${PROJECT_BINARY_DIR}/tensorkey-config-version.cmake
  ${PROJECT_SOURCE_DIR}/cmake/FindSQLiteArchive.cmake
  DESTINATION ${package_dir})
install(FILES LICENSE THIRD_PARTY_NOTICES.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
