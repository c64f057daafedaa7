#!/usr/bin/env bash
# Builds distill and runs its tests. Each test has a label that says what kind it is: unit, simt (CUDA kernels executed
# on the CPU), parity (against other programs), browser (a report in chromium), fault (the program on bad input), fuzz,
# package (the installed package), style. Without an option all of them run, the fuzzers for a few seconds each;
# where nvcc is at hand, the CUDA kernels and NCCL's backend are compiled and linked as well.
#   --quick      only the unit tests, without the Python peers of the parity suites
#   --sanitizers the unit tests, built with AddressSanitizer and UndefinedBehaviorSanitizer (the SIMT tests are left
#                out: their fibers change stacks behind the sanitizers' backs)
#   --threads    those unit tests in which threads of our own meet, built with ThreadSanitizer (CONTRIBUTING.md says
#                which and why)
# Further arguments go to ctest: scripts/test.sh --quick -R TraceWriter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
selection=()
targets=()
options=()
setup=()
cuda=false
case ${1:-} in
  --quick)
    selection=(--label-regex unit)
    shift
    ;;
  --sanitizers)
    preset=asan
    targets=(--target cli_test core_test data_test distill_test kernels_test nn_test student_test teacher_test)
    shift
    ;;
  --threads)
    preset=tsan
    targets=(--target core_test data_test)
    selection=(--tests-regex '^(core|data)\.')
    export GTEST_FILTER='Progress.*:Tokenizer.*'
    shift
    ;;
  *)
    setup=(--parity --model --checks --fuzz --browser)
    options=(-DDISTILL_FUZZ=ON -DDISTILL_FUZZ_SECONDS=10)
    cuda=true
    ;;
esac

scripts/setup.sh "${setup[@]}"

if $cuda; then
  nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc || true)
  if [ -n "$nvcc" ]; then
    CUDACXX=$nvcc cmake --preset cuda >/dev/null
    cmake --build --preset cuda --target distill_kernels distill_nn
  else
    echo "test: the CUDA kernels are not compiled, for there is no nvcc here"
  fi
fi

cmake --preset "$preset" "${options[@]}" >/dev/null
cmake --build --preset "$preset" "${targets[@]}"
exec ctest --preset "$preset" "${selection[@]}" "$@"
