#!/usr/bin/env bash
# Builds distill and runs its tests. Each test has a label that says what kind it is: unit, simt (CUDA kernels executed
# on the CPU), parity (against other programs), fault, fuzz, package (the installed package), style.
#   --quick      only the unit tests, without the Python peers of the parity suites
#   --sanitizers the unit tests once more, built with AddressSanitizer and UndefinedBehaviorSanitizer
# Further arguments go to ctest: scripts/test.sh --quick -R TraceWriter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
selection=()
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
    shift
    ;;
esac

scripts/setup.sh "${setup[@]}"
cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset"
exec ctest --preset "$preset" "${selection[@]}" "$@"
