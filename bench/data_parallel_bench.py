#!/usr/bin/env python3
"""Efficiency of data parallel training beside PyTorch's DistributedDataParallel: tokens per second of N processes that
train one student over those of N processes that train one each, side by side on the same machine and memory, with one
thread and the same tokens per step and process (Gloo, loopback). What is lost is the exchange of gradients and waiting
for each other.

    bench/data_parallel_bench.py [--ranks 2] [--steps 4] [--micro-batches 1] [--cpu-clock]

On a machine that nothing else uses; or with --cpu-clock, which takes processor time instead and so leaves out what ranks
wait for each other. Needs what training_bench.py needs."""

import argparse
import json
import pathlib
import re
import subprocess
import sys

BENCH = pathlib.Path(__file__).resolve().parent / "training_bench.py"
MICRO_TOKENS = 4096
DOCUMENTS = 512  # enough that the last, partly filled batch of an epoch comes about as rarely as in real sets
NAMES = ("distill", "PyTorch")


def speeds(ranks, copies, options):
    """Tokens per second of all processes."""
    command = [BENCH, "--threads", 1, "--ranks", ranks, "--copies", copies, "--tokens",
               MICRO_TOKENS * options.micro_batches * ranks, "--micro-tokens", MICRO_TOKENS, "--steps", options.steps,
               "--documents", DOCUMENTS, "--peers", "PyTorch", "--objectives", "stored",
               *(["--cpu-clock"] if options.cpu_clock else [])]  # fmt: skip
    output = subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True).stdout
    results = json.loads(re.findall(r"^\{.*\}$", output, re.M)[-1])["results"]["stored"]
    return {name: copies * results[name]["tokens_per_second"] for name in NAMES}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    parser.add_argument("--micro-batches", type=int, default=1, help="of 4096 tokens, in a step of a process")
    parser.add_argument("--cpu-clock", action="store_true", help="measure processor time")
    options = parser.parse_args()
    rows = {"1 process": speeds(1, 1, options), f"{options.ranks} students": speeds(1, options.ranks, options),
            f"{options.ranks} ranks": speeds(options.ranks, 1, options)}  # fmt: skip
    one, apart, together = rows.values()
    efficiency = {name: together[name] / apart[name] for name in NAMES}
    print(f"{'':24}" + "".join(f"{name:>14}" for name in NAMES))
    for title, row in rows.items():
        print(f"{f'tokens/s, {title}':24}" + "".join(f"{row[name]:>14.0f}" for name in NAMES))
    print(f"{'efficiency':24}" + "".join(f"{efficiency[name]:>14.1%}" for name in NAMES))
    print(json.dumps(dict(bench="data_parallel", ranks=options.ranks, micro_batches=options.micro_batches, one=one,
                          apart=apart, together=together, efficiency=efficiency)))  # fmt: skip


if __name__ == "__main__":
    main()
