#!/usr/bin/env python3
"""A DeepSeek model whose experts together are larger than memory starts at once, answers and writes traces, for an
expert's weights are read when a token first goes to it. larger_than_memory_test.py PROGRAM TOKENIZER_JSON; ends with 77,
which is to skip the test, where the file system has no sparse files.

The experts' weights are a hole at the end of the checkpoint, which takes no disk space and reads as zeros. What the
program holds in memory is limited besides, so that copying experts fails instead of taking the machine down."""

import json
import os
import pathlib
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile

PROGRAM, TOKENIZER = map(os.path.abspath, sys.argv[1:3])
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
EXPERT_BYTES = min(2 * MEMORY, 64 << 30)  # of all experts
COPY_LIMIT = 3 << 30  # of memory that is not a file's
RESIDENT_SHARE = 1 / 16  # of the experts, at most

HIDDEN, EXPERTS, BLOCK = 1024, 1024, 128
USED = range(7, EXPERTS, EXPERTS // 8)  # experts that tokens go to
CONFIG = dict(model_type="deepseek_v3", vocab_size=605, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=2,
              first_k_dense_replace=1, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=EXPERTS,
              n_shared_experts=None, num_experts_per_tok=2, n_group=1, topk_group=1, routed_scaling_factor=1.0,
              scoring_func="sigmoid", topk_method="noaux_tc", norm_topk_prob=True, kv_lora_rank=64, q_lora_rank=None,
              qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, rms_norm_eps=1e-6, rope_theta=10000.0,
              max_position_embeddings=256, tie_word_embeddings=False, num_nextn_predict_layers=0, eos_token_id=600,
              quantization_config=dict(quant_method="fp8", fmt="e4m3", weight_block_size=[BLOCK, BLOCK]))  # fmt: skip


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def has_holes(folder):
    path = folder / "hole"
    try:
        with path.open("wb") as file:
            file.truncate(64 << 20)
        return path.stat().st_blocks * 512 < 1 << 20
    finally:
        path.unlink(missing_ok=True)


def small_tensors():
    """{name: shape} of all but the experts, stored as fp32."""
    tensors = {"model.norm.weight": (HIDDEN,)} | dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight"), (CONFIG["vocab_size"], HIDDEN))
    heads, rank, rope = CONFIG["num_attention_heads"], CONFIG["kv_lora_rank"], CONFIG["qk_rope_head_dim"]
    for layer in range(CONFIG["num_hidden_layers"]):
        shapes = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
                  "self_attn.q_proj": (heads * (CONFIG["qk_nope_head_dim"] + rope), HIDDEN),
                  "self_attn.kv_a_proj_with_mqa": (rank + rope, HIDDEN), "self_attn.kv_a_layernorm": (rank,),
                  "self_attn.kv_b_proj": (heads * (CONFIG["qk_nope_head_dim"] + CONFIG["v_head_dim"]), rank),
                  "self_attn.o_proj": (HIDDEN, heads * CONFIG["v_head_dim"])}  # fmt: skip
        if layer < CONFIG["first_k_dense_replace"]:
            size = CONFIG["intermediate_size"]
            shapes |= {"mlp.gate_proj": (size, HIDDEN), "mlp.up_proj": (size, HIDDEN), "mlp.down_proj": (HIDDEN, size)}
        else:
            shapes["mlp.gate"] = (EXPERTS, HIDDEN)
        tensors |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in shapes.items()}
    return tensors


def random_floats(name, shape):
    draw = random.Random(name)
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    deviation = 1 if "embed" in name else 0.05
    centre = 1 if "norm" in name else 0
    return struct.pack(f"<{count}f", *(draw.gauss(centre, deviation) for _ in range(count)))


def write_model(folder, intermediate):
    """With experts of so many neurons each."""
    parts = [(name, "F32", shape, random_floats(name, shape)) for name, shape in small_tensors().items()]
    bias = struct.pack(f"<{EXPERTS}f", *(10.0 if expert in USED else 0.0 for expert in range(EXPERTS)))
    parts.append(("model.layers.1.mlp.gate.e_score_correction_bias", "F32", (EXPERTS,), bias))
    experts = {f"model.layers.1.mlp.experts.{expert}.{part}_proj.weight": shape for expert in range(EXPERTS)
               for part, shape in (("gate", (intermediate, HIDDEN)), ("up", (intermediate, HIDDEN)),
                                   ("down", (HIDDEN, intermediate)))}  # fmt: skip
    scales = struct.pack("<f", 0.5) * (intermediate // BLOCK * HIDDEN // BLOCK)
    for name, shape in experts.items():
        parts.append((name + "_scale_inv", "F32", (shape[0] // BLOCK, shape[1] // BLOCK), scales))
    parts += [(name, "F8_E4M3", shape, None) for name, shape in experts.items()]

    header, end = {}, 0
    for name, dtype, shape, contents in parts:
        begin, end = end, end + (intermediate * HIDDEN if contents is None else len(contents))
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[begin, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(contents for *_, contents in parts if contents is not None)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(moe_intermediate_size=intermediate)))
    shutil.copy(TOKENIZER, folder / "tokenizer.json")


def distill(*arguments):
    run = subprocess.run(
        [PROGRAM, "--log-level", "error", "--threads", "2", *arguments, "--chat-template", "chatml", "--temperature", "0",
         "--max-new-tokens", "6"], input=b"Hi\n", capture_output=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (COPY_LIMIT, COPY_LIMIT)))  # fmt: skip
    if run.returncode != 0 or not run.stdout.strip():
        sys.exit(f"{arguments[0]}: exit code {run.returncode}, output {run.stdout}: {run.stderr.decode()}")
    return run.stdout


def answer(folder):
    return distill("chat", "--model", folder)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if not has_holes(folder):
            skip(f"files in {folder} have no holes")
        intermediate = EXPERT_BYTES // (3 * EXPERTS * HIDDEN) // BLOCK * BLOCK
        try:
            write_model(folder / "large", intermediate)
        except OSError as error:
            skip(f"no file of {EXPERT_BYTES >> 30} GiB in {folder}: {error.strerror}")
        large = answer(folder / "large")
        prompts = folder / "prompts.jsonl"
        prompts.write_text('{"id": "1", "prompt": "Hi"}\n')
        distill("generate", "--teacher", folder / "large", "--prompts", prompts, "--out", folder / "traces")
        resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"experts of {EXPERT_BYTES / 1e9:.1f} GB in {MEMORY / 1e9:.1f} GB of memory: at most {resident / 1e9:.2f} GB "
              "were resident")  # fmt: skip
        if resident > RESIDENT_SHARE * EXPERT_BYTES:
            sys.exit(f"that is more than {RESIDENT_SHARE:.0%} of the experts")
        # All experts are zeros, so their size makes no difference.
        write_model(folder / "small", BLOCK)
        if (small := answer(folder / "small")) != large:
            sys.exit(f"it answers {large}, with small experts {small}")


main()
