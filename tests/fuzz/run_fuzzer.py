#!/usr/bin/env python3
"""Runs one fuzzer for a bounded time, starting from small sound files that are made here.

Usage: run_fuzzer.py <fuzzer> <gguf|journal|safetensors|shard|trace> <seconds>. What makes it fail is left in the working folder."""

import json
import pathlib
import struct
import subprocess
import sys


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(version, metadata, tensors, alignment=32):
    """`metadata`: (key, type, bytes of the value); `tensors`: (name, sizes, type, bytes)."""
    file = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, kind, value in metadata:
        file += gguf_string(key) + struct.pack("<I", kind) + value
    data = b""
    for name, sizes, kind, content in tensors:
        data += bytes(-len(data) % alignment)
        file += gguf_string(name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        file += struct.pack("<IQ", kind, len(data))
        data += content
    return file + bytes(-len(file) % alignment) + data


def gguf_seeds():
    number = lambda value: struct.pack("<I", value)  # noqa: E731
    sizes = [("llama.block_count", 1), ("llama.embedding_length", 4), ("llama.feed_forward_length", 4),
             ("llama.context_length", 8), ("llama.attention.head_count", 2), ("llama.attention.head_count_kv", 1)]
    model = [("general.architecture", 8, gguf_string("llama"))] + [(key, 4, number(value)) for key, value in sizes]
    model += [("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
              ("llama.rope.scaling.type", 8, gguf_string("yarn"))]
    yield gguf(3, model, [("token_embd.weight", [4, 2], 0, bytes(32)), ("blk.0.attn_q.weight", [4, 4], 1, bytes(32)),
                          ("rope_freqs.weight", [1], 0, struct.pack("<f", 8))])
    arrays = [("tokens", 9, struct.pack("<IQ", 8, 2) + gguf_string("a") + gguf_string("b")),
              ("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 5, 1) + number(7)),
              ("general.alignment", 4, number(8)), ("flag", 7, b"\1"), ("f64", 12, struct.pack("<d", 0.5))]
    blocks = {2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144), 13: (256, 176),
              14: (256, 210), 30: (4, 8), 24: (3, 3)}
    yield gguf(2, arrays, [(f"t{kind}", [values], kind, bytes(size)) for kind, (values, size) in blocks.items()], 8)
    yield gguf(3, [], [])


def safetensors_seeds():
    for header, data in [
            ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
              "b": {"dtype": "BOOL", "shape": [], "data_offsets": [16, 17]}, "__metadata__": {"format": "pt"}}, bytes(17)),
            ({"q": {"dtype": "F8_E4M3", "shape": [3, 0], "data_offsets": [0, 0]}}, b""), ({}, b"")]:
        text = json.dumps(header).encode()
        yield struct.pack("<Q", len(text)) + text + data


def trace_seeds():
    """A byte that chooses the codec, then a document record. Almost any words are a coded payload."""
    tokens = [1, 2, 3] + list(range(20))
    head = struct.pack("<4I2BHdQ", 2, 0, 3, len(tokens), 0, 1, 0, -1.5, 7) + b"p0" + struct.pack(f"<{len(tokens)}H", *tokens)
    for codec in range(7):
        for words in (16, 60, 200):
            yield bytes([codec]) + head + bytes((i * i * 31 + 7 * codec) % 256 for i in range(2 * words))
    plain = struct.pack("<20I", *[2] * 20) + bytes(80) + struct.pack("<40H", *range(40)) + struct.pack("<40f", *[0.5] * 40)
    yield bytes([5]) + head + plain
    yield bytes([6]) + head + bytes(20 * 40 * 2)
    yield bytes([255]) + bytes([0, 0, 1, 0]) + bytes(range(256)) * 4


def provenance(targets, **more):
    return json.dumps({"teacher": "teacher.gguf",
                       "fingerprints": {"weights": "1" * 64, "config": "2" * 64, "tokenizer": "3" * 64, "chat_template": "4" * 64},
                       "vocab_size": 40,
                       "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_new_tokens": 256, "seed": 0},
                       "targets": {"mode": targets, "temperature": 1.0}, "command": "distill generate", "version": "0.1.0", **more}).encode()


def plain_payload(positions):
    return (struct.pack(f"<{positions}I", *[2] * positions) + bytes(4 * positions)
            + struct.pack(f"<{2 * positions}H", *range(2 * positions)) + struct.pack(f"<{2 * positions}f", *[0.5] * 2 * positions))


