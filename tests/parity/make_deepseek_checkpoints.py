#!/usr/bin/env python3
"""Makes tiny random DeepSeek checkpoints that cover every branch of the architecture: as transformers saves them, and in
the published form (config.json in the old dialect, FP8 matrices with block scales, prediction modules).

Usage: make_deepseek_checkpoints.py <folder>. Made with transformers 5.23.0 and torch 2.15.0
(scripts/parity-requirements.txt); weights are drawn from torch.manual_seed(<position in the table below>) and are
multiples of what bf16 holds."""

import json
import pathlib
import sys

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP


class EveryOtherLayer(transformers.DeepseekV3ForCausalLM):
    """Experts in layers 0, 2, ...: transformers lacks moe_layer_freq."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers[1::2]:
            layer.mlp = DeepseekV3MLP(config)


V3 = dict(vocab_size=131, hidden_size=64, intermediate_size=112, moe_intermediate_size=40, num_hidden_layers=4,
          num_attention_heads=4, num_key_value_heads=4, n_routed_experts=16, n_shared_experts=1, n_group=4, topk_group=2,
          num_experts_per_tok=4, first_k_dense_replace=1, kv_lora_rank=32, q_lora_rank=48, qk_rope_head_dim=16,
          qk_nope_head_dim=24, v_head_dim=20, max_position_embeddings=256, routed_scaling_factor=2.5,
          initializer_range=0.12)
V2 = dict(V3, n_shared_experts=2, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0,
          norm_topk_prob=False)
ODD = dict(vocab_size=67, hidden_size=150, intermediate_size=261, moe_intermediate_size=131, num_attention_heads=5,
           num_key_value_heads=5, n_routed_experts=9, n_group=3, topk_group=2, num_experts_per_tok=5, kv_lora_rank=70,
           q_lora_rank=133, qk_rope_head_dim=6, qk_nope_head_dim=33, v_head_dim=41)
YARN = dict(rope_type="yarn", factor=40.0, original_max_position_embeddings=32, rope_theta=10000.0, beta_fast=32,
            beta_slow=1, mscale=1.0, mscale_all_dim=1.0)
# What nearly all checkpoints have alike, otherwise.
UNUSUAL = dict(rms_norm_eps=1e-3, rope_parameters=dict(rope_type="default", rope_theta=50000.0))

# name: (family, changes to V3 or V2, how it is saved)
CHECKPOINTS = {
    "v3": ("v3", {}, {}),
    "v3-published-dialect": ("v3", dict(rope_parameters=YARN),
                             dict(published=True, max_shard_size="100KB", modules=2)),
    "v3-yarn-mscales-differ": ("v3", dict(rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=0.7)), {}),
    "v3-no-groups": ("v3", dict(UNUSUAL, n_group=1, topk_group=1), {}),
    "v3-no-q-lora": ("v3", dict(q_lora_rank=None), dict(modules=1, modules_share=True)),
    "v3-not-normalised": ("v3", dict(norm_topk_prob=False), {}),
    "v3-all-experts": ("v3", dict(first_k_dense_replace=0, num_experts_per_tok=16, topk_group=4), {}),
    "v3-all-dense": ("v3", dict(first_k_dense_replace=4), {}),
    "v3-attention-bias": ("v3", dict(attention_bias=True), {}),
    "v3-rope-halves": ("v3", dict(rope_interleave=False), {}),
    "v3-tied": ("v3", dict(tie_word_embeddings=True), dict(modules=1)),
    "v3-values-wider": ("v3", dict(v_head_dim=56), {}),
    "v3-odd-sizes": ("v3", ODD, dict(max_shard_size="300KB")),
    "v3-bf16": ("v3", {}, dict(dtype=torch.bfloat16)),
    "v3-fp16": ("v3", {}, dict(dtype=torch.float16)),
    "v3-fp8": ("v3", ODD, dict(fp8=True, published=True, max_shard_size="100KB", modules=1)),
    "v2-greedy": ("v2", {}, {}),
    "v2-no-q-lora": ("v2", dict(UNUSUAL, q_lora_rank=None, first_k_dense_replace=2), dict(published=True)),
    "v2-groups": ("v2", dict(topk_method="group_limited_greedy", n_group=8, topk_group=3, routed_scaling_factor=16.0),
                  {}),
    "v2-yarn": ("v2", dict(rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707)), dict(published=True)),
    "v2-fp8": ("v2", dict(kv_lora_rank=200), dict(fp8=True)),
    "v3-every-other-layer": ("v3-every-other-layer", {}, {}),
}

FAMILIES = {
    "v3": (V3, transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
    "v2": (V2, transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM),
    "v3-every-other-layer": (dict(V3, moe_layer_freq=2, first_k_dense_replace=0), transformers.DeepseekV3Config,
                             EveryOtherLayer),
}

SCORING = {"v3": dict(scoring_func="sigmoid", topk_method="noaux_tc", num_nextn_predict_layers=0, moe_layer_freq=1),
           "v2": dict(scoring_func="softmax", moe_layer_freq=1)}
QUANTISED = ("_proj.weight", "_proj_with_mqa.weight")
BLOCK = 128


def draw(name, shape, deviation):
    """Norms around one, biases around zero, all representable in bf16."""
    noise = torch.randn(shape)
    if name.endswith("norm.weight"):
        noise = 1 + 0.3 * noise
    else:
        noise *= 0.3 if name.endswith("bias") else deviation
    return noise.bfloat16().float()


@torch.no_grad()
def randomise(model, deviation):
    tensors = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n.endswith("correction_bias")}
    for name, tensor in tensors.items():
        tensor.copy_(draw(name, tensor.shape, deviation))


def quantise(weight):
    """e4m3 values and the scale of each block, as DeepSeek's fp8_cast does."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scales = blocks.abs().amax((1, 3)).clamp_min(1e-12) / 448
    values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).view(padded.shape)[:rows, :columns]
    return values.contiguous(), scales


