#!/usr/bin/env bash
# Checks the C++ files that differ from a base commit (default: main) with clang-format and clang-tidy.
#   scripts/lint.sh            what this branch changed
#   scripts/lint.sh --all      every file of the repository
#   scripts/lint.sh --fix BASE reformats in place; clang-tidy only reports
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=main
format=(clang-format --dry-run -Werror)
all=false
for argument in "$@"; do
  case $argument in
    --all) all=true ;;
    --fix) format=(clang-format -i) ;;
    *) base=$argument ;;
  esac
done

if $all; then
  changed=$(git ls-files)
else
  changed=$(git diff --name-only --diff-filter=d "$(git merge-base "$base" HEAD)"; git ls-files --others --exclude-standard)
fi
mapfile -t sources < <(grep -E '\.(h|cpp|cu|cuh)$' <<<"$changed" | sort -u)
mapfile -t units < <(grep -E '\.cpp$' <<<"$changed" | sort -u)
if [ ${#sources[@]} = 0 ]; then
  echo "lint: no C++ file differs from $base"
  exit 0
fi
echo "lint: ${#sources[@]} files"
"${format[@]}" "${sources[@]}"

[ ${#units[@]} -gt 0 ] || exit 0
[ -f build/release/compile_commands.json ] || cmake --preset release >/dev/null
mkdir -p build/lint
python3 scripts/clang_compile_commands.py build/release/compile_commands.json >build/lint/compile_commands.json
# Units that the build does not have (the CUDA side of a CPU build, say) cannot be parsed.
mapfile -t units < <(python3 -c 'import json, sys, os
known = {os.path.relpath(entry["file"]) for entry in json.load(open("build/lint/compile_commands.json"))}
print(*(unit for unit in sys.argv[1:] if unit in known), sep="\n")' "${units[@]}")
printf '%s\n' "${units[@]}" | xargs --no-run-if-empty --max-args=1 --max-procs="$(nproc)" clang-tidy --quiet -p build/lint
