#!/usr/bin/env python3
"""Decode and prefill speed of a DeepSeek model, ours and transformers' side by side on the same synthetic checkpoint.

Usage: teacher_bench.py <model_bench program> <scratch folder> [--shape small|v2-lite] [--new 32] [--prompt 128]
                        [--batches 1 4 16] [--no-peer]
Needs the Python of the parity suites (scripts/setup.sh --parity). Prints a table and one JSON line. The checkpoint is in
FP8 for us and in bf16 (the dequantised values) for transformers, which has no FP8 product on CPUs."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/parity"))
import make_deepseek_checkpoints as checkpoints  # noqa: E402

SHAPES = {
    # 0.69 G parameters, of which a token uses 0.16 G.
    "small": dict(vocab_size=16384, hidden_size=1024, intermediate_size=4096, moe_intermediate_size=512,
                  num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=16, n_routed_experts=32,
                  n_shared_experts=1, n_group=4, topk_group=2, num_experts_per_tok=4, first_k_dense_replace=1,
                  kv_lora_rank=256, q_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=64, v_head_dim=64,
                  max_position_embeddings=4096),
    # DeepSeek-V2-Lite's layers, a third of them.
    "v2-lite": dict(vocab_size=32768, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
                    num_hidden_layers=9, num_attention_heads=16, num_key_value_heads=16, n_routed_experts=64,
                    n_shared_experts=2, n_group=1, topk_group=1, num_experts_per_tok=6, first_k_dense_replace=1,
                    kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128,
                    max_position_embeddings=4096),
}


def make_checkpoints(folder, shape):
    """The FP8 checkpoint and its bf16 twin; parameters in all and those a token uses."""
    import transformers

    fp8, bf16 = folder / f"{shape}-fp8", folder / f"{shape}-bf16"
    config = transformers.DeepseekV3Config(**SHAPES[shape], num_nextn_predict_layers=0)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.DeepseekV3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    active = total - experts + experts * config.num_experts_per_tok // config.n_routed_experts
    active -= model.get_input_embeddings().weight.numel()  # of which a token reads one row
    if not (fp8 / "config.json").exists():
        model.save_pretrained(bf16)
        model.save_pretrained(fp8)
        checkpoints.quantise_files(fp8)
        checkpoints.rewrite_config(fp8, "v3", dict(fp8=True))
    return fp8, bf16, total, active


def ours(program, path, arguments):
    command = [program, path, "bf16", "0", str(arguments.prompt), str(arguments.new), *map(str, arguments.batches)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line["batch"]: line for line in map(json.loads, lines)}


@torch.no_grad()
def theirs(path, arguments):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    results = {}
    for batch in arguments.batches:
        tokens = torch.randint(model.config.vocab_size, (batch, arguments.prompt))
        model(tokens[:, :2])
        start = time.perf_counter()
        output = model(tokens, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(arguments.new):
            output = model(output.logits[:, -1:].argmax(-1), past_key_values=output.past_key_values, use_cache=True)
        decode = time.perf_counter() - start
        results[batch] = {"prefill_tokens_per_second": batch * arguments.prompt / prefill,
                          "decode_tokens_per_second": batch * arguments.new / decode}
    return results


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    fp8, bf16, total, active = make_checkpoints(arguments.folder, arguments.shape)
    mine = ours(arguments.program, fp8, arguments)
    plain = ours(arguments.program, bf16, arguments)
    peer = {} if arguments.no_peer else theirs(bf16, arguments)
    bandwidth = mine[arguments.batches[0]]["read_bandwidth_GBps"]
    print(f"{arguments.shape}: {total / 1e9:.2f} G parameters, {active / 1e9:.2f} G of them used per token; "
          f"{torch.get_num_threads()} threads, which read {bandwidth:.1f} GB/s\n"
          f"tokens/s               ours FP8  ours bf16  transformers bf16   FP8 / transformers")
    for kind in ("decode", "prefill"):
        for batch in arguments.batches:
            key = f"{kind}_tokens_per_second"
            other = peer.get(batch, {}).get(key)
            ratio = f"{other:18.1f} {mine[batch][key] / other:20.1f}" if other else f"{'-':>18} {'-':>20}"
            print(f"{kind:8} batch {batch:<4} {mine[batch][key]:10.1f} {plain[batch][key]:10.1f} {ratio}")
    if 1 in mine:
        used = active * mine[1]["decode_tokens_per_second"] / 1e9
        print(f"weights read at batch 1: {used:.1f} GB/s in FP8, {100 * used / bandwidth:.0f} % of the read bandwidth")
    print(json.dumps({"shape": arguments.shape, "parameters": total, "active": active, "fp8": mine, "bf16": plain,
                      "transformers": peer}))


if __name__ == "__main__":
    main()