def journal_seeds():
    """Pieces of a journal: what they are, their length, and they themselves."""
    tokens = [1, 2, 3, 4, 5]
    record = lambda sample: (struct.pack("<4I2BHdQ", 2, sample, 3, 5, 0, 1, 0, -1.5, 7) + b"p0"  # noqa: E731
                             + struct.pack("<5H", *tokens) + struct.pack("<I", 0) + plain_payload(2))
    piece = lambda kind, body: struct.pack("<BH", kind, len(body)) + body  # noqa: E731
    fidelity = bytes(4 + 16 + 240)
    measured = record(0)[:48] + struct.pack("<I", len(fidelity)) + fidelity + plain_payload(2)
    yield piece(1, record(0)) + piece(2, record(1))
    yield piece(1, record(0)) + piece(4, b"damaged") + piece(1, record(2)) + piece(4, record(3)[:20])
    yield piece(1, measured)
    yield piece(129, provenance("threshold:4")) + piece(1, record(0))
    with_states = record(0)[:52] + bytes(2 * 3 * 5 * 2) + record(0)[52:]  # three layers of five values
    yield piece(65, with_states) + piece(65, with_states[:60])


def shard_seeds():
    """Which checksums to make right, then a shard, which need not be HDF5 to be read."""
    tokens, prompts = [1, 2, 3, 4, 5, 6, 7, 8, 9], b"p0p1"
    spec = {"layers": [0, 2], "last_layer": 2, "width": 3}
    for flags, targets, codec, payload, hidden in [(7, "topk:2", "plain", plain_payload(2), None), (7, "full", "full", bytes(2 * 40 * 2), None),
                                                   (6, "topk:2", "plain", plain_payload(2), None),
                                                   (7, "threshold:4", "sets", bytes(range(1, 101)), None),
                                                   (7, "topk:2", "plain", plain_payload(2), (spec | {"dtype": "bf16"}, bytes(2 * 2 * 6))),
                                                   (7, "topk:2", "plain", plain_payload(2), (spec | {"dtype": "fp8"}, bytes(range(2 * 2 * 7))))]:
        fidelity = {"positions": 1, "kl": 0.1, "tail_mass": 0.2, "ece": 0.0, "calibration": [[1, 0.5, 0.5]] * 10,
                    "gradient_angle_deg": 3.0, "gradient_norm_ratio": 1.0}
        sets = codec == "sets"  # whose payloads hold the tokens
        regions = [b"" if sets else struct.pack("<9H", *tokens), payload * 2, provenance(targets, **({"hidden_states": hidden[0]} if hidden else {})),
                   json.dumps({"name": codec, "version": 1} | ({"version": 2, "weight_bits": 6} if sets else {})).encode(),
                   bytes([1, 0, 0, 0, 7, 0]) + bytes(range(50)) if sets else b"", prompts, struct.pack("<3Q", 0, 2, 4),
                   struct.pack("<2I", 0, 0), struct.pack("<2I", 2, 3), struct.pack("<3Q", 0, 4, 9),
                   struct.pack("<3Q", 0, len(payload), 2 * len(payload)), bytes([0, 1]), bytes([1, 2]),
                   struct.pack("<2d", -1, -2), struct.pack("<2Q", 3, 4), bytes(8), json.dumps(fidelity).encode()]
        if hidden:
            regions += [struct.pack("<3Q", 0, len(hidden[1]), 2 * len(hidden[1])), bytes(8), hidden[1] * 2]
        at, places, data = 512, b"", b""
        for region in regions:
            places += struct.pack("<2Q", at if region else 0, len(region))
            data += region
            at += len(region)
        yield bytes([flags]) + bytes(8) + struct.pack("<I", 2 if hidden else 1) + bytes(20) + places + bytes(480 - len(places)) + data


def main():
    fuzzer, kind, seconds = sys.argv[1:]
    corpus = pathlib.Path("corpus-" + kind)
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(SEEDS[kind]()):
        (corpus / f"seed-{number}").write_bytes(seed)
    return subprocess.run([fuzzer, f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=4096",
                           "-print_final_stats=1", corpus]).returncode


SEEDS = {"gguf": gguf_seeds, "journal": journal_seeds, "safetensors": safetensors_seeds, "shard": shard_seeds,
         "trace": trace_seeds}

if __name__ == "__main__":
    sys.exit(main())
