#!/usr/bin/env python3
"""Checks that includes point only downward: a folder includes itself and folders below it, never one above or beside.

Usage: include_direction_test.py <repository root>. Prints each offending line; exits with 1 if there is one."""

import pathlib
import re
import sys

BELOW = {"core": []}
BELOW["kernels"] = ["core"]
BELOW["data"] = ["kernels", "core"]
BELOW["nn"] = ["data", "kernels", "core"]
BELOW["student"] = ["nn", "data", "kernels", "core"]
BELOW["teacher"] = ["nn", "data", "kernels", "core"]
BELOW["distill"] = ["teacher", "student", "nn", "data", "kernels", "core"]
BELOW["cli"] = ["distill", *BELOW["distill"]]

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def offences(root):
    for folder, below in BELOW.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                target = match.group(1).split("/")[0]
                if target not in BELOW:
                    yield f"{path.relative_to(root)}:{number}: includes {match.group(1)!r}, not named from the root"
                elif target != folder and target not in below:
                    yield f"{path.relative_to(root)}:{number}: {folder}/ may not include {target}/"


def main():
    root = pathlib.Path(sys.argv[1])
    found = list(offences(root))
    print("\n".join(found) if found else "every include points downward")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
