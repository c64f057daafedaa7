#!/usr/bin/env python3
"""Decodes trace shards with numpy and h5py alone and compares everything with `distill shards export`.

Usage: h5py_parity.py <write_sample_traces>. The program under test is $DISTILL."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from safetensors import safe_open

from trace_format import Shard

# Name, targets, vocabulary, documents, whether entropy-coded, and as what hidden states are stored.
SETS = [
    ("plain", "topk:8", 300, 40, "plain"),
    ("wide", "topk:5", 70000, 8, "plain"),
    ("full", "full", 200, 6, "sets"),
    ("topk", "topk:8", 300, 40, "sets"),
    ("sampled", "sampled:25", 300, 20, "sets"),
    ("hybrid", "hybrid:4+6", 300, 20, "sets"),
    ("threshold", "threshold:16", 70000, 8, "sets"),
    ("cutoff", "threshold:0.05", 300, 20, "sets"),
    ("bf16", "threshold:0.05", 300, 20, "sets", "bf16"),
    ("fp8", "full", 200, 20, "sets", "fp8"),
]


def compare(ours, theirs, exact):
    """The worst difference of a weight; everything else must be equal."""
    worst = 0.0
    for name in ("prompt_id", "sample", "prompt_length", "tokens", "finish_reason", "verdict", "log_probability", "seed"):
        assert ours[name] == theirs[name], f"{name}: {ours[name]} against {theirs[name]}"
    assert len(ours["targets"]) == len(theirs["targets"]), "number of targets"
    for position, (target, (ids, weights, uncovered)) in enumerate(zip(ours["targets"], theirs["targets"])):
        assert target["ids"] == ids.tolist(), f"position {position}: ids"
        # Exponentials and sines may differ in the last bit.
        difference = np.abs(np.array(target["weights"] + [target["uncovered"]]) - np.append(weights, uncovered)).max()
        assert difference <= (0 if exact else 2e-7), f"position {position}: weights differ by {difference}"
        worst = max(worst, float(difference))
    return worst


def compare_hidden_states(shards, folder, distill):
    """That they are those of the safetensors export."""
    subprocess.run([distill, "shards", "export", folder, "--out", "exported.safetensors"], check=True)
    with safe_open("exported.safetensors", "pt") as exported:
        values = exported.get_tensor("hidden_states").float()
        if "hidden_scales" in exported.keys():
            values *= exported.get_tensor("hidden_scales").repeat_interleave(128, 2)[..., : values.shape[2]]
    ours = np.concatenate([shard.hidden_states(i) for shard in shards for i in range(shard.size)])
    assert ours.shape == tuple(values.shape) and (ours == values.numpy()).all(), "hidden states"


def compare_first_version(shard, distill):
    """A shard whose codec `sets` has version 1, without tokens."""
    subprocess.run([distill, "shards", "export", shard, "--out", "version-1.jsonl"], check=True)
    ours, reader = [json.loads(line) for line in open("version-1.jsonl")], Shard(shard)
    assert reader.codec["version"] == 1 and len(ours) == reader.size > 0
    worst = max(compare(row, reader.document(i), False) for i, row in enumerate(ours))
    print(f"{shard.name}: {reader.size} documents equal; worst weight difference {worst:.1e}")


def main():
    writer, distill = sys.argv[1], os.environ["DISTILL"]
    compare_first_version(pathlib.Path(__file__).parents[1] / "data/testdata/sets-version-1.h5", distill)
    for name, mode, vocab, documents, codec, *hidden in SETS:
        folder = pathlib.Path(name)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([writer, folder, mode, str(vocab), str(documents), str(documents // 2), codec, *hidden], check=True)
        subprocess.run([distill, "shards", "verify", folder], check=True)
        subprocess.run([distill, "shards", "export", folder, "--out", f"{name}.jsonl"], check=True)
        ours = [json.loads(line) for line in open(f"{name}.jsonl")]
        shards = [Shard(path) for path in sorted(folder.glob("*.h5"))]
        theirs = [shard.document(i) for shard in shards for i in range(shard.size)]
        assert len(shards) == 2 and len(ours) == len(theirs) == documents, (len(shards), len(ours), len(theirs))
        worst = max(compare(a, b, codec == "plain") for a, b in zip(ours, theirs))
        statistics = json.loads(subprocess.run([distill, "shards", "stats", folder, "--json"], check=True, capture_output=True).stdout)
        size, tokens = sum(path.stat().st_size for path in folder.glob("*.h5")), sum(len(row["targets"]) for row in ours)
        assert statistics["documents"] == documents and statistics["tokens"] == tokens, statistics
        measured = [shard.fidelity for shard in shards]
        positions = sum(one["positions"] for one in measured)
        assert positions == statistics["fidelity"]["positions"] == sum((len(row["targets"]) + 3) // 4 for row in ours)
        for key in ("kl", "tail_mass", "gradient_angle_deg", "gradient_norm_ratio"):
            mean = sum(one[key] * one["positions"] for one in measured) / positions
            assert abs(mean - statistics["fidelity"][key]) < 1e-9, key
        parts = statistics["bytes_per_token"]
        assert abs(parts["total"] - size / tokens) < 1e-9 * size, parts
        assert abs(sum(parts.values()) - 2 * parts["total"]) < 1e-6, parts
        assert parts["hidden"] == sum(len(shard.hidden) for shard in shards) / tokens and (parts["hidden"] > 0) == bool(hidden)
        if hidden:
            compare_hidden_states(shards, folder, distill)
        shutil.copy(shards[0].path, folder / "twice.h5")
        twice = subprocess.run([distill, "shards", "verify", folder], capture_output=True, text=True)
        assert twice.returncode == 1 and "is in both" in twice.stderr, twice
        print(f"{name}: {documents} documents, {tokens} targets in {len(shards)} shards equal; worst weight difference {worst:.1e}; {parts['total']:.1f} B/token")


if __name__ == "__main__":
    main()
