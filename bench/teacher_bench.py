#!/usr/bin/env python3
"""Speed and peak memory of a DeepSeek model beside transformers (bf16) and llama.cpp (Q8_0) on the same synthetic weights
(deepseek_checkpoint.py), in turn on the same machine and threads: each program's best of some rounds. All read random
tokens, others in every sequence, so that a batch needs many experts. Without logits that correlate there is no table.
Prints the table with the ratios and, last, one JSON line.

    bench/teacher_bench.py [--shape small | v2-lite] [--threads 2] [--batch 1 4 16] [--prompt 64] [--new 32]

Needs `scripts/setup.sh --parity`, the targets model_bench and distill, and llama.cpp as generation_bench.py
--with-llama-cpp compiles it. Weights stay in --folder: 3 GB of them, of v2-lite 13 GB."""

import argparse
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import generation_bench  # noqa: E402
from generation_bench import DEPS, ROOT, llama_batched_bench, run  # noqa: E402

PYTHON = DEPS / "parity/bin/python"
PEER_ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
                    "LD_LIBRARY_PATH": ":".join(filter(None, ["/usr/local/cuda/lib64",
                                                              os.environ.get("LD_LIBRARY_PATH")]))}  # fmt: skip
# Of one prompt; the logits of its last token are compared.
CHECKED_TOKENS = [(7919 * i + 13) % 16000 + 3 for i in range(24)]
LEAST_CORRELATION = 0.99


def measure_ours(options):
    lines, _ = run([options.build / "bin/model_bench", options.fp8, "bf16", options.threads, options.prompt, options.new,
                    *options.batch], {**os.environ, "DISTILL_BENCH_CLOCK": "cpu" if options.cpu_clock else "wall"})  # fmt: skip
    return {line["batch"]: dict(prefill=line["prefill_tokens_per_second"], decode=line["decode_tokens_per_second"],
                                memory=line["peak_memory_bytes"], cache=line["cache_bytes"],
                                libraries=line["memory_before_loading_bytes"],
                                bandwidth=1e9 * lines[-1]["read_bandwidth_GBps"]) for line in lines[:-1]}  # fmt: skip


def as_peer(options, *arguments):
    return run([PYTHON, __file__, "--threads", options.threads, "--shape", options.shape, "--folder", options.folder,
                "--prompt", options.prompt, "--new", options.new, *["--cpu-clock"] * options.cpu_clock, *arguments], PEER_ENVIRONMENT)  # fmt: skip


def measure_transformers(options):
    lines, _ = as_peer(options, "--as-peer", "measure", "--batch", *options.batch)
    return {line.pop("batch"): line for line in lines}


def llama_processor_time(options, batch):
    """llama.cpp measures itself by the wall: processor time is what longer runs take more of."""
    def seconds(prompt, new):
        return generation_bench.processor_seconds(
            [llama_batched_bench(options), "-m", options.q8, "-c", batch * (prompt + new + 8), "-b", 2048, "-ub", 512, "-npp",
             prompt, "-ntg", new, "-npl", batch, "-t", 1, "-tb", 1, "--no-repack"])  # fmt: skip

    seconds(options.prompt, 2)  # brings the file into memory
    start, decoded, read = (seconds(options.prompt, 2), seconds(options.prompt, options.new + 2),
                            seconds(2 * options.prompt, 2))  # fmt: skip
    return dict(prefill=batch * options.prompt / (read - start), decode=batch * options.new / (decoded - start))


def measure_llama_cpp(options):
    if options.cpu_clock:
        return {batch: llama_processor_time(options, batch) for batch in options.batch}
    return {batch: generation_bench.measure_llama_cpp(options, batch) for batch in options.batch}


def run_peer(options):
    """What needs the parity Python: makes the checkpoints, measures transformers, or prints how logits correlate."""
    if options.as_peer == "make":
        import deepseek_checkpoint

        deepseek_checkpoint.make(options.folder, options.shape)
        print(json.dumps(deepseek_checkpoint.size_of(deepseek_checkpoint.config_of(options.shape))))
        return
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.bf16, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        if options.as_peer == "check":
            theirs = model(torch.tensor([CHECKED_TOKENS])).logits[0, -1].float()
            print(json.dumps(dict(correlations(options, theirs), transformers=transformers.__version__)))
            return
        for batch in options.batch:
            print(json.dumps(measure_batch(options, model, batch)))


