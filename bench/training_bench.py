#!/usr/bin/env python3
"""Training speed and peak memory beside a plain loop of transformers and PyTorch: the same traces and stored targets,
student, initial weights, tokens per step and precision (bf16 products, fp32 weights, AdamW), one after the other on the
same machine and threads. Prints a table with the ratios and, last, one JSON line.

    bench/training_bench.py [--threads 2] [--tokens 4096] [--micro-tokens 4096] [--steps 4] [--ranks 1] [--cpu-clock]

The peer pads each batch to its longest document, runs the model under autocast, takes the softmax of all logits and
gathers the stored ids, as trainers on stored top-k targets do. Speed is that of the steps after the first ones: the
difference between a short and a longer run, start-up and checkpoint cancel. Tokens are those of documents, padding does
not count. --cpu-clock measures processor time on one thread, for machines that others use too.

Needs `scripts/setup.sh --parity --model` and the target distill."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

DEPS = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOLLM2 = DEPS / "SmolLM2-135M-Instruct.Q4_1.gguf"
STUDENT = dict(vocab_size=49152, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
               num_key_value_heads=2, head_dim=64, max_position_embeddings=2048, rms_norm_eps=1e-5,
               tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)  # fmt: skip
SHORT_STEPS = 1
LEARNING_RATE = 1e-3


def run(command, options):
    """Standard output, seconds and peak memory in bytes of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, env=environment, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))} failed")
    wall = time.monotonic() - start
    return output, usage.ru_utime + usage.ru_stime if options.cpu_clock else wall, 1024 * usage.ru_maxrss


def use_peers_python():
    """Goes on in the Python that has the peers."""
    python = DEPS / "parity/bin/python"
    if pathlib.Path(sys.executable) != python:
        if not python.exists():
            sys.exit(f"{python} is missing; run scripts/setup.sh --parity")
        libraries = ":".join(filter(None, ["/usr/local/cuda/lib64", os.environ.get("LD_LIBRARY_PATH")]))
        os.execve(python, [python, *sys.argv], {**os.environ, "LD_LIBRARY_PATH": libraries, "HF_HUB_OFFLINE": "1"})


def distill(options, *arguments):
    return run([options.build / "bin/distill", "--log-level", "error", "--threads", options.threads, *arguments], options)


