#!/usr/bin/env python3
"""Runs the program's own completion scripts: completes words in bash as the Tab key would, and has zsh and fish read
theirs where they are installed.

Usage: completion_test.py <distill>. Exits with 1 if something is offered wrongly."""

import pathlib
import re
import shutil
import subprocess
import sys
import tempfile


def output_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def complete_in_bash(script, words):
    """What bash offers for the last of `words`."""
    source = f"""source {script}
COMP_WORDS=({' '.join(repr(word) for word in words)})
COMP_CWORD={len(words) - 1}
_distill
printf '%s\\n' "${{COMPREPLY[@]}}" """
    return set(output_of("bash", "--norc", "-c", source).split())


def main():
    distill = sys.argv[1]
    listed = output_of(distill, "--help").split("Subcommands:")[1]
    commands = set(re.findall(r"^  (\w+)", listed, re.M))
    assert "completion" in commands, listed

    with tempfile.TemporaryDirectory() as folder:
        bash = pathlib.Path(folder, "distill.bash")
        bash.write_text(output_of(distill, "completion", "bash"))
        offered = complete_in_bash(bash, ["distill", ""])
        assert commands <= offered, f"not offered: {commands - offered}"
        assert complete_in_bash(bash, ["distill", "compl"]) == {"completion"}
        assert complete_in_bash(bash, ["distill", "completion", "z"]) == {"zsh"}
        assert complete_in_bash(bash, ["distill", "--log-level", "d"]) == {"debug"}
        assert complete_in_bash(bash, ["distill", "completion", "--log-level", "w"]) == {"warning"}
        for command in commands:
            options = set(re.findall(r"(--[a-z][-a-z0-9]*)", output_of(distill, command, "--help").split("Options:")[1]))
            options = {option for option in options if re.search(rf"^  (-\w,)?{option}\b", output_of(distill, command, "--help"), re.M)}
            offered = complete_in_bash(bash, ["distill", command, "-"])
            assert options <= offered, f"{command}: not offered: {options - offered}"
        print(f"bash completes {len(commands)} commands and their options")

        for shell in ("zsh", "fish"):
            script = pathlib.Path(folder, f"distill.{shell}")
            script.write_text(output_of(distill, "completion", shell))
            assert all(command in script.read_text() for command in commands)
            if shutil.which(shell):
                subprocess.run([shell, "--no-execute" if shell == "fish" else "-n", str(script)], check=True)
                print(f"{shell} reads its script")
            else:
                print(f"{shell} is not installed: its script was not run")
        if shutil.which("fish"):
            source = f"source {folder}/distill.fish; complete -C 'distill completion '"
            assert {"bash", "zsh", "fish"} <= set(output_of("fish", "-N", "-c", source).split())


if __name__ == "__main__":
    main()