def measure_batch(options, model, batch):
    import torch

    clock = time.process_time if options.cpu_clock else time.monotonic
    tokens, more = (torch.randint(model.config.vocab_size, (batch, count), generator=torch.Generator().manual_seed(count))
                    for count in (options.prompt, options.new))  # fmt: skip
    model(tokens, logits_to_keep=1)  # warms up
    start = clock()
    output = model(tokens, use_cache=True, logits_to_keep=1)
    prefill = clock() - start
    start = clock()
    for i in range(options.new):
        output = model(more[:, i : i + 1], past_key_values=output.past_key_values, use_cache=True)
    decode = clock() - start
    return dict(batch=batch, prefill=batch * options.prompt / prefill, decode=batch * options.new / decode,
                memory=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # fmt: skip


def correlations(options, theirs):
    """Of our logits and llama.cpp's with transformers'."""
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        tokens = pathlib.Path(folder) / "tokens.jsonl"
        tokens.write_text(json.dumps(CHECKED_TOKENS) + "\n")
        logits = pathlib.Path(folder) / "logits.safetensors"
        subprocess.run([options.build / "bin/distill", "--log-level", "error", "logits", "--model", options.fp8, "--tokens",
                        tokens, "--out", logits], check=True)  # fmt: skip
        ours = next(iter(load_file(logits).values()))[-1].float()
    answer = {alternative["id"]: alternative["logprob"] for alternative in ask_llama_cpp(options, len(theirs))}
    ids = torch.tensor(sorted(answer))
    peer = torch.tensor([answer[token] for token in sorted(answer)])

    def correlation(logits, others):
        return torch.corrcoef(torch.stack([logits, others]))[0, 1].item()

    return dict(distill=correlation(theirs, ours), llama_cpp=correlation(theirs[ids], peer), compared=len(ids))


def ask_llama_cpp(options, vocabulary):
    """All tokens that may follow, with their log-probabilities."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.q8)
    parameters.n_ctx, parameters.n_parallel = 256, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    parameters.no_extra_bufts = True  # --no-repack
    server = xllamacpp.Server(parameters)
    question = dict(prompt=CHECKED_TOKENS, n_predict=1, n_probs=vocabulary, temperature=1, cache_prompt=False)
    request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(question).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["completion_probabilities"][0]["top_logprobs"]


def measure_all(options, programs):
    """{program: {batch: figures}}, the fastest of the rounds and the most memory."""
    results = {name: {} for name in programs}
    for round_ in range(options.rounds):
        for name, measure in programs.items():
            for batch, figures in measure(options).items():
                best = results[name].setdefault(batch, {})
                for key, value in figures.items():
                    best[key] = max(value, best.get(key, value))
            print(f"round {round_ + 1}, {name}: {results[name]}", file=sys.stderr, flush=True)
    return results


def print_table(options, results, size):
    ours = results["distill"]
    print(f"{options.shape}: {size['parameters'] / 1e9:.2f} G parameters, {size['active_parameters'] / 1e9:.2f} G of them "
          f"used per token, {size['bytes'] / 1e6:.0f} MB in FP8; {options.threads} threads")  # fmt: skip
    print(f"{'':8} {'batch':>5}" + "".join(f"{name:>24}" for name in results))
    for key, title in (("decode", "decode"), ("prefill", "prefill"), ("memory", "peak MB")):
        for batch in options.batch:
            row = f"{title:8} {batch:>5}"
            for name, by_batch in results.items():
                value = by_batch[batch].get(key, float("nan"))  # memory, in processor time not measured for llama.cpp
                shown = "-" if math.isnan(value) else f"{value / 1e6:.0f}" if key == "memory" else f"{value:.1f}"
                if name != "distill" and not math.isnan(value):
                    shown += f" ({ours[batch][key] / value:.2f}x)"
                row += f"{shown:>24}"
            print(row)
    if 1 in ours:
        used, read = size["active_bytes"] * ours[1]["decode"], ours[1]["bandwidth"]
        print(f"weights read at batch 1: {used / 1e9:.1f} GB/s, {100 * used / read:.0f} % of the {read / 1e9:.1f} GB/s that "
              "all threads reach")
    most = max(line["memory"] / (size["bytes"] + line["cache"]) for line in ours.values())
    libraries = max(line["libraries"] for line in ours.values())
    print(f"peak memory: at most {most:.2f} times the FP8 checkpoint and the cache, with {libraries / 1e6:.0f} MB that the "
          "libraries take before anything is loaded")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["small", "v2-lite"], default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--new", type=int, default=32, help="generated tokens")
    parser.add_argument("--cpu-clock", action="store_true",
                        help="measure processor time on one thread, for machines that others use too")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=pathlib.Path, default=DEPS / "teacher-bench", help="where weights are kept")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--without", nargs="+", choices=["check", "transformers", "llama.cpp"], default=[],
                        help="what to leave out")  # fmt: skip
    parser.add_argument("--as-peer", choices=["make", "measure", "check"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cpu_clock:
        options.threads = 1
    options.fp8, options.bf16, options.q8 = (options.folder / f"{options.shape}{end}"
                                             for end in ("-fp8", "-bf16", "-q8_0.gguf"))  # fmt: skip
    options.model, options.with_llama_cpp, options.no_repack = options.q8, False, False
    if options.as_peer:
        return run_peer(options)

    size = as_peer(options, "--as-peer", "make")[0][0]
    programs = {"distill": measure_ours, "transformers": measure_transformers, "llama.cpp": measure_llama_cpp}
    for name in options.without:
        programs.pop(name, None)
    if "llama.cpp" in programs and not llama_batched_bench(options):
        sys.exit("llama.cpp is not there: bench/generation_bench.py --with-llama-cpp compiles it, --without leaves it out")
    agreement = {}
    if "check" not in options.without:
        agreement = as_peer(options, "--as-peer", "check", "--build", options.build)[0][0]
        print("correlation of the logits with those of transformers: "
              f"distill {agreement['distill']:.4f}, llama.cpp {agreement['llama_cpp']:.4f}")  # fmt: skip
        if min(agreement["distill"], agreement["llama_cpp"]) < LEAST_CORRELATION:
            sys.exit(f"the programs do not run the same model: a correlation below {LEAST_CORRELATION}")
    results = measure_all(options, programs)
    print_table(options, results, size)
    print(json.dumps(dict(bench="teacher", shape=options.shape, threads=options.threads, prompt_tokens=options.prompt,
                          new_tokens=options.new, **size, agreement=agreement, results=results)))  # fmt: skip


if __name__ == "__main__":
    main()