def prepare(options):
    """Folders tokenizer, teacher, student and traces in the working folder."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    distill(options, "export", "--model", SMOLLM2, "--out", "smollm2")
    for name, config, seed in (("student", STUDENT, 0), ("teacher", dict(STUDENT, hidden_size=64, intermediate_size=64,
                               num_hidden_layers=1, num_attention_heads=2, head_dim=32), 1)):  # fmt: skip
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
        model.save_pretrained(name)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(f"smollm2/{file}", name)
        if name == "student":
            print(f"student: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", file=sys.stderr)
    # Documents of different lengths, as answers are: prompts of 8 to 97 words.
    words = "the answer to this question depends on several things that need to be considered one after the other".split()
    prompts = [{"id": str(i), "prompt": " ".join((words * 9)[: 8 + 37 * i % 90])} for i in range(options.documents)]
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    distill(options, "generate", "--teacher", "teacher", "--prompts", "prompts.jsonl", "--out", "traces", "--targets",
            f"topk:{options.targets}", "--max-new-tokens", 160)  # fmt: skip


def measure_ours(options, steps):
    shutil.rmtree("run", ignore_errors=True)
    recipe = {"steps": steps, "batch": {"tokens": options.tokens, "micro_tokens": options.micro_tokens},
              "validation": {"share": 0}, "checkpoint": {"every": 0}, "optimizer": {"learning_rate": LEARNING_RATE},
              "schedule": {"shape": "constant", "warmup_steps": 0}}  # fmt: skip
    pathlib.Path("recipe.json").write_text(json.dumps(recipe))
    _, seconds, memory = distill(options, "train", "--data", "traces", "--student", "student", "--out", "run", "--recipe",
                                 "recipe.json", "--nproc", options.ranks)  # fmt: skip
    lines = [json.loads(line) for line in pathlib.Path("run/metrics.jsonl").read_text().splitlines()]
    return dict(seconds=seconds, memory=memory, tokens=lines[-1]["tokens"], loss=lines[-1]["loss"])


def measure_peer(options, steps):
    command = [sys.executable, __file__, "--as-peer", "--steps", steps, "--tokens", options.tokens, "--micro-tokens",
               options.micro_tokens, "--threads", options.threads, "--ranks", options.ranks]  # fmt: skip
    # The ranks but the first, which is measured, begin beside it and wait to meet it.
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "WORLD_SIZE": str(options.ranks),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}  # fmt: skip
    others = [subprocess.Popen([str(word) for word in command], env={**environment, "RANK": str(rank)},
                               stdout=subprocess.DEVNULL) for rank in range(1, options.ranks)]  # fmt: skip
    os.environ.update({**environment, "RANK": "0"})
    output, seconds, memory = run(command, options)
    if any(other.wait() != 0 for other in others):
        sys.exit("a rank of the peer failed")
    return dict(json.loads(output.splitlines()[-1]), seconds=seconds, memory=memory)


def run_peer(options):
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained("student", dtype=torch.float32)
    model.train()
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]  # fmt: skip
    rank = int(os.environ["RANK"]) if options.ranks > 1 else 0
    if options.ranks > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    documents = [json.loads(line) for line in open("traces.jsonl")]
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
    position = len(documents) * rank // options.ranks

    def next_batch(limit):
        nonlocal position
        batch, tokens = [], 0
        while True:
            document = documents[order[position % len(order)]]
            length = len(document["tokens"]) - 1
            if batch and tokens + length > limit:
                return batch, tokens
            batch.append(document)
            tokens += length
            position += 1

    def loss_of(batch):
        longest = max(len(d["tokens"]) for d in batch) - 1
        tokens = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        rows, ids, q, u = [], [], [], []
        for i, d in enumerate(batch):
            length = len(d["tokens"]) - 1
            tokens[i, :length] = torch.tensor(d["tokens"][:-1])
            mask[i, :length] = 1
            first = d["prompt_length"] - 1
            rows += [i * longest + first + j for j in range(len(d["targets"]))]
            ids += [t["ids"] for t in d["targets"]]
            q += [t["weights"] for t in d["targets"]]
            u += [t["uncovered"] for t in d["targets"]]
        rows, ids, q, u = torch.tensor(rows), torch.tensor(ids), torch.tensor(q), torch.tensor(u)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        log_p = logits.view(-1, logits.size(-1))[rows].float().log_softmax(-1)
        head = log_p.gather(-1, ids)
        outside = torch.log1p(-head.exp().sum(-1).clamp(max=1 - 1e-6))
        kl = (torch.xlogy(q, q) - q * head).sum(-1) + torch.xlogy(u, u) - u * outside
        return kl.sum(), len(rows)

    tokens_done = 0
    for _ in range(options.steps):
        tokens, targets, total = 0, 0, 0.0
        batches = []
        share = options.tokens // options.ranks
        while tokens < share * 7 // 8:
            batch, count = next_batch(min(options.micro_tokens, share))
            batches.append(batch)
            tokens += count
        for i, batch in enumerate(batches):
            with model.no_sync() if options.ranks > 1 and i + 1 < len(batches) else contextlib.nullcontext():
                loss, count = loss_of(batch)
                (loss / sum(len(d["targets"]) for b in batches for d in b)).backward()
            total += loss.item()
            targets += count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens_done += tokens * options.ranks
    print(json.dumps(dict(tokens=tokens_done, loss=total / targets)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096, help="per step of the optimizer")
    parser.add_argument("--micro-tokens", type=int, default=4096, help="per forward and backward pass")
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    parser.add_argument("--targets", type=int, default=64, help="tokens kept of each distribution")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--ranks", type=int, default=1, help="processes with --threads each, for both")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--cpu-clock", action="store_true", help="measure processor time on one thread")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_peers_python()
    if options.cpu_clock:
        options.threads = 1
    if options.as_peer:
        return run_peer(options)

    options.build = options.build.resolve()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(options)
        distill(options, "shards", "export", "traces", "--out", "traces.jsonl")
        for name, measure in (("distill", measure_ours), ("transformers", measure_peer)):
            short, long = measure(options, SHORT_STEPS), measure(options, SHORT_STEPS + options.steps)
            results[name] = dict(tokens_per_second=(long["tokens"] - short["tokens"]) / (long["seconds"] - short["seconds"]),
                                 memory=max(short["memory"], long["memory"]), loss=long["loss"])  # fmt: skip
        os.chdir("/")
    ours, theirs = results["distill"], results["transformers"]
    print(f"{'':16}{'distill':>12}{'transformers':>14}{'ratio':>8}")
    for key, title, factor in (("tokens_per_second", "tokens/s", 1), ("memory", "peak MB", 1e-6), ("loss", "last loss", 1)):
        print(f"{title:16}{ours[key] * factor:>12.4g}{theirs[key] * factor:>14.4g}{ours[key] / theirs[key]:>7.2f}x")
    print(json.dumps(dict(bench="training", threads=options.threads, clock="cpu" if options.cpu_clock else "wall",
                          tokens_per_step=options.tokens, micro_batch_tokens=options.micro_tokens, steps=options.steps,
                          targets=f"topk:{options.targets}", results=results)))  # fmt: skip


if __name__ == "__main__":
    main()
