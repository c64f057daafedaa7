#!/usr/bin/env python3
"""Prints a compile_commands.json of GCC as clang's tools can use it: without the precompiled header, which only GCC
reads, and without the options that clang does not know.

Usage: clang_compile_commands.py build/release/compile_commands.json"""

import json
import shlex
import sys

ONLY_GCC = {"-fpch-preprocess", "-Winvalid-pch", "-Wno-maybe-uninitialized", "-Wno-restrict", "-Wno-stringop-overflow"}


def for_clang(command):
    kept = []
    words = iter(shlex.split(command))
    for word in words:
        if word == "-include":
            header = next(words)
            if not header.endswith("cmake_pch.hxx"):
                kept += [word, header]
        elif word not in ONLY_GCC:
            kept.append(word)
    return kept


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        entries = json.load(file)
    clang = [
        {"directory": entry["directory"], "file": entry["file"], "arguments": for_clang(entry["command"])}
        for entry in entries
        if entry["file"].endswith(".cpp")
    ]
    json.dump(clang, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
