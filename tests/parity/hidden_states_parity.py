#!/usr/bin/env python3
"""Compares the hidden states that `distill generate --hidden-states` stores of every layer with `output_hidden_states`
of transformers on the same tokens: tiny random checkpoints of each architecture, all computed in fp32.

Of each value, bf16 is off by at most 1/256 and fp8 by 1/16 (or a 458752nd of the layer's largest); to that comes what
sums in another order make, at most 1e-5 of the layer's largest.

The program is named by $DISTILL."""

import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors import safe_open

import make_checkpoints
import make_deepseek_checkpoints
import tiny_run
from deepseek_parity import EXPERTS
from tiny_run import distill

DENSE = ["llama-tied", "llama-yarn", "qwen2-window", "qwen3", "mistral-window"]
DEEPSEEK = ["v3", "v2-groups"]
ROUNDING = {"bf16": 1 / 256, "fp8": 1 / 16}
SUMMATION = 1e-5


def make_models(folder):
    """Checkpoints with the tokenizer of the tiny run, whose vocabulary is larger than theirs would be."""
    make_checkpoints.BASE["vocab_size"] = tiny_run.VOCAB
    for base in (make_deepseek_checkpoints.V3, make_deepseek_checkpoints.V2):
        base["vocab_size"] = tiny_run.VOCAB
    tiny_run.make_teacher("tokenizer")
    models = [(make_checkpoints.make(folder, name, 1), {}) for name in DENSE]
    models += [(make_deepseek_checkpoints.make(folder, name, 1), EXPERTS) for name in DEEPSEEK]
    for path, _ in models:
        shutil.copy("tokenizer/tokenizer.json", path)
    return models


def compare(path, options, dtype):
    """The worst error as a share of what is allowed."""
    shutil.rmtree("traces", ignore_errors=True)
    layers = json.loads((path / "config.json").read_text())["num_hidden_layers"]
    distill("generate", "--teacher", path, "--prompts", "prompts.jsonl", "--out", "traces", "--samples", 2,
            "--max-new-tokens", 24, "--dtype", "fp32", "--hidden-states", ",".join(map(str, range(layers))) + ",last",
            "--hidden-dtype", dtype)  # fmt: skip
    distill("shards", "verify", "traces")
    distill("shards", "export", "traces", "--out", "traces.safetensors")
    with safe_open("traces.safetensors", "pt") as file:
        spec = json.loads(file.metadata()["provenance"])["hidden_states"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    states = tensors["hidden_states"].float()
    if dtype == "fp8":
        states *= tensors["hidden_scales"].repeat_interleave(128, 2)[..., : states.shape[2]]
    assert spec["layers"] == list(range(layers + 1)) and spec["last_layer"] == layers, spec
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()
    worst, position = 0.0, 0
    for begin, end, prompt in zip(tensors["token_offsets"], tensors["token_offsets"][1:], tensors["prompt_length"]):
        tokens = tensors["tokens"][begin:end].long()
        with torch.no_grad():
            theirs = torch.stack(peer(tokens[None], output_hidden_states=True).hidden_states, 2)[0, prompt - 1 : -1]
        ours = states[position : position + len(theirs)]
        position += len(theirs)
        largest = theirs.abs().amax((0, 2), keepdim=True)
        allowed = torch.maximum(theirs.abs() * ROUNDING[dtype], largest / 458752) + SUMMATION * largest
        worst = max(worst, ((ours - theirs).abs() / allowed).max().item())
    assert position == len(states) > 100, (position, len(states))
    print(f"{path.name} {dtype}: {position} tokens, {layers + 1} layers; the worst error is {worst:.3f} times what is allowed", flush=True)
    return worst


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    folder = pathlib.Path("checkpoints")
    prompts = [{"id": f"p{i}", "prompt": text[: 5 + 9 * i]} for i, text in enumerate(tiny_run.TEXT)]
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    worst = max(compare(path, options, dtype) for path, options in make_models(folder) for dtype in ROUNDING)
    if worst > 1:
        sys.exit(f"hidden states differ by {worst} times what is allowed")


if __name__ == "__main__":
    main()
