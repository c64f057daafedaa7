#!/usr/bin/env bash
# Distils a real model on this machine, from nothing: sets up, builds, then runs `distill quickstart` on SmolLM2-135M.
# Arguments go to `distill quickstart`: --full for a long run, --out DIR for another place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh --model
cmake --preset release >/dev/null
cmake --build --preset release --target distill
exec build/release/bin/distill quickstart --teacher "${DISTILL_DEPS:-$HOME/.cache/distill}/SmolLM2-135M-Instruct.Q4_1.gguf" "$@"
