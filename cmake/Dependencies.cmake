# Finds what distill builds on. LibTorch comes from the PyPI wheel that scripts/setup.sh unpacks; the wheel's own
# TorchConfig.cmake drags in the whole CUDA toolkit, so its libraries are imported here by hand.

set(_deps "$ENV{DISTILL_DEPS}")
if(NOT _deps)
  set(_deps "$ENV{HOME}/.cache/distill")
endif()
file(GLOB _torch_default LIST_DIRECTORIES true "${_deps}/libtorch-2.15.0/lib/python3*/site-packages")
set(DISTILL_LIBTORCH "${_torch_default}" CACHE PATH "Folder that holds torch/ and nvidia/ as the PyPI wheels lay them out")

set(_torch ${DISTILL_LIBTORCH}/torch)
set(_cuda_wheel ${DISTILL_LIBTORCH}/nvidia/cu13)
if(NOT EXISTS ${_torch}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "No LibTorch in '${DISTILL_LIBTORCH}'. Run scripts/setup.sh or set -DDISTILL_LIBTORCH=<site-packages>.")
endif()

function(import_torch_library target file)
  add_library(${target} SHARED IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${_torch}/lib/${file})
endfunction()

import_torch_library(torch::c10 libc10.so)
import_torch_library(torch::cpu libtorch_cpu.so)
# After the system's folders: the wheel brings a copy of fmt that must not shadow the one we and spdlog link with.
target_compile_options(torch::cpu INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${_torch}/include>"
  "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${_torch}/include/torch/csrc/api/include>")
target_link_libraries(torch::cpu INTERFACE torch::c10)
target_link_options(torch::cpu INTERFACE LINKER:-rpath-link,${_cuda_wheel}/lib)
if(DISTILL_CUDA)
  find_package(CUDAToolkit REQUIRED)
  import_torch_library(torch::c10_cuda libc10_cuda.so)
  import_torch_library(torch::cuda libtorch_cuda.so)
  target_link_libraries(torch::cuda INTERFACE torch::cpu torch::c10_cuda CUDA::cudart)
  # Nothing is called in libtorch_cuda.so by name: loading it registers LibTorch's CUDA operators. cuDNN, NVSHMEM and
  # cuSPARSELt, which it needs, come with the full torch installation of a GPU machine, not with the build.
  target_link_options(torch::cuda INTERFACE LINKER:--no-as-needed LINKER:--allow-shlib-undefined)
endif()

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(CURL REQUIRED)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(ICU REQUIRED COMPONENTS uc)
find_library(CLD2_LIBRARY cld2 REQUIRED)
find_path(CLD2_INCLUDE cld2/public/compact_lang_det.h REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
