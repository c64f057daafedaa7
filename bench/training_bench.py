#!/usr/bin/env python3
"""Training speed and peak memory beside TRL and a plain loop of transformers and PyTorch (training_peers.py): the same
traces, student, initial weights, tokens per step and precision (bf16 products, fp32 weights, AdamW), on the stored top-k
targets and on hard labels (SFT), one after the other on the same machine and threads. Prints a table with the ratios
and, last, one JSON line.

    bench/training_bench.py [--threads 2] [--tokens 4096] [--micro-tokens 4096] [--steps 4] [--ranks 1] [--cpu-clock]

The peers pad each batch to its longest document. Speed is that of the steps after the first one; of ours it is the
difference between a short and a longer run, in which start-up and checkpoint cancel. Tokens are those of documents,
padding does not count.
--cpu-clock measures processor time on one thread (of a rank), for machines that others use too.

Needs `scripts/setup.sh --parity --model` and the target distill."""

import argparse
import functools
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
WARMUP_STEPS = 1
OBJECTIVES = {"stored": "stored targets", "labels": "hard labels (SFT)"}


def run(command, options, variables={}, beside=()):
    """Standard output, seconds and peak memory in bytes of a process, while the commands in `beside` run too."""
    environment = {**os.environ, **variables, "OMP_NUM_THREADS": str(options.threads)}
    others = [subprocess.Popen([str(word) for word in other], stdout=subprocess.DEVNULL, env=environment)
              for other in beside]  # fmt: skip
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, env=environment, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))} failed")
    wall = time.monotonic() - start
    if any(other.wait() != 0 for other in others):
        sys.exit(f"a copy of {' '.join(map(str, command))} failed")
    return output, usage.ru_utime + usage.ru_stime if options.cpu_clock else wall, 1024 * usage.ru_maxrss


def use_peers_python():
    """Goes on in the Python that has the peers."""
    python = DEPS / "parity/bin/python"
    if pathlib.Path(sys.executable) != python:
        if not python.exists():
            sys.exit(f"{python} is missing; run scripts/setup.sh --parity")
        libraries = ":".join(filter(None, ["/usr/local/cuda/lib64", os.environ.get("LD_LIBRARY_PATH")]))
        os.execve(python, [python, *sys.argv], {**os.environ, "LD_LIBRARY_PATH": libraries, "HF_HUB_OFFLINE": "1"})


def distill(options, *arguments, beside=()):
    command = [options.build / "bin/distill", "--log-level", "error", "--threads", options.threads]
    return run([*command, *arguments], options, beside=[[*command, *other] for other in beside])


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


def train(options, objective, steps):
    """Seconds, tokens, last loss and peak memory of a whole run."""
    from training_peers import LEARNING_RATE

    runs = ["run", *(f"run-{copy}" for copy in range(1, options.copies))]
    for folder in runs:
        shutil.rmtree(folder, ignore_errors=True)
    recipe = {"steps": steps, "batch": {"tokens": options.tokens, "micro_tokens": options.micro_tokens},
              "validation": {"share": 0}, "checkpoint": {"every": 0}, "optimizer": {"learning_rate": LEARNING_RATE},
              "schedule": {"shape": "constant", "warmup_steps": 0},
              "objective": {"hard_label_weight": 1.0 if objective == "labels" else 0.0}}  # fmt: skip
    pathlib.Path("recipe.json").write_text(json.dumps(recipe))
    commands = [["train", "--data", "traces", "--student", "student", "--out", folder, "--recipe", "recipe.json", "--nproc",
                 options.ranks] for folder in runs]  # fmt: skip
    _, seconds, memory = distill(options, *commands[0], beside=commands[1:])
    if options.cpu_clock:
        seconds /= options.ranks  # the launcher's time is that of all ranks
    lines = [json.loads(line) for line in pathlib.Path("run/metrics.jsonl").read_text().splitlines()]
    return dict(seconds=seconds, memory=memory, tokens=lines[-1]["tokens"], loss=lines[-1]["loss"])


