#!/usr/bin/env python3
"""Checks that clang-format would change no file of the repository.

Usage: format_test.py <clang-format> <repository root>. Prints what it would change; exits with 1 if there is anything."""

import pathlib
import subprocess
import sys

FOLDERS = ["bench", "cli", "cmake", "core", "data", "distill", "kernels", "nn", "student", "teacher", "tests"]


def main():
    clang_format, root = sys.argv[1], pathlib.Path(sys.argv[2])
    files = [
        str(path)
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}
    ]
    assert files, f"no sources under {root}"
    print(f"{len(files)} files", flush=True)
    return subprocess.run([clang_format, "--dry-run", "-Werror", *files], cwd=root).returncode


if __name__ == "__main__":
    sys.exit(main())
