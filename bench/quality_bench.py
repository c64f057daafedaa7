#!/usr/bin/env python3
"""What a student learns from each way to store the teacher's distributions: SmolLM2-135M-Instruct's answers, a student of
11 M parameters with fresh weights, the same tokens in the same order for every kind of targets, several seeds. Prints a
table of held-out losses with 95 % confidence intervals of the differences from full distributions, paired by seed.

    bench/quality_bench.py --out quality [--seeds 3] [--tokens 40960] [--samples 3]

Takes an hour or two on two cores; stopped and run again, it goes on. --table prints the table of what is there so far.

The loss is the mean of -log p over the held-out answers' tokens, KL and agreement are with the teacher's whole
distributions, ECE is the expected calibration error of the student's first choices. How many times the tokens hard
labels need is interpolated between runs of 1, 2 and 4 times the tokens, each with its own schedule, linearly in the
logarithm of the tokens.

Needs `scripts/setup.sh --model` and the targets distill and quality_bench."""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess

DEPS = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
ROOT = pathlib.Path(__file__).resolve().parent.parent
# The 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values):
    """Mean and half the width of its 95 % confidence interval; infinite for one value."""
    if len(values) < 2:
        return values[0], math.inf
    width = STUDENT_T[min(len(values) - 2, len(STUDENT_T) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), width


def with_interval(values, digits, sign=""):
    mean, width = interval(values)
    return f"{mean:{sign}.{digits}f} ± {width:.{digits}f}"


def multiple_for(loss, points):
    """The multiple of the tokens at which the curve through points [(multiple, loss)] falls to `loss`; infinity if it
    ends above."""
    for (low, high_loss), (high, low_loss) in zip(points, points[1:]):
        if low_loss <= loss <= high_loss:
            return low * (high / low) ** ((high_loss - loss) / (high_loss - low_loss))
    return math.inf if loss < points[-1][1] else 1.0


def print_table(path):
    runs = {}
    for line in path.read_text().splitlines():
        run = json.loads(line)
        runs.setdefault(run["variant"], {})[run["seed"]] = run
    full = runs["full"]
    print(f"{len(full)} seeds, {statistics.mean(run['tokens'] for run in full.values()):.0f} tokens each, "
          f"{statistics.mean(run['held_out']['targets'] for run in full.values()):.0f} held-out targets\n")  # fmt: skip
    print("| targets | bytes per token | loss | above full's, % | KL | above full's, % | agreement, % | ECE, % |")
    print("| ------- | --------------: | ---: | --------------: | -: | --------------: | -----------: | -----: |")
    for variant, by_seed in runs.items():
        seeds = sorted(by_seed.keys() & full.keys())
        values = {key: [by_seed[seed]["held_out"][key] for seed in seeds]
                  for key in ("cross_entropy", "divergence", "agreement", "calibration_error")}  # fmt: skip
        above = {key: [100 * (value / full[seed]["held_out"][key] - 1) for seed, value in zip(seeds, values[key])]
                 for key in ("cross_entropy", "divergence")}  # fmt: skip
        cells = [variant, f"{by_seed[seeds[0]]['bytes_per_token']:.1f}" if by_seed[seeds[0]]["bytes_per_token"] else ""]
        for key in ("cross_entropy", "divergence"):
            cells += [f"{statistics.mean(values[key]):.3f}",
                      "" if variant == "full" else with_interval(above[key], 2, "+")]  # fmt: skip
        cells += [f"{100 * statistics.mean(values['agreement']):.1f}",
                  with_interval([100 * value for value in values["calibration_error"]], 2)]  # fmt: skip
        if len(seeds) < len(full):
            cells[0] += f" ({len(seeds)} seeds)"
        print(f"| {' | '.join(cells)} |")
    print()
    curve = {1: runs.get("hard", {}), 2: runs.get("hard x2", {}), 4: runs.get("hard x4", {})}
    seeds = sorted(full.keys() & curve[1].keys() & curve[2].keys())
    if not seeds:
        return
    for key, title in (("cross_entropy", "loss"), ("divergence", "KL")):
        needed = [multiple_for(full[seed]["held_out"][key], [(multiple, by_seed[seed]["held_out"][key])
                                                             for multiple, by_seed in curve.items() if seed in by_seed])
                  for seed in seeds]  # fmt: skip
        known = [value for value in needed if value < math.inf]
        if len(known) < len(needed):
            print(f"hard labels need more tokens for full's {title} than were measured in {len(needed) - len(known)} of "
                  f"{len(needed)} seeds; in the others {[round(value, 2) for value in known]} times as many")  # fmt: skip
        else:
            print(f"hard labels need {with_interval(needed, 2)} times the tokens for full's {title} ({len(needed)} seeds)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="answers, shards and results")
    parser.add_argument("--teacher", type=pathlib.Path, default=DEPS / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--prompts", type=pathlib.Path, default=ROOT / "recipes/prompts/quickstart.jsonl")
    parser.add_argument("--samples", type=int, default=3, help="answers per prompt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=40960, help="per student, prompts included")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    answers = options.out / "answers"
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        subprocess.run([options.build / "bin/distill", "generate", "--teacher", options.teacher, "--prompts",
                        options.prompts, "--out", answers, "--samples", str(options.samples), "--max-new-tokens", "160",
                        "--targets", "topk:1", "--batch", "64"], check=True)  # fmt: skip
        subprocess.run([options.build / "bin/quality_bench", options.teacher, answers, options.out,
                        str(options.tokens), *map(str, range(options.seeds))], check=True)  # fmt: skip
    print_table(options.out / f"results-{options.tokens}.jsonl")


if __name__ == "__main__":
    main()