def measure_ours(options, objective):
    short, long = (train(options, objective, steps) for steps in (WARMUP_STEPS, WARMUP_STEPS + options.steps))
    return {**long, "tokens": long["tokens"] - short["tokens"], "seconds": long["seconds"] - short["seconds"]}


def measure_peer(options, objective, peer):
    command = [sys.executable, __file__, "--as-peer", peer, "--objective", objective, "--steps", options.steps, "--tokens",
               options.tokens, "--micro-tokens", options.micro_tokens, "--threads", options.threads, "--ranks",
               options.ranks, "--peers", peer, *(["--cpu-clock"] if options.cpu_clock else [])]  # fmt: skip
    if options.ranks == 1:
        output, _, memory = run(command, options, beside=[command] * (options.copies - 1))
        return dict(json.loads(output.splitlines()[-1]), memory=memory)
    # The ranks but the first, which is measured, begin beside it and wait to meet it.
    variables = {"OMP_NUM_THREADS": str(options.threads), "WORLD_SIZE": str(options.ranks),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617"}  # fmt: skip
    others = [subprocess.Popen([str(word) for word in command], env={**os.environ, **variables, "RANK": str(rank)},
                               stdout=subprocess.DEVNULL) for rank in range(1, options.ranks)]  # fmt: skip
    output, _, memory = run(command, options, {**variables, "RANK": "0"})
    if any(other.wait() != 0 for other in others):
        sys.exit("a rank of the peer failed")
    return dict(json.loads(output.splitlines()[-1]), memory=memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096, help="per step of the optimizer")
    parser.add_argument("--micro-tokens", type=int, default=4096, help="per forward and backward pass")
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    parser.add_argument("--targets", type=int, default=64, help="tokens kept of each distribution")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--ranks", type=int, default=1, help="processes with --threads each, for both")
    parser.add_argument("--copies", type=int, default=1, help="runs side by side, of which one is measured; one rank each")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--cpu-clock", action="store_true", help="measure processor time on one thread")
    parser.add_argument("--peers", nargs="+", choices=("TRL", "PyTorch"), default=["TRL", "PyTorch"])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--as-peer", help=argparse.SUPPRESS)
    parser.add_argument("--objective", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ranks > 1 and "TRL" in options.peers:
        parser.error("--ranks: only with --peers PyTorch")
    if options.copies > 1 and (options.ranks > 1 or "TRL" in options.peers):
        parser.error("--copies: only with --ranks 1 --peers PyTorch")
    use_peers_python()
    if options.cpu_clock:
        options.threads = 1
    if options.as_peer:
        import training_peers

        options.warmup = WARMUP_STEPS
        return training_peers.run(options)

    options.build = options.build.resolve()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare(options)
        distill(options, "shards", "export", "traces", "--out", "traces.jsonl")
        for objective in options.objectives:
            for name in ("distill", *options.peers):
                measure = measure_ours if name == "distill" else functools.partial(measure_peer, peer=name)
                result = measure(options, objective)
                result["tokens_per_second"] = result["tokens"] / result["seconds"]
                results.setdefault(objective, {})[name] = result
        os.chdir("/")
    for objective, by_name in results.items():
        print(f"{OBJECTIVES[objective]:20}" + "".join(f"{name:>20}" for name in by_name))
        for key, title, factor in (("tokens_per_second", "tokens/s", 1), ("memory", "peak MB", 1e-6),
                                   ("loss", "last loss", 1)):  # fmt: skip
            ours = by_name["distill"][key]
            cells = [f"{result[key] * factor:.4g}" + (f" ({ours / result[key]:.2f}x)" if name != "distill" else "")
                     for name, result in by_name.items()]  # fmt: skip
            print(f"  {title:18}" + "".join(f"{cell:>20}" for cell in cells))
    print(json.dumps(dict(bench="training", threads=options.threads, clock="cpu" if options.cpu_clock else "wall",
                          tokens_per_step=options.tokens, micro_batch_tokens=options.micro_tokens, steps=options.steps,
                          targets=f"topk:{options.targets}", results=results)))  # fmt: skip


if __name__ == "__main__":
    main()
