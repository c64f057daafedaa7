#!/usr/bin/env python3
"""What a latent cache in FP8 (--cache-dtype fp8) costs a trained model: a small DeepSeek-V3 is trained with transformers on
this repository's files, byte by byte, then read through both caches on files it has not seen. Prints its loss in nats per
byte through each, how far the distributions are apart, and one JSON line.

    bench/latent_cache_bench.py [--minutes 15] [--threads 1] [--folder FOLDER]

Needs `scripts/setup.sh --parity` and the target distill. --folder keeps the trained model; without --minutes the one that
is there is measured."""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPS = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
ENDINGS = (".cpp", ".h", ".cu", ".cuh", ".py", ".md", ".sh", ".cmake")
LENGTH = 384
SHAPE = dict(vocab_size=256, hidden_size=256, intermediate_size=640, moe_intermediate_size=128, num_hidden_layers=4,
             num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, n_shared_experts=1, n_group=1, topk_group=1,
             num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=128, q_lora_rank=None, qk_rope_head_dim=32,
             qk_nope_head_dim=32, v_head_dim=32, max_position_embeddings=2 * LENGTH, routed_scaling_factor=1.0,
             pad_token_id=None, bos_token_id=0, eos_token_id=0)  # fmt: skip


def read_texts():
    """Bytes of the files to learn from, and of every twentieth, which is held out."""
    import torch

    names = subprocess.run(["git", "-C", ROOT, "ls-files"], check=True, capture_output=True, text=True).stdout.split("\n")
    files = [ROOT / name for name in sorted(names) if name.endswith(ENDINGS)]
    parts = [b"".join(f.read_bytes() for i, f in enumerate(files) if (i % 20 == 10) == held_out) for held_out in (False, True)]
    return [torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in parts]


def train(options, text):
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    start, steps = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:  # warm-up, then down to a twentieth
            group["lr"] = 2e-3 * min(1, (steps + 1) / 100) * (0.525 + 0.475 * math.cos(math.pi * done))
        rows = torch.randint(len(text) - LENGTH, (options.rows,))
        tokens = torch.stack([text[i : i + LENGTH] for i in rows.tolist()])
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        steps += 1
        if steps % 100 == 1:
            print(f"{100 * done:.0f} %, step {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.bfloat16().save_pretrained(options.folder)
    (options.folder / "training.json").write_text(json.dumps(dict(steps=steps, bytes=steps * options.rows * LENGTH)))


def read_logits(options, sequences, *more):
    """Read one token at a time, so that all attention is to the cache; [sequences, LENGTH, 256]."""
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        tokens, out = pathlib.Path(folder) / "tokens.jsonl", pathlib.Path(folder) / "logits.safetensors"
        tokens.write_text("".join(json.dumps(row.tolist()) + "\n" for row in sequences))
        subprocess.run([options.build / "bin/distill", "--log-level", "error", "logits", "--model", options.folder, "--tokens",
                        tokens, "--out", out, "--incremental", "--dtype", "bf16", *more], check=True)  # fmt: skip
        tensors = load_file(out)
        return torch.stack([tensors[str(i)].float() for i in range(len(sequences))]).log_softmax(-1)


def measure(options, held_out):
    import torch

    sequences = held_out[: len(held_out) // LENGTH * LENGTH].view(-1, LENGTH)
    sequences = sequences[:: max(1, len(sequences) // options.sequences)][: options.sequences]
    by_cache = {cache: read_logits(options, sequences, "--cache-dtype", cache) for cache in ("auto", "fp8")}
    exact, rounded = by_cache.values()
    divergence = (exact.exp() * (exact - rounded)).sum(-1).flatten()
    agree = (exact.argmax(-1) == rounded.argmax(-1)).float().mean().item()
    losses = {cache: -logits[:, :-1].gather(-1, sequences[:, 1:, None]).mean().item() for cache, logits in by_cache.items()}
    result = dict(loss=losses, kl=divergence.mean().item(), kl_99th=torch.quantile(divergence, 0.99).item(), same_token=agree,
                  positions=divergence.numel(), **json.loads((options.folder / "training.json").read_text()))  # fmt: skip
    print(f"trained for {result['steps']} steps on {result['bytes'] / 1e6:.1f} MB; on {result['positions']} bytes it has not seen\n"
          f"loss through bf16 {losses['auto']:.4f}, through FP8 {losses['fp8']:.4f} nats per byte\n"
          f"KL of the distributions: mean {result['kl']:.1e}, 99th percentile {result['kl_99th']:.1e}; "
          f"same most probable byte: {100 * agree:.2f} %")  # fmt: skip
    print(json.dumps(dict(bench="latent_cache", **result)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="train anew, for so long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8, help="sequences to a training step")
    parser.add_argument("--sequences", type=int, default=48, help="that are compared")
    parser.add_argument("--folder", type=pathlib.Path, default=DEPS / "latent-cache-bench")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    text, held_out = read_texts()
    if options.minutes:
        train(options, text)
    measure(options, held_out)


if __name__ == "__main__":
    main()
