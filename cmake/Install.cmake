# `cmake --install` gives bin/distill, the libraries with their headers, and a package for find_package(Distill).
include(CMakePackageConfigHelpers)

get_property(_libraries GLOBAL PROPERTY DISTILL_LIBRARIES)
# The program is no part of the package: its target would share a name with the library of distill/.
install(TARGETS distill RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS ${_libraries} EXPORT DistillTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/distill)
# Prompts and recipes lie at the same place beside the program in the build folder (core/shared_files.h).
install(DIRECTORY recipes DESTINATION share/distill)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/share/distill)
file(CREATE_LINK ${CMAKE_CURRENT_SOURCE_DIR}/recipes ${CMAKE_BINARY_DIR}/share/distill/recipes SYMBOLIC)

set(_package ${CMAKE_INSTALL_LIBDIR}/cmake/Distill)
install(EXPORT DistillTargets NAMESPACE distill:: DESTINATION ${_package})
configure_package_config_file(cmake/DistillConfig.cmake.in DistillConfig.cmake INSTALL_DESTINATION ${_package})
write_basic_package_version_file(DistillConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/DistillConfig.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/DistillConfigVersion.cmake
  cmake/Dependencies.cmake
  DESTINATION ${_package})
