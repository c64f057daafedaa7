#!/usr/bin/env bash
# Builds distill and runs its tests. --quick runs only the unit tests, without the Python peers of the parity suites.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" = --quick ]; then
  scripts/setup.sh
  selection=(-L unit)
else
  scripts/setup.sh --parity
  selection=()
fi
cmake --preset release >/dev/null
cmake --build --preset release
ctest --test-dir build/release --output-on-failure --parallel 2 "${selection[@]}"
