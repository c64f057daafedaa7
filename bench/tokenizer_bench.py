"""Encoding speed beside Hugging Face tokenizers, in one run on one thread: documents of 1 to 10 kB of prose and of code.

    ~/.cache/distill/parity/bin/python bench/tokenizer_bench.py [--build build/release] [--seconds 1] [FAMILY...]

The peer is timed both as people call it (encode, which also computes offsets) and at its fastest (encode_batch_fast,
without offsets, one document a call). Processor time of the fastest pass counts, since others may share the machine. The
vocabularies are trained on this machine's text by tests/parity/make_tokenizers.py; "smollm2" is the real one.
Prints a table, and last a line of JSON.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/parity"))

import tokenizers  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

import make_tokenizers  # noqa: E402
import tokenizer_parity  # noqa: E402

PROSE = ("/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl")
CODE = ("/usr/lib/python3.11", "/usr/share/perl", "/usr/include")


def documents(roots, suffixes, count=300, seed=3):
    rng = random.Random(seed)
    files = sorted(p for root in roots for p in pathlib.Path(root).rglob("*") if p.suffix in suffixes and p.is_file() and p.stat().st_size > 2000)
    rng.shuffle(files)
    result = []
    for path in files[:count]:
        text = path.read_bytes()[:100_000].decode("utf-8", "replace")
        size = rng.randint(1000, 10_000)
        begin = rng.randrange(max(1, len(text) - size))
        result.append(text[begin : begin + size])
    return result


def fastest(action, seconds):
    """Processor seconds of the fastest call."""
    best = float("inf")
    end = time.process_time() + seconds
    while time.process_time() < end:
        start = time.process_time()
        action()
        best = min(best, time.process_time() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=["smollm2", "gpt2", "llama3", "qwen2", "deepseek-v3", "tekken"])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    arguments = parser.parse_args()
    texts = {"prose": documents(PROSE, {"", ".txt", ".md", ".pod"}), "code": documents(CODE, {".py", ".pm", ".h"})}
    rows = []
    print(f"tokenizers {tokenizers.__version__}, one thread, MB per second of processor time")
    print(f"{'family':12} {'text':6} {'distill':>8} {'encode':>8} {'ratio':>6} {'fast':>8} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        trained = [f for f in arguments.families if f != "smollm2"]
        if trained:
            subprocess.run([sys.executable, make_tokenizers.__file__, scratch, "--families", *trained], check=True, stdout=subprocess.DEVNULL)
        for family in arguments.families:
            model = tokenizer_parity.SMOLLM2 if family == "smollm2" else scratch / f"{family}.json"
            peer = tokenizer_parity.smollm2_peer() if family == "smollm2" else Tokenizer.from_file(str(model))
            for kind, docs in texts.items():
                lines = scratch / "documents.jsonl"
                lines.write_text("".join(json.dumps(d) + "\n" for d in docs))
                output = subprocess.run([arguments.build / "bin/tokenizer_speed", model, lines, str(arguments.seconds)], check=True, capture_output=True)
                ours = json.loads(output.stdout)
                size = sum(len(d.encode()) for d in docs)
                tokens = sum(len(peer.encode(d).ids) for d in docs)
                if tokens != ours["tokens"]:
                    sys.exit(f"{family}, {kind}: {ours['tokens']} tokens, the peer has {tokens}")
                full = size / fastest(lambda: [peer.encode(d) for d in docs], arguments.seconds)
                fast = size / fastest(lambda: [peer.encode_batch_fast([d]) for d in docs], arguments.seconds)
                row = {"family": family, "text": kind, "distill": ours["bytes_per_second"], "encode": full, "encode_batch_fast": fast}
                row["ratio"], row["ratio_fast"] = row["distill"] / full, row["distill"] / fast
                rows.append(row)
                print(
                    f"{family:12} {kind:6} {row['distill'] / 1e6:8.1f} {full / 1e6:8.1f} {row['ratio']:5.1f}x {fast / 1e6:8.1f} {row['ratio_fast']:5.1f}x",
                    flush=True,
                )
    print(json.dumps({"benchmark": "tokenizer", "peer": f"tokenizers {tokenizers.__version__}", "threads": 1, "rows": rows}))


if __name__ == "__main__":
    main()
