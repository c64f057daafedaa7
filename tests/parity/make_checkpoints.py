#!/usr/bin/env python3
"""Makes tiny random checkpoints of every dense family and option, as transformers saves them.

Usage: make_checkpoints.py <folder>. Made with transformers 5.23.0 and torch 2.15.0 (scripts/parity-requirements.txt);
weights are drawn from torch.manual_seed(<position in the table below>). Weights are large enough that each option shows
in the logits, and multiples of what bf16 holds, so that a bf16 model starts from the same numbers."""

import json
import pathlib
import sys

import torch
import transformers

BASE = dict(vocab_size=131, hidden_size=64, intermediate_size=112, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15, bos_token_id=1, eos_token_id=2,
            pad_token_id=None)

LINEAR = dict(rope_type="linear", factor=2.5, rope_theta=10000.0)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32, rope_theta=500000.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=10000.0)
WINDOW = dict(use_sliding_window=True, sliding_window=9, max_window_layers=1)

# name: (family, changes to BASE, how it is saved)
CHECKPOINTS = {
    "llama-tied": ("llama", dict(tie_word_embeddings=True), {}),
    "llama-untied": ("llama", dict(tie_word_embeddings=False), {}),
    "llama-mha": ("llama", dict(num_key_value_heads=4, rms_norm_eps=1e-5), {}),
    "llama-one-kv-head": ("llama", dict(num_attention_heads=8, num_key_value_heads=1), {}),
    "llama-head-dim": ("llama", dict(head_dim=40), {}),
    "llama-odd-sizes": ("llama", dict(hidden_size=60, intermediate_size=75, num_attention_heads=6, vocab_size=61), {}),
    "llama-linear": ("llama", dict(rope_parameters=LINEAR), {}),
    "llama-linear-old-dialect": ("llama", dict(rope_parameters=LINEAR), dict(old_dialect=True)),
    "llama-llama3": ("llama", dict(rope_parameters=LLAMA3), {}),
    "llama-llama3-old-dialect": ("llama", dict(rope_parameters=LLAMA3), dict(old_dialect=True)),
    "llama-yarn": ("llama", dict(rope_parameters=YARN), {}),
    "llama-yarn-old-dialect": ("llama", dict(rope_parameters=YARN), dict(old_dialect=True)),
    "llama-yarn-mscale": ("llama", dict(rope_parameters=dict(YARN, mscale=0.7, mscale_all_dim=1.0, beta_fast=8.0,
                                                             beta_slow=2.0, truncate=False)), {}),
    "llama-yarn-attention-factor": ("llama", dict(rope_parameters=dict(YARN, attention_factor=1.3)), {}),
    "llama-attention-bias": ("llama", dict(attention_bias=True), {}),
    "llama-mlp-bias": ("llama", dict(mlp_bias=True), {}),
    "llama-bf16": ("llama", {}, dict(dtype=torch.bfloat16)),
    "llama-fp16": ("llama", {}, dict(dtype=torch.float16)),
    "llama-sharded": ("llama", {}, dict(max_shard_size="100KB")),
    "qwen2": ("qwen2", {}, {}),
    "qwen2-tied": ("qwen2", dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
                   dict(old_dialect=True)),
    "qwen2-window": ("qwen2", WINDOW, {}),
    "qwen2-window-off": ("qwen2", dict(WINDOW, use_sliding_window=False), dict(drop=["layer_types"])),
    "qwen2-window-old-dialect": ("qwen2", WINDOW, dict(old_dialect=True, drop=["layer_types"])),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=YARN), {}),
    "qwen3": ("qwen3", dict(head_dim=24), {}),
    "qwen3-tied": ("qwen3", dict(head_dim=24, tie_word_embeddings=True), dict(old_dialect=True)),
    "qwen3-attention-bias": ("qwen3", dict(head_dim=16, attention_bias=True), {}),
    "qwen3-layer-types": ("qwen3", dict(WINDOW, head_dim=16, layer_types=["sliding_attention", "full_attention",
                                                                         "sliding_attention"]), {}),
    "mistral-window": ("mistral", dict(sliding_window=9), {}),
    "mistral-no-window": ("mistral", dict(sliding_window=None), {}),
}

FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
}


@torch.no_grad()
def randomise(model, deviation):
    """Norms around one, biases around zero, all representable in bf16."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
        elif name.endswith(".bias"):
            parameter.copy_(0.5 * torch.randn_like(parameter))
        else:
            parameter.copy_(deviation * torch.randn_like(parameter))
        parameter.copy_(parameter.bfloat16())


def use_old_dialect(config):
    """What transformers 4 writes: "rope_theta" beside "rope_scaling", the latter null unless something is scaled."""
    rotary = config.pop("rope_parameters")
    config["rope_theta"] = rotary.pop("rope_theta")
    config["rope_scaling"] = None if rotary.get("rope_type") == "default" else rotary
    config["torch_dtype"] = config.pop("dtype")


def make(folder, name, seed):
    family, changes, saving = CHECKPOINTS[name]
    make_config, make_model = FAMILIES[family]
    torch.manual_seed(seed)
    model = make_model(make_config(**{**BASE, **changes}))
    randomise(model, BASE["initializer_range"])
    path = pathlib.Path(folder) / name
    model.to(saving.get("dtype", torch.float32)).save_pretrained(path, max_shard_size=saving.get("max_shard_size", "5GB"))
    config = json.loads((path / "config.json").read_text())
    if saving.get("old_dialect"):
        use_old_dialect(config)
    for key in saving.get("drop", []):
        del config[key]
    (path / "config.json").write_text(json.dumps(config, indent=2))
    return path


def make_all(folder):
    return [make(folder, name, seed) for seed, name in enumerate(CHECKPOINTS)]


if __name__ == "__main__":
    print("\n".join(str(path) for path in make_all(sys.argv[1])))
