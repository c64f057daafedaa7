#!/usr/bin/env python3
"""Compares DeepSeek models with transformers on tiny random checkpoints (make_deepseek_checkpoints.py).

fp32: max |difference| of logits <= 1e-4, for whole sequences (naive attention) and token by token through the cache
(absorbed attention); every token goes to the same experts. The same for the logits of multi-token-prediction modules,
which get their own embeddings and heads in transformers too, where it would take the model's. FP8 checkpoints are
compared with transformers on their dequantised weights.
bf16: our error against transformers' fp32 logits is at most 1.5 times the error of transformers' own bf16 model. A
token's error is the root mean square over its logits; compared are the medians over tokens, for where a rounding sends
a token to another expert its error is of another kind, in both.
A cache in FP8 (--cache-dtype fp8, token by token in fp32): the same error, relative to the logits, is at most 0.15: E4M3
rounds by 1/16 at most, and so tiny models have few numbers in which errors could cancel.

The programs are named by $DISTILL and $DUMP_DEEPSEEK."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import torch
import transformers
from safetensors.torch import load_file
from transformers.modeling_layers import MtpModel

import make_deepseek_checkpoints as checkpoints
from logits_parity import (FP32_BOUND, draw_tokens, largest_difference, ours, theirs)

LENGTHS = [1, 2, 60]  # beyond YaRN's original context


# Both errors are medians over few tokens, and the peer's sums depend on how many threads it has; fp32 is the sharp test.
BF16_RATIO = 1.5
FP8_CACHE_BOUND = 0.15
# The other implementation of experts wants sizes that are multiples of 16 bytes.
EXPERTS = {"experts_implementation": "eager"}


def load_peer(path, name, dtype):
    family, _, saving = checkpoints.CHECKPOINTS[name]
    _, make_config, make_model = checkpoints.FAMILIES[family]
    if not saving.get("fp8"):
        return make_model.from_pretrained(path, dtype=dtype, **EXPERTS).eval()
    config = make_config.from_pretrained(path)
    del config.quantization_config
    plain = path.with_name(path.name + "-dequantised")
    if not plain.exists():
        plain.mkdir()
        config.save_pretrained(plain)
        checkpoints.save_file(checkpoints.dequantised_state(path), plain / "model.safetensors",
                              metadata={"format": "pt"})
    return make_model.from_pretrained(plain, dtype=dtype, **EXPERTS).eval()


def our_experts_and_drafts(path, sequences):
    """[sequence][layer] of sorted [tokens, experts per token]; of all sequences and modules, logits [tokens, vocab]."""
    pathlib.Path("tokens.jsonl").write_text("".join(json.dumps(ids) + "\n" for ids in sequences))
    subprocess.run([os.environ["DUMP_DEEPSEEK"], path, "tokens.jsonl", "inside.safetensors"], check=True)
    tensors = load_file("inside.safetensors")

    def numbered(kind, i):
        names = (f"{kind}.{i}.{number}" for number in itertools.count())
        return [tensors[name] for name in itertools.takewhile(tensors.__contains__, names)]

    return ([[chosen.long().sort(-1).values for chosen in numbered("routing", i)] for i in range(len(sequences))],
            [logits for i in range(len(sequences)) for logits in numbered("draft", i)])


@torch.no_grad()
def their_experts(model, sequences):
    chosen = []
    routers = [m for m in model.modules() if type(m).__name__.endswith("TopkRouter")]
    hooks = [router.register_forward_hook(lambda _, __, output: chosen.append(output[2].sort(-1).values))
             for router in routers]
    results = []
    for ids in sequences:
        chosen.clear()
        model(torch.tensor([ids]))
        results.append(list(chosen))
    for hook in hooks:
        hook.remove()
    return results


@torch.no_grad()
def their_drafts(model, path, sequences):
    """Of all sequences and modules: the logits [tokens, vocab] of what follows the token after each."""
    layers, depth = model.config.num_hidden_layers, model.config.num_mtp_layers
    # Transformers looks for the tensors of modules where the model it was written for has them, behind layer 60.
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{layers + module}\." for module in range(depth)]
    modules = MtpModel.from_pretrained(model).eval()
    state = checkpoints.dequantised_state(path)
    embedding, head = model.get_input_embeddings().weight, model.lm_head.weight
    results = []
    for ids in sequences:
        hidden = model.model(torch.tensor([ids])).last_hidden_state
        for module in range(min(depth, len(ids) - 1)):
            prefix = f"model.layers.{layers + module}."
            known = state.get(prefix + "embed_tokens.weight", embedding)[ids[module + 1:]]
            hidden = modules.forward_layer(module, hidden[:, :-1], torch.arange(len(known))[None], None,
                                           inputs_embeds=known[None])
            results.append(hidden[0] @ state.get(prefix + "shared_head.head.weight", head).T)
    return results


def median_error(a, b):
    errors = [(x - y).square().mean(-1).sqrt() for x, y in zip(a, b, strict=True)]
    return torch.cat(errors).median().item()


def compare(path, name):
    """Prints one line; returns whether it holds."""
    vocab_size = json.loads((path / "config.json").read_text())["vocab_size"]
    sequences = draw_tokens(vocab_size, LENGTHS)
    peer = load_peer(path, name, torch.float32)
    reference = theirs(peer, sequences, False)
    full = largest_difference(ours(path, sequences, "fp32", False), reference)
    incremental = largest_difference(ours(path, sequences, "fp32", True), theirs(peer, sequences, True))
    experts, drafts = our_experts_and_drafts(path, sequences)
    choices = [torch.equal(a, b) for mine, other in zip(experts, their_experts(peer, sequences), strict=True)
               for a, b in zip(mine, other, strict=True)]
    has_modules = "modules" in checkpoints.CHECKPOINTS[name][2]
    drafting = largest_difference(drafts, their_drafts(peer, path, sequences)) if has_modules else 0
    peer_error = median_error(theirs(load_peer(path, name, torch.bfloat16), sequences, False), reference)
    ratios = [median_error(ours(path, sequences, "bf16", mode), reference) / peer_error for mode in (False, True)]
    in_fp8 = ours(path, sequences, "fp32", True, "--cache-dtype", "fp8")
    cached = median_error(in_fp8, reference) / torch.cat(reference).square().mean().sqrt().item()
    good = (max(full, incremental, drafting) <= FP32_BOUND and has_modules == bool(drafts) and all(choices)
            and max(ratios) <= BF16_RATIO and cached <= FP8_CACHE_BOUND)
    size = max(x.abs().max().item() for x in reference)
    drafted = f"{drafting:.1e}" if has_modules else "-"
    print(f"{name:24} {full:9.1e} {incremental:12.1e} {drafted:>9} {size:8.1f}   {sum(choices):3}/{len(choices):<3}"
          f" {peer_error:10.4f} {ratios[0]:6.2f} {ratios[1]:6.2f} {cached:10.4f}{'' if good else '   FAILED'}", flush=True)
    return good


def main():
    torch.set_num_threads(2)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = pathlib.Path("deepseek-checkpoints")
    print("                         fp32, max |difference|            largest  equal     bf16, error: transformers', ours / theirs  FP8 cache,"
          "\n                              full  incremental    drafts    logit  routing             full  incremental      error")
    subprocess.run(["rm", "-rf", folder], check=True)
    good = True
    for seed, name in enumerate(checkpoints.CHECKPOINTS):
        good &= compare(checkpoints.make(folder, name, seed), name)
    if not good:
        sys.exit(f"differences above {FP32_BOUND} (fp32) or {BF16_RATIO} times transformers' own (bf16) or {FP8_CACHE_BOUND} (FP8 cache), or other experts")


if __name__ == "__main__":
    main()
