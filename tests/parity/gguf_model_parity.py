#!/usr/bin/env python3
"""Compares models read from GGUF files with transformers: tiny random Llama, Qwen2 and Qwen3 models written as
llama.cpp's converter writes them, and SmolLM2-135M-Instruct where it is installed. Every weight must come back under
its Hugging Face name, bit for bit, and the configuration must agree.

$DISTILL names the program, $DUMP_TENSORS the one that dumps tensors."""

import json
import os
import pathlib
import subprocess
import sys

os.environ["TQDM_DISABLE"] = "1"

import gguf  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: E402

SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2)
CONFIG_KEYS = ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
               "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
               "tie_word_embeddings", "bos_token_id", "eos_token_id"]
TINY = {
    "llama": dict(head_dim=16, tie_word_embeddings=False),
    "qwen2": dict(tie_word_embeddings=True),
    "qwen3": dict(head_dim=32, tie_word_embeddings=False),
}


def interleave(rows, heads):
    """llama.cpp's order of the rows of a head: row i beside row i + head_dim / 2."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_model(path, model):
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        data = tensor.numpy()
        if config.model_type == "llama" and ".q_proj." in name:
            data = interleave(data, config.num_attention_heads)
        if config.model_type == "llama" and ".k_proj." in name:
            data = interleave(data, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(path):
    out = pathlib.Path("model.safetensors")
    subprocess.run([os.environ["DUMP_TENSORS"], "--model", path, out], check=True)
    tensors = load_file(out)
    out.unlink()
    # A tiny model has no vocabulary: what is asked for here is the configuration alone.
    inspected = subprocess.run([os.environ["DISTILL"], "inspect", path, "--json"], stdout=subprocess.PIPE, check=True)
    return tensors, json.loads(inspected.stdout)["config"]


def theirs(path):
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"], config


def compare_weights(label, mine, other):
    missing = set(other) ^ set(mine)
    different = [name for name in other if name in mine and not torch.equal(mine[name], other[name])]
    print(f"  {label}: {len(other)} weights, {len(missing)} missing, {len(different)} differ")
    for name in sorted(missing)[:5] + different[:5]:
        print(f"    {name}")
    return len(missing) + len(different)


def compare_config(mine, other):
    wrong = 0
    expected = {key: getattr(other, key) for key in CONFIG_KEYS}
    expected["rope_theta"] = other.rope_parameters["rope_theta"]
    head_dim = getattr(other, "head_dim", None)
    if other.model_type != "qwen3":  # where transformers leaves the default instead of reading attention.key_length
        expected["head_dim"] = head_dim or other.hidden_size // other.num_attention_heads
    for key, value in expected.items():
        mine_value = mine.get(key)
        near = isinstance(value, float) and mine_value is not None and abs(mine_value - value) <= 1e-7 * abs(value)
        if mine_value != value and not near:
            print(f"    config {key}: {mine_value}, but transformers has {value}")
            wrong += 1
    print(f"  config: {len(expected)} keys, {wrong} differ")
    return wrong


def main():
    wrong = 0
    torch.manual_seed(11)
    for kind, extra in TINY.items():
        config = AutoConfig.for_model(kind, **SIZES, **extra)
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        path = pathlib.Path(f"{kind}.gguf").resolve()
        write_model(path, model)
        print(f"tiny {kind}:")
        tensors, translated = ours(path)
        original = {name: tensor for name, tensor in model.state_dict().items()
                    if not (config.tie_word_embeddings and name == "lm_head.weight")}
        wrong += compare_weights("the model before its conversion", tensors, original)
        loaded, loaded_config = theirs(path)
        wrong += compare_weights("transformers reading the file", tensors, loaded)
        wrong += compare_config(translated, loaded_config)
        if translated["head_dim"] != (getattr(config, "head_dim", None) or 16):
            print(f"    head_dim is {translated['head_dim']}")
            wrong += 1
        path.unlink()

    model = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
    model /= "SmolLM2-135M-Instruct.Q4_1.gguf"
    if model.exists():
        print(f"{model.name}:")
        tensors, translated = ours(model)
        loaded, loaded_config = theirs(model)
        wrong += compare_weights("transformers reading the file", tensors, loaded)
        wrong += compare_config(translated, loaded_config)
    else:
        print(f"not compared: {model} is not there (scripts/setup.sh --model)")
    if wrong:
        sys.exit(f"{wrong} differences")
    print("all equal")


if __name__ == "__main__":
    main()
