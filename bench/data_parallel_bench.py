#!/usr/bin/env python3
"""Efficiency of data parallel training beside PyTorch's DistributedDataParallel: tokens per second of N processes over N
times that of one, each process with one thread and the same tokens per step and process (Gloo, loopback).

    bench/data_parallel_bench.py [--ranks 2] [--steps 4] [--cpu-clock]

On a machine that nothing else uses; or with --cpu-clock, which takes processor time instead and so leaves out what ranks
wait for each other. Needs what training_bench.py needs."""

import argparse
import json
import pathlib
import re
import subprocess
import sys

BENCH = pathlib.Path(__file__).resolve().parent / "training_bench.py"


def speeds(ranks, options):
    tokens = 4096 * ranks
    command = [BENCH, "--threads", 1, "--ranks", ranks, "--tokens", tokens, "--micro-tokens", 4096, "--steps",
               options.steps, "--documents", 64 * ranks, "--peers", "PyTorch", "--objectives", "stored",
               *(["--cpu-clock"] if options.cpu_clock else [])]  # fmt: skip
    output = subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True).stdout
    results = json.loads(re.findall(r"^\{.*\}$", output, re.M)[-1])["results"]["stored"]
    return {name: results[name]["tokens_per_second"] for name in ("distill", "PyTorch")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    parser.add_argument("--cpu-clock", action="store_true", help="measure processor time")
    options = parser.parse_args()
    one, many = speeds(1, options), speeds(options.ranks, options)
    efficiency = {name: many[name] / (options.ranks * one[name]) for name in one}
    print(f"{'':24}{'distill':>10}{'PyTorch DDP':>14}")
    print(f"{'tokens/s, 1 rank':24}{one['distill']:>10.0f}{one['PyTorch']:>14.0f}")
    print(f"{f'tokens/s, {options.ranks} ranks':24}{many['distill']:>10.0f}{many['PyTorch']:>14.0f}")
    print(f"{'efficiency':24}{efficiency['distill']:>9.1%} {efficiency['PyTorch']:>13.1%}")
    print(json.dumps(dict(bench="data_parallel", ranks=options.ranks, one=one, many=many, efficiency=efficiency)))


if __name__ == "__main__":
    main()
