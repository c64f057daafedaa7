#!/usr/bin/env python3
"""The quickstart on a few prompts with the real teacher: stopped by a signal and run again it ends with what an
undisturbed run has, and transformers loads the student with the same logits.

$DISTILL names the program; runs in its working folder."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import safetensors.torch
import torch
import transformers

DISTILL = os.environ["DISTILL"]
DEPS = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache" / "distill"))
TEACHER = DEPS / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = 12
STEPS = 4
BOUND = 1e-3  # largest difference between logits in fp32


def command(out):
    return [DISTILL, "quickstart", "--teacher", str(TEACHER), "--prompts", "prompts.jsonl", "--out", out,
            "--steps", str(STEPS), "--json"]


def what_was_learnt(report):
    """All of a report that does not depend on the machine's speed, nor (as the bytes do) on the folder's name."""
    total = {key: report["traces"]["total"][key] for key in ("traces", "completion_tokens")}
    return [
        {key: model.get(key) for key in ("name", "parameters", "bytes", "cross_entropy", "held_out", "answers")}
        for model in report["models"]
    ] + [total, report["questions"]]


def run_with_interruptions(out):
    """SIGTERM after a few seconds, again and again, until the quickstart has done all it has to."""
    interruptions = 0
    for patience in (4, 8, 16, 32, 600, 600, 600):
        process = subprocess.Popen(command(out), stdout=subprocess.PIPE, text=True)
        try:
            output, _ = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate()
        if process.returncode == 0:
            return json.loads(output), interruptions
        assert process.returncode == 128 + signal.SIGTERM, f"ended with {process.returncode}"
        assert output == "", "a report of work that is not done"
        interruptions += 1
    raise AssertionError("the quickstart does not get anywhere")


def largest_logit_difference(student):
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    model = transformers.AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Why is the sky blue?"}],
                                        add_generation_prompt=True, return_dict=False)
    pathlib.Path("ids.jsonl").write_text(json.dumps(ids) + "\n")
    subprocess.run([DISTILL, "logits", "--model", student, "--tokens", "ids.jsonl", "--out", "logits.safetensors",
                    "--dtype", "fp32"], check=True)
    ours = safetensors.torch.load_file("logits.safetensors")["0"]
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0]
    return (ours - theirs).abs().max().item(), sum(p.numel() for p in model.parameters())


def main():
    if not TEACHER.exists():
        print(f"{TEACHER} is missing: run scripts/setup.sh --model")
        return 1
    lines = pathlib.Path(sys.argv[1]).read_text().splitlines()
    pathlib.Path("prompts.jsonl").write_text("\n".join(lines[:PROMPTS]) + "\n")
    for out in ("whole", "interrupted"):
        shutil.rmtree(out, ignore_errors=True)

    start = time.monotonic()
    whole = json.loads(subprocess.run(command("whole"), check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"whole run: {time.monotonic() - start:.0f} s, {whole['traces']['total']}")
    interrupted, count = run_with_interruptions("interrupted")
    print(f"the other was interrupted {count} times")
    good = what_was_learnt(whole) == what_was_learnt(interrupted)
    print("both learnt", "the same" if good else
          f"different things:\n{what_was_learnt(whole)}\n{what_was_learnt(interrupted)}")

    difference, parameters = largest_logit_difference(whole["student"])
    print(f"transformers loads the student: {parameters} parameters, largest |difference of logits| {difference:.1e}")
    good &= difference <= BOUND and parameters == whole["models"][1]["parameters"] <= 35_000_000
    good &= [model["name"] for model in whole["models"]] == ["teacher", "distilled", "hard-labels"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
