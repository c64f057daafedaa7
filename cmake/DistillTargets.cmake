# How every target of distill is built: warnings, sanitizers, linker, compiler cache and the shared precompiled header.

add_library(distill_options INTERFACE)
target_compile_features(distill_options INTERFACE cxx_std_20)
target_compile_options(distill_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror>
  # GCC 12 reports these inside the standard library and fmt once it inlines at -O3.
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-restrict;-Wno-stringop-overflow;-Wno-array-bounds>
  # Threads of at::parallel_for: LibTorch's ATen/Parallel.h runs on OpenMP.
  $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
target_link_options(distill_options INTERFACE -fopenmp)

find_program(MOLD mold)
if(MOLD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_link_options(distill_options INTERFACE -fuse-ld=mold)
endif()

if(DISTILL_SANITIZE)
  target_compile_options(distill_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${DISTILL_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>)
  target_link_options(distill_options INTERFACE -fsanitize=${DISTILL_SANITIZE})
  if(DISTILL_SANITIZE STREQUAL thread)
    # LibTorch's headers order memory with fences, which ThreadSanitizer does not follow.
    target_compile_options(distill_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-tsan>)
  endif()
endif()

find_program(CCACHE ccache)
if(CCACHE)
  # Precompiled headers are only cached with these sloppiness flags (ccache manual, "Precompiled headers").
  # The base folder lets several checkouts share the cache.
  set(CMAKE_CXX_COMPILER_LAUNCHER
    ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
    CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE})
  add_compile_options($<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-fpch-preprocess>)
endif()

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_VERIFY_INTERFACE_HEADER_SETS ON) # target all_verify_interface_header_sets: each public header alone
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
set(CMAKE_INSTALL_RPATH $ORIGIN/../${CMAKE_INSTALL_LIBDIR} ${_torch}/lib)

# One precompiled header for every target that uses tensors; building it takes longer than most of our files.
add_library(distill_torch_pch OBJECT ${PROJECT_SOURCE_DIR}/cmake/torch_pch.cpp)
target_precompile_headers(distill_torch_pch PRIVATE <ATen/ATen.h> <fmt/format.h> <string> <vector>)
target_link_libraries(distill_torch_pch PRIVATE distill_options torch::cpu fmt::fmt)

# distill_library(<folder> [TORCH] SOURCES ... HEADERS ... [PUBLIC ...] [PRIVATE ...])
# The library of one folder, as target distill_<folder> with the alias distill::<folder>.
function(distill_library folder)
  cmake_parse_arguments(arg "TORCH" "" "SOURCES;HEADERS;PUBLIC;PRIVATE" ${ARGN})
  set(target distill_${folder})
  add_library(${target} ${arg_SOURCES})
  add_library(distill::${folder} ALIAS ${target})
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${arg_HEADERS})
  target_link_libraries(${target} PUBLIC ${arg_PUBLIC} PRIVATE $<BUILD_INTERFACE:distill_options> ${arg_PRIVATE})
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${folder} VERSION ${PROJECT_VERSION} SOVERSION 0)
  if(arg_TORCH)
    target_precompile_headers(${target} REUSE_FROM distill_torch_pch)
  endif()
  set_property(GLOBAL APPEND PROPERTY DISTILL_LIBRARIES ${target})
endfunction()
