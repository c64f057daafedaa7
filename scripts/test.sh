#!/usr/bin/env bash
# Builds distill and runs its tests. Each test has a label that says what kind it is: unit, simt (CUDA kernels executed
# on the CPU), parity (against other programs), fault, fuzz, package (the installed package), style.
#   --quick      only the unit tests, without the Python peers of the parity suites
#   --sanitizers the unit tests of all folders up to student/, built with AddressSanitizer and
#                UndefinedBehaviorSanitizer
# Further arguments go to ctest: scripts/test.sh --quick -R TraceWriter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
selection=()
targets=()
setup=(--parity --model --checks)
case ${1:-} in
  --quick)
    setup=()
    selection=(--label-regex unit)
    shift
    ;;
  --sanitizers)
    preset=asan
    setup=()
    targets=(--target core_test data_test kernels_test nn_test student_test)
    selection=(--tests-regex '^(core|data|kernels|nn|student)\.')
    shift
    ;;
esac

scripts/setup.sh "${setup[@]}"
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset" "${targets[@]}"
exec ctest --preset "$preset" "${selection[@]}" "$@"
