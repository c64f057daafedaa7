#!/usr/bin/env python3
"""Data parallel training: the same losses on 1, 2 and 4 ranks, a run continued by another number of ranks, the
environments of torchrun and Slurm, and what remains of a job when one of its ranks is killed or stopped."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import tiny_run

DISTILL = [os.environ["DISTILL"], "--threads", "1"]
RECIPE = {"steps": 12, "batch": {"tokens": 640, "micro_tokens": 128}, "validation": {"share": 0.2, "every": 6},
          "checkpoint": {"every": 4}, "precision": "fp32"}  # fmt: skip
LIMIT = 60  # seconds within which a job must end when a rank is lost


def prepare():
    tiny_run.make_teacher("teacher")
    pathlib.Path("student.json").write_text(json.dumps(tiny_run.STUDENT))
    pathlib.Path("recipe.json").write_text(json.dumps(RECIPE))
    prompts = [{"id": str(i), "prompt": "word " * (1 + i % 7)} for i in range(80)]
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    tiny_run.distill("generate", "--teacher", "teacher", "--prompts", "prompts.jsonl", "--out", "traces",
                     "--targets", "full", "--max-new-tokens", 40)  # fmt: skip


def command(out, *more):
    recipe = [] if "--recipe" in more else ["--recipe", "recipe.json"]
    return ["train", "--data", "traces", "--student", "student.json", "--out", out, "--teacher", "teacher", *recipe,
            *more]  # fmt: skip


def curve(out, name="loss"):
    lines = [json.loads(line) for line in pathlib.Path(out, "metrics.jsonl").read_text().splitlines()]
    return {(line["kind"], line["step"]): line[name] for line in lines if name in line}


def compare(name, reference, other):
    if reference.keys() != other.keys():
        sys.exit(f"{name}: other steps than one rank's")
    worst = max(abs(reference[key] - other[key]) / reference[key] for key in reference)
    print(f"{name}: {len(reference)} numbers, largest relative difference {worst:.1e}")
    if worst > 1e-4:
        sys.exit(f"{name}: the numbers differ")


def ranks_by_environment(out, size, variables):
    processes = [subprocess.Popen([*DISTILL, *command(out)], env={**os.environ, **variables(rank)},
                                  stdout=subprocess.DEVNULL) for rank in range(size)]  # fmt: skip
    if any(process.wait(120) != 0 for process in processes):
        sys.exit(f"{out}: a rank failed")


def children_of(process):
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(int(pid) for pid in children.split())


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_checkpoint(process, out):
    deadline = time.monotonic() + 60
    while not pathlib.Path(out, "latest").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{out}: the ranks did not begin to train")
        time.sleep(0.02)


def lose_a_rank(how, expected):
    """Starts three ranks, takes away the last one while they train, and waits for the end of the job."""
    out = f"lost-{how.name}"
    process = subprocess.Popen([*DISTILL, *command(out, "--nproc", "3", "--steps", "1000000")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for_checkpoint(process, out)
    victim = children_of(process)[2]
    start = time.monotonic()
    os.kill(victim, how)
    try:
        _, messages = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        sys.exit(f"{how.name}: the job goes on {LIMIT} seconds after it lost a rank")
    print(f"{how.name}: ended after {time.monotonic() - start:.0f} s")
    reason = re.search(expected + r" \S+ has not been heard of for \d+ seconds; it has died or hangs", messages)
    if process.returncode != 1 or not reason:
        sys.exit(f"{how.name}: exit code {process.returncode}, messages: {messages}")
    step = int(pathlib.Path(out, "latest").read_text().removeprefix("checkpoint-"))
    summary = json.loads(tiny_run.distill(*command(out, "--nproc", "2", "--steps", step + 2, "--json")))
    if summary["resumed_from"] != step or summary["steps"] != step + 2:
        sys.exit(f"{how.name}: started again, the run did not go on from step {step}: {summary}")


def torchrun_starts_again():
    """A rank is killed once; torchrun then starts the job again, and it goes on to the end."""
    out = "restarted"
    process = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                                "--max-restarts", "1", "--monitor-interval", "0.1", "--no-python", *DISTILL,
                                *command(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for_checkpoint(process, out)
    if victims := children_of(process):
        os.kill(victims[-1], signal.SIGKILL)
    _, messages = process.communicate(timeout=120)
    if process.returncode != 0 or not victims or f"continuing {out}" not in messages:
        sys.exit(f"torchrun: exit code {process.returncode}, ranks {victims}, messages: {messages}")
    compare("torchrun, started again", curve("run1"), curve(out))


def launcher_is_killed():
    out = "orphaned"
    process = subprocess.Popen([*DISTILL, *command(out, "--nproc", "2", "--steps", "100000")],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    wait_for_checkpoint(process, out)
    ranks = children_of(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + LIMIT
    while any(is_running(rank) for rank in ranks):
        if time.monotonic() > deadline:
            sys.exit("the ranks of a launcher that was killed go on")
        time.sleep(0.1)


def interrupt(ranks, everyone=False):
    """With `everyone` the launcher's children get the signal too, as from a service manager or a scheduler."""
    out = f"stopped{ranks}{everyone}"
    process = subprocess.Popen([*DISTILL, *command(out, "--nproc", str(ranks), "--steps", "100000")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    metrics = pathlib.Path(out, "metrics.jsonl")
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 5):
        time.sleep(0.1)
    for target in children_of(process) if everyone else []:
        os.kill(target, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    if process.returncode != 0 or "run the same command again" not in messages:
        sys.exit(f"SIGTERM to {ranks} ranks: exit code {process.returncode}, messages: {messages}")


def everything_at_once():
    """A teacher that is here, new answers of student and teacher, hidden states with their projectors, an average of the
    weights and activations that are computed twice: sums over ranks, whatever they are of."""
    recipe = {**RECIPE, "steps": 8, "batch": {**RECIPE["batch"], "recompute_activations": True},
              "objective": {"divergence": "reverse_kl", "hidden_states": {"weight": 1.0, "layers": {1: 1, "last": "last"}}},
              "optimizer": {"average": 0.9},
              "on_policy": {"student_share": 0.4, "teacher_share": 0.3, "max_new_tokens": 60}}  # fmt: skip
    pathlib.Path("everything.json").write_text(json.dumps(recipe))
    for ranks in (1, 2):
        tiny_run.distill(*command(f"everything{ranks}", "--nproc", ranks, "--recipe", "everything.json", "--online",
                                  "teacher"))  # fmt: skip
    for name in ("loss", "divergence", "hidden_states", "gradient_norm", "tokens"):
        compare(f"everything at once, {name}", curve("everything1", name), curve("everything2", name))
    if curve("everything1", "tokens")["train", 8] == curve("run1", "tokens")["train", 8]:
        sys.exit("everything at once: no answers were written anew")


def main():
    prepare()
    for ranks in (1, 2, 4):
        tiny_run.distill(*command(f"run{ranks}", "--nproc", ranks))
        if ranks > 1:
            compare(f"{ranks} ranks", curve("run1"), curve(f"run{ranks}"))

    # Moments shared out among the ranks: nothing changes but where they lie.
    sharded = {**RECIPE, "optimizer": {"kind": "muon", "shard": True}}
    pathlib.Path("muon.json").write_text(json.dumps({**RECIPE, "optimizer": {"kind": "muon"}}))
    pathlib.Path("sharded.json").write_text(json.dumps(sharded))
    for name, recipe, ranks, steps in (("whole", "muon", 2, 12), ("sharded", "sharded", 2, 12),
                                       ("split", "muon", 2, 5), ("split", "muon", 2, 12),
                                       ("resharded", "sharded", 2, 5), ("resharded", "muon", 2, 12)):  # fmt: skip
        tiny_run.distill(*command(name, "--nproc", ranks, "--steps", steps, "--recipe", f"{recipe}.json"))
    for whole, name in (("whole", "sharded"), ("split", "resharded")):
        for file in ("model", "optimizer"):
            path = f"checkpoint-00000012/{file}.safetensors"
            if pathlib.Path(whole, path).read_bytes() != pathlib.Path(name, path).read_bytes():
                sys.exit(f"{name}: {path} is not that of the run that shares nothing out")
    print("sharded moments: checkpoints of the same bytes, also when a run goes on without sharding")

    everything_at_once()

    tiny_run.distill(*command("mixed", "--nproc", 2, "--steps", 5))
    tiny_run.distill(*command("mixed", "--nproc", 3))
    mixed = {key: loss for key, loss in curve("mixed").items() if key[1] != 5 or key[0] == "train"}
    tiny_run.distill(*command("alone", "--steps", 5))
    tiny_run.distill(*command("alone"))
    alone = {key: loss for key, loss in curve("alone").items() if key[1] != 5 or key[0] == "train"}
    compare("5 steps on 2 ranks, the rest on 3", alone, mixed)

    ranks_by_environment("torchrun", 2, lambda rank: dict(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                                                          MASTER_ADDR="127.0.0.1", MASTER_PORT="29711"))  # fmt: skip
    compare("torchrun's environment", curve("run1"), curve("torchrun"))
    ranks_by_environment("slurm", 2, lambda rank: dict(SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS="2",
                                                       SLURM_LOCALID=str(rank), SLURM_STEP_NODELIST="localhost",
                                                       SLURM_JOB_ID="712"))  # fmt: skip
    compare("Slurm's environment", curve("run1"), curve("slurm"))

    interrupt(1)
    interrupt(2)
    interrupt(2, everyone=True)
    torchrun_starts_again()
    launcher_is_killed()
    lose_a_rank(signal.SIGKILL, "rank 2 on")
    lose_a_rank(signal.SIGSTOP, "rank 2 on")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
        os.chdir("/")
