#!/usr/bin/env python3
"""Compares `distill logits` with transformers: tiny random checkpoints of every family and option
(make_checkpoints.py), and SmolLM2-135M-Instruct from its GGUF file where it is installed.

fp32: max |difference| <= 1e-4, for whole sequences and token by token through the cache. (For SmolLM2, whose logits
reach 36, 1e-3.)
bf16: our error against transformers' fp32 logits is at most 1.25 times the error of transformers' own bf16 model (root
mean square over all logits).

The program is named by $DISTILL."""

import json
import os
import pathlib
import subprocess
import sys

import torch
import transformers
from safetensors.torch import load_file

import make_checkpoints

FP32_BOUND = 1e-4
BF16_RATIO = 1.25
LENGTHS = [1, 2, 17, 96]  # beyond the sliding windows and the unscaled contexts of the checkpoints


def draw_tokens(vocab_size, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]


def ours(model, sequences, dtype, incremental, *options):
    pathlib.Path("tokens.jsonl").write_text("".join(json.dumps(ids) + "\n" for ids in sequences))
    command = [os.environ["DISTILL"], "--log-level", "error", "--threads", "1", "logits", "--model", model, "--tokens", "tokens.jsonl",
               "--out", "logits.safetensors", "--dtype", dtype, *options]
    run = subprocess.run(command + ["--incremental"] * incremental, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {run.stderr}")
    tensors = load_file("logits.safetensors")
    return [tensors[str(i)] for i in range(len(sequences))]


@torch.no_grad()
def theirs(model, sequences, incremental):
    results = []
    for ids in sequences:
        tokens = torch.tensor([ids])
        if not incremental:
            results.append(model(tokens).logits[0].float())
            continue
        cache, rows = None, []
        for t in range(len(ids)):
            output = model(tokens[:, t:t + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            rows.append(output.logits[0].float())
        results.append(torch.cat(rows))
    return results


def largest_difference(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def root_mean_square(a, b):
    return torch.cat([(x - y).flatten() for x, y in zip(a, b, strict=True)]).square().mean().sqrt().item()


def compare(name, path, load, sequences, bound, incremental_peer=True):
    """Prints one line; returns whether it holds."""
    peer = load(torch.float32)
    reference = theirs(peer, sequences, False)
    stepwise = theirs(peer, sequences, True) if incremental_peer else reference
    whole = ours(path, sequences, "fp32", False)
    for a, b in zip(whole, reference, strict=True):
        if a.shape != b.shape or a.dtype != torch.float32:
            sys.exit(f"{name}: logits of shape {a.shape} and type {a.dtype}, not {b.shape} and fp32")
    full = largest_difference(whole, reference)
    incremental = largest_difference(ours(path, sequences, "fp32", True), stepwise)
    peer_error = root_mean_square(theirs(load(torch.bfloat16), sequences, False), reference)
    ratios = [root_mean_square(ours(path, sequences, "bf16", mode), reference) / peer_error for mode in (False, True)]
    good = max(full, incremental) <= bound and max(ratios) <= BF16_RATIO
    size = max(x.abs().max().item() for x in reference)
    print(f"{name:30} {full:9.1e} {incremental:12.1e} {size:8.1f} {peer_error:10.4f} {ratios[0]:6.2f} {ratios[1]:6.2f}"
          f"{'' if good else '   FAILED'}", flush=True)
    return good


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = pathlib.Path("checkpoints")
    print("                               fp32, max |difference|  largest   bf16, rms error: transformers', ours / theirs\n"
          "                                    full  incremental    logit             full  incremental")
    good = True
    for path in make_checkpoints.make_all(folder):
        def load(dtype):
            return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

        vocab_size = json.loads((path / "config.json").read_text())["vocab_size"]
        good &= compare(path.name, path, load, draw_tokens(vocab_size, LENGTHS), FP32_BOUND)

    deps = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
    smollm2 = deps / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if smollm2.exists():
        def load_gguf(dtype):
            return transformers.AutoModelForCausalLM.from_pretrained(deps, gguf_file=smollm2.name, dtype=dtype).eval()

        text = list(range(500, 560)) + [11, 260, 28, 42, 30] * 3
        good &= compare("SmolLM2-135M-Instruct (GGUF)", smollm2, load_gguf, [text], 10 * FP32_BOUND,
                        incremental_peer=False)
    else:
        print(f"SmolLM2 is not at {smollm2} (scripts/setup.sh --model): not compared")
    if not good:
        sys.exit(f"differences above {FP32_BOUND} (fp32) or {BF16_RATIO} times transformers' own (bf16)")


if __name__ == "__main__":
    main()
