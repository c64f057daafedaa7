#!/usr/bin/env python3
"""Draws targets from SmolLM2-135M's logits of a few sentences and checks that they are unbiased and of the variance that
docs/targets.md states: target_statistics.py MODEL CHECK_TARGET_STATISTICS. The program is named by $DISTILL."""

import json
import os
import subprocess
import sys

TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Once upon a time there was a little girl who lived near the forest with her grandmother.",
    "To solve the equation 2x + 3 = 7, subtract 3 from both sides and divide by 2.",
]

model, check = sys.argv[1:]
program = os.environ["DISTILL"]
ids = subprocess.run([program, "tokenize", "--model", model], input="\n".join(map(json.dumps, TEXTS)), check=True, capture_output=True, text=True)
subprocess.run([program, "logits", "--model", model, "--tokens", "-", "--out", "logits.safetensors"], input=ids.stdout,
               check=True, text=True)
sys.exit(subprocess.run([check, "logits.safetensors"]).returncode)