def dequantise(values, scales):
    rows, columns = values.shape
    repeated = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
    return values.float() * repeated


def files_of(path):
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return [path / "model.safetensors"]
    return sorted({path / name for name in json.loads(index.read_text())["weight_map"].values()})


def rewrite_files(path, change):
    """What `change` makes of each file's tensors; an index is written anew."""
    places = {}
    for file in files_of(path):
        tensors = change(load_file(file))
        places |= {name: file.name for name in tensors}
        save_file(tensors, file, metadata={"format": "pt"})
    if (path / "model.safetensors.index.json").exists():
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def quantise_projections(tensors):
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(QUANTISED):
            result[name], result[name + "_scale_inv"] = quantise(tensor)
        else:
            result[name] = tensor
    return result


def add_modules(tensors, config, saving):
    """Multi-token-prediction modules (DeepSeek-V3 report, section 2.2), which transformers runs but does not save: a
    layer like the last one, what joins a token to the hidden state before it, and ends that are not the model's."""
    hidden, last = config.hidden_size, f"model.layers.{config.num_hidden_layers - 1}."
    parts = {name.removeprefix(last): tensor.shape for name, tensor in tensors.items() if name.startswith(last)}
    if "model.norm.weight" in tensors:
        parts |= {"enorm.weight": (hidden,), "hnorm.weight": (hidden,), "eh_proj.weight": (hidden, 2 * hidden),
                  "shared_head.norm.weight": (hidden,)}
        if not saving.get("modules_share"):
            parts |= dict.fromkeys(["embed_tokens.weight", "shared_head.head.weight"], (config.vocab_size, hidden))
    names = {f"model.layers.{config.num_hidden_layers + depth}.{part}": shape
             for depth in range(saving["modules"]) for part, shape in parts.items()}
    return tensors | {name: draw(name, shape, config.initializer_range) for name, shape in names.items()}


def dequantised_state(path):
    """The checkpoint's tensors in fp32 by their published names."""
    state = {}
    for file in files_of(path):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                state[name] = tensors.get_tensor(name)
    scales = {name: state.pop(name) for name in [n for n in state if n.endswith("_scale_inv")]}
    return {name: dequantise(tensor, scales[name + "_scale_inv"]) if name + "_scale_inv" in scales else tensor.float()
            for name, tensor in state.items()}


def rewrite_config(path, family, saving):
    config = json.loads((path / "config.json").read_text())
    if saving.get("published"):
        rotary = config.pop("rope_parameters")
        config["rope_theta"] = rotary.pop("rope_theta")
        kind = rotary.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else dict(rotary, type=kind)
        config["torch_dtype"] = config.pop("dtype")
        config |= {key: value for key, value in SCORING[family].items() if key not in config or family == "v3"}
        for key in ("rope_interleave", "head_dim", "qk_head_dim"):
            config.pop(key, None)
    if saving.get("modules"):
        config["num_nextn_predict_layers"] = saving["modules"]
    if saving.get("fp8"):
        config["quantization_config"] = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8",
                                             weight_block_size=[BLOCK, BLOCK])
    (path / "config.json").write_text(json.dumps(config, indent=2))


def make(folder, name, seed):
    family, changes, saving = CHECKPOINTS[name]
    base, make_config, make_model = FAMILIES[family]
    torch.manual_seed(seed)
    config = make_config(**{**base, **changes})
    model = make_model(config)
    randomise(model, base["initializer_range"])
    path = pathlib.Path(folder) / name
    model.to(saving.get("dtype", torch.float32)).save_pretrained(path, max_shard_size=saving.get("max_shard_size", "5GB"))
    if saving.get("modules"):
        rewrite_files(path, lambda tensors: add_modules(tensors, config, saving))
    if saving.get("fp8"):
        rewrite_files(path, quantise_projections)
    rewrite_config(path, family, saving)
    return path


def make_all(folder):
    return [make(folder, name, seed) for seed, name in enumerate(CHECKPOINTS)]


if __name__ == "__main__":
    print("\n".join(str(path) for path in make_all(sys.argv[1])))
