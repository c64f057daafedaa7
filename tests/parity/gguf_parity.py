#!/usr/bin/env python3
"""Compares our GGUF reader with the `gguf` package: every quantisation type on random bytes, on quantised normal
numbers and on extreme scales, and every tensor of SmolLM2-135M-Instruct where it is installed. Equal means bit for bit.

The program that dumps tensors is named by $DUMP_TENSORS."""

import os
import pathlib
import subprocess
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file

SUPPORTED = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K,
             Type.Q6_K]
# Where the 16-bit floats (scales and minima) of a block lie.
HALVES = {Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q4_K: [0, 2],
          Type.Q5_K: [0, 2], Type.Q6_K: [208]}
EXTREME = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, -65504.0, 6e-8, -6e-8, 6.1e-5, 1.0], np.float16)
SIGNALLING_NAN = np.array([0x7C01, 0xFD55], np.uint16).view(np.float16)


def random_blocks(generator, kind, rows, blocks):
    return generator.integers(0, 256, (rows, blocks * gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)


def extreme_blocks(generator, kind):
    """Blocks of random numbers whose scales and minima are every pair of extremes."""
    scales = np.concatenate([EXTREME, SIGNALLING_NAN])
    pairs = [(a, b) for a in scales for b in scales]
    data = random_blocks(generator, kind, len(pairs), 1)
    for row, pair in zip(data, pairs):
        for offset, value in zip(HALVES[kind], pair):
            row[offset:offset + 2] = np.array([value]).view(np.uint8)
    return data


def write(path, tensors):
    writer = gguf.GGUFWriter(path, "test")
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def differing(ours, theirs):
    """How many values differ in their bits, how many are NaN in both, and how many of these have different payloads.
    The last is no failure: where a NaN scale meets a NaN minimum, the payload that survives is up to the order of the
    operands, which numpy's vector loops choose differently from one column to the next."""
    bits = ours.view(np.uint32) != theirs.view(np.uint32)
    both_nan = np.isnan(ours) & np.isnan(theirs)
    return np.array([(bits & ~both_nan).sum(), both_nan.sum(), (bits & both_nan).sum()])


def compare(path):
    out = pathlib.Path("dumped.safetensors")
    subprocess.run([os.environ["DUMP_TENSORS"], path, out], check=True)
    ours = load_file(out)
    reader = gguf.GGUFReader(path)
    if set(ours) != {tensor.name for tensor in reader.tensors}:
        sys.exit(f"{path}: the names of the tensors differ")
    kinds = {}
    for tensor in reader.tensors:
        theirs = np.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if theirs.shape != ours[tensor.name].shape:
            sys.exit(f"{path}: {tensor.name} has shape {ours[tensor.name].shape}, not {theirs.shape}")
        counts = np.concatenate([[1, theirs.size], differing(ours[tensor.name].reshape(-1), theirs.reshape(-1))])
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + counts
    out.unlink()
    for kind, (tensors, values, wrong, nan, payloads) in sorted(kinds.items()):
        print(f"  {kind:6} {tensors:4} tensors {values:11,} values, {nan:6,} NaN ({payloads} payloads): {wrong} differ")
    return sum(int(counts[2]) for counts in kinds.values())


def main():
    generator = np.random.default_rng(7)
    tensors = {}
    with np.errstate(all="ignore"):
        for kind in SUPPORTED:
            block = gguf.GGML_QUANT_SIZES[kind][0]
            if kind in HALVES:
                tensors[f"random.{kind.name}"] = kind, random_blocks(generator, kind, 33, 7)
                tensors[f"extreme.{kind.name}"] = kind, extreme_blocks(generator, kind)
            elif kind == Type.F32:
                tensors[f"random.{kind.name}"] = kind, generator.integers(0, 2**32, (9, 1001), np.uint32).view(np.float32)
            else:
                every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
                tensors[f"every.{kind.name}"] = kind, every.view(np.float16 if kind == Type.F16 else np.uint8)
            try:
                normal = generator.standard_normal((8, 8 * block), np.float32)
                tensors[f"normal.{kind.name}"] = kind, gguf.quants.quantize(normal, kind)
            except NotImplementedError:
                pass  # the package dequantises the K types but does not quantise to them
        path = pathlib.Path("blocks.gguf")
        write(path, tensors)
        print(f"{len(tensors)} tensors of {len(SUPPORTED)} types written with gguf:")
        wrong = compare(path)
        path.unlink()

    model = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
    model /= "SmolLM2-135M-Instruct.Q4_1.gguf"
    if model.exists():
        print(f"{model.name}:")
        wrong += compare(model)
    else:
        print(f"not compared: {model} is not there (scripts/setup.sh --model)")
    if wrong:
        sys.exit(f"{wrong} values differ")
    print("all equal bit for bit")


if __name__ == "__main__":
    main()
