#!/usr/bin/env python3
"""What speculative decoding with a DeepSeek model's prediction module is worth: the speed of generation with drafts and
without, on a synthetic checkpoint of 0.68 G parameters (deepseek_checkpoint.py, small-drafts) whose tokens mostly follow
one from another and whose module is wrong about every seventh. Rounds in turn; the best of each.

    bench/drafts_bench.py [--drafts 0 1 2] [--batch 1 4 16] [--rounds 2]

Needs `scripts/setup.sh --parity` and the target generation_bench."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from generation_bench import DEPS, ROOT, run  # noqa: E402

SHAPE = "small-drafts"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 1, 2], help="tokens guessed ahead")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--new", type=int, default=96, help="generated tokens")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=pathlib.Path, default=DEPS / "teacher-bench", help="where weights are kept")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    options = parser.parse_args()

    subprocess.run([DEPS / "parity/bin/python", ROOT / "bench/deepseek_checkpoint.py", options.folder, SHAPE], check=True)
    best = {}
    for _ in range(options.rounds):
        for drafts in options.drafts:
            lines, _ = run([options.build / "bin/generation_bench", options.folder / f"{SHAPE}-fp8", options.prompt,
                            options.new, *options.batch], {**os.environ, "DISTILL_BENCH_DRAFTS": str(drafts)})  # fmt: skip
            for line in lines:
                key = drafts, line["batch"]
                best[key] = max(line, best.get(key, line), key=lambda line: line["decode_tokens_per_second"])
    print("| drafts | tokens per pass | " + " | ".join(f"batch {batch}, tokens/s" for batch in options.batch) + " |")
    print("| -----: | --------------: |" + " ---: |" * len(options.batch))
    for drafts in options.drafts:
        cells = []
        for batch in options.batch:
            speed = best[drafts, batch]["decode_tokens_per_second"]
            plain = best[options.drafts[0], batch]["decode_tokens_per_second"]
            cells.append(f"{speed:.0f} ({speed / plain:.2f}x)")
        per_pass = best[drafts, options.batch[-1]]["tokens_per_pass"]
        print(f"| {drafts} | {per_pass:.2f} | {' | '.join(cells)} |")
    print(json.dumps(dict(bench="drafts", results=list(best.values()))))


if __name__ == "__main__":
    main()
