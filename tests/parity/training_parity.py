#!/usr/bin/env python3
"""Checks the figures of `distill train` and `distill eval`: the same evaluation computed by transformers from the
traces' exported targets (fp32, relative difference <= 1e-4), one optimizer step of the whole loop against PyTorch's
(max |weight difference| <= 1e-6), TensorBoard's event files read by TensorBoard, and memory that does not grow with the
number of steps.

The program is named by $DISTILL."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import tiny_run
from tiny_run import distill


def check(condition, message):
    if not condition:
        sys.exit(f"training_parity: {message}")


def read_traces():
    return [json.loads(line) for line in distill("shards", "export", "traces", "--out", "-").splitlines()]


def losses(model, trace):
    """KL with a ghost token for what is not stored, cross-entropy, and agreement, per target of one trace."""
    tokens = torch.tensor([trace["tokens"]])
    log_p = model(tokens).logits[0].double().log_softmax(-1)
    first = trace["prompt_length"] - 1
    kl, ce, agreement = [], [], []
    for i, target in enumerate(trace["targets"]):
        row = log_p[first + i]
        ids, q = torch.tensor(target["ids"]), torch.tensor(target["weights"], dtype=torch.float64)
        u = target["uncovered"]
        divergence = torch.special.xlogy(q, q).sum() - (q * row[ids]).sum()
        if u > 0 and len(ids) < len(row):
            outside = torch.ones(len(row), dtype=torch.bool)
            outside[ids] = False
            u = torch.tensor(u, dtype=torch.float64)
            divergence = divergence + torch.special.xlogy(u, u) - u * row[outside].logsumexp(0)
        kl.append(divergence)
        ce.append(-row[trace["tokens"][first + i + 1]])
        agreement.append(float(ids[q.argmax()] == row.argmax()))
    return torch.stack(kl), torch.stack(ce), agreement


@torch.no_grad()
def compare_evaluation(label):
    shutil.rmtree("exported", ignore_errors=True)
    distill("export", "--model", "run", "--out", "exported", "--dtype", "fp32")
    model = transformers.AutoModelForCausalLM.from_pretrained("exported", dtype="auto").eval()
    kl, ce, agreement = [], [], []
    for trace in read_traces():
        a, b, c = losses(model, trace)
        kl += a.tolist()
        ce += b.tolist()
        agreement += c
    count = len(kl)
    expected = {"targets": count, "divergence": sum(kl) / count, "cross_entropy": sum(ce) / count,
                "perplexity": float(torch.tensor(sum(ce) / count).exp()), "agreement": sum(agreement) / count}  # fmt: skip
    found = json.loads(distill("eval", "--model", "run", "--data", "traces", "--dtype", "fp32", "--json"))
    worst = max(abs(found[key] - value) / abs(value) for key, value in expected.items())
    check(worst <= 1e-4, f"{label}: {found} against {expected}")
    print(f"{label}: evaluation of {count} targets equal, worst relative difference {worst:.1e}")


def compare_one_step():
    """Step 1 of training on all documents at once, from the same weights, by hand in PyTorch."""
    shutil.rmtree("one", ignore_errors=True)
    shutil.rmtree("start", ignore_errors=True)
    recipe = {"steps": 1, "precision": "fp32", "batch": {"tokens": 1 << 20, "micro_tokens": 4096},
              "optimizer": {"learning_rate": 0.01}, "schedule": {"warmup_steps": 0, "shape": "constant"},
              "validation": {"share": 0}, "objective": {"hard_label_weight": 0.25}}  # fmt: skip
    distill("export", "--model", "run", "--out", "start", "--dtype", "fp32")
    traces = read_traces()
    recipe["batch"]["tokens"] = sum(len(trace["tokens"]) - 1 for trace in traces)
    pathlib.Path("recipe.json").write_text(json.dumps(recipe))
    distill("train", "--data", "traces", "--student", "start", "--out", "one", "--recipe", "recipe.json")
    ours = load_file("one/checkpoint-00000001/model.safetensors")

    model = transformers.AutoModelForCausalLM.from_pretrained("start", dtype="auto")
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    kls, ces = zip(*(losses(model, trace)[:2] for trace in traces))
    loss = 0.75 * torch.cat(kls).mean() + 0.25 * torch.cat(ces).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    optimizer.step()
    theirs = dict(model.named_parameters())
    line = json.loads(pathlib.Path("one/metrics.jsonl").read_text().splitlines()[0])
    check(abs(line["loss"] - loss.item()) <= 1e-5, f"step 1: loss {line['loss']} against {loss.item()}")
    check(abs(line["gradient_norm"] - norm) <= 1e-5 * norm, f"step 1: norm {line['gradient_norm']} against {norm}")
    # Adam's first step divides each gradient by its own size: where that is next to nothing, rounding decides the sign.
    worst = 0.0
    for name, tensor in ours.items():
        difference = (tensor - theirs[name].detach()).abs()
        gradient = theirs[name].grad.abs()
        worst = max(worst, difference[gradient > 1e-6].max().item())
    check(worst <= 1e-5, f"step 1: weights differ by {worst}")
    print(f"one step: loss {loss.item():.6f} and gradient norm {norm:.6f} equal, max |weight difference| {worst:.1e}")


def compare_online():
    """The teacher itself in place of its full distributions: the same losses but for their rounding to fp16."""
    recipe = json.loads(pathlib.Path("recipe.json").read_text())
    worst = 0.0
    for divergence in ("forward_kl", "reverse_kl", "jensen_shannon"):
        recipe["objective"]["divergence"] = divergence
        pathlib.Path("divergence.json").write_text(json.dumps(recipe))
        losses = []
        for out, more in (("stored", []), ("online", ["--online", "teacher"])):
            shutil.rmtree(out, ignore_errors=True)
            distill("train", "--data", "traces", "--student", "start", "--out", out, "--recipe", "divergence.json", *more)
            losses.append(json.loads(pathlib.Path(out, "metrics.jsonl").read_text().splitlines()[0])["loss"])
        worst = max(worst, abs(losses[0] - losses[1]) / losses[0])
    check(worst <= 1e-3, f"a teacher that is here gives other losses than its stored distributions: {worst}")
    print(f"online teacher: first losses equal those of stored full targets, worst relative difference {worst:.1e}")
    report = pathlib.Path("run/report.html").read_text()
    check("<svg" in report and "http" not in report.replace("http://www.w3.org", ""),
          "report.html lacks its plots or asks for something from elsewhere")  # fmt: skip


def compare_tensorboard(summary):
    lines = [json.loads(line) for line in pathlib.Path("run/metrics.jsonl").read_text().splitlines()]
    expected = {(line["step"], f"{line['kind']}/{key}"): value for line in lines for key, value in line.items()
                if key not in ("step", "kind")}  # fmt: skip
    found = {}
    for path in pathlib.Path("run/tensorboard").iterdir():
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[event.step, value.tag] = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
    check(found.keys() == expected.keys(), f"TensorBoard misses {expected.keys() ^ found.keys()}")
    worst = max(abs(found[key] - value) / max(1e-9, abs(value)) for key, value in expected.items())
    check(worst < 1e-6, f"TensorBoard's values differ by {worst}")
    check(max(step for step, _ in found) == summary["steps"], "TensorBoard's last step is not the run's")
    print(f"TensorBoard reads {len(found)} scalars of {summary['steps']} steps, worst relative difference {worst:.1e}")


def compare_memory():
    peaks = []
    for steps in (40, 400):
        shutil.rmtree("memory", ignore_errors=True)
        process = subprocess.Popen(
            [os.environ["DISTILL"], "--threads", "1", "train", "--data", "traces", "--student", "student.json", "--out",
             "memory", "--steps", str(steps), "--batch-tokens", "256"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        check(status == 0, f"{steps} steps failed")
        peaks.append(usage.ru_maxrss)
    print(f"peak memory: {peaks[0] >> 10} MiB after 40 steps, {peaks[1] >> 10} MiB after 400")
    check(peaks[1] <= 1.02 * peaks[0] + 2048, "memory grows with the number of steps")


def main():
    summary = tiny_run.make_run(targets="full")
    compare_tensorboard(summary)
    compare_evaluation("full targets")
    compare_one_step()
    compare_online()
    compare_memory()
    tiny_run.make_run(targets="topk:5")
    compare_evaluation("top-5 targets with a ghost token")
    compare_one_step()


if __name__ == "__main__":
    main()
