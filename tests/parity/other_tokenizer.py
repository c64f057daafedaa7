#!/usr/bin/env python3
"""A student whose tokenizer and chat template are not its teacher's: refused unless the recipe says what to learn; from
text alone and from carried-over distributions it learns what the teacher writes, on one rank and on two, in one run or
in parts, and what it exports is its own."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import tiny_run
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
OTHER_TEXT = ["The cats are three and the dogs are four.", "A river is in France; is the fox in Paris?",
              "lazy brown Seine capital over two jumps"]  # fmt: skip
SPECIAL = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
STEPS = 60


def teach_the_teacher():
    """It writes the sentences of the texts, in answer to their beginnings."""
    torch.set_num_threads(1)  # a tiny model's threads wait for each other longer than they compute
    tokenizer = transformers.AutoTokenizer.from_pretrained("teacher")
    model = transformers.AutoModelForCausalLM.from_pretrained("teacher", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = []
    for text in tiny_run.TEXT:
        question = [{"role": "user", "content": text[:9]}]
        prompts = [tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True), text[:9]]
        batches += [tokenizer(prompt + text + "<|im_end|>", return_tensors="pt").input_ids for prompt in prompts]
    for step in range(300):
        loss = model(batches[step % len(batches)], labels=batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained("teacher")
    print(f"teacher: {loss.item():.2f} nats per token")


def make_other():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        OTHER_TEXT, trainers.BpeTrainer(vocab_size=310, show_progress=False,
                                        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[1])
    fast.chat_template = LLAMA
    fast.save_pretrained("other")
    config = {**tiny_run.STUDENT, "vocab_size": tokenizer.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 1}
    pathlib.Path("other", "config.json").write_text(json.dumps(config))
    pathlib.Path("student.json").write_text(json.dumps({**config, "vocab_size": 320}))


def command(out, *more, method=None, steps=STEPS):
    if method:
        recipe = {"objective": {"other_tokenizer": method}, "batch": {"tokens": 512, "micro_tokens": 256},
                  "optimizer": {"learning_rate": 5e-3}, "validation": {"share": 0.2, "every": 10},
                  "schedule": {"shape": "constant", "warmup_steps": 2}, "precision": "fp32"}  # fmt: skip
        pathlib.Path(f"{method}.json").write_text(json.dumps(recipe))
        more = (*more, "--recipe", f"{method}.json")
    return ["train", "--data", "traces", "--student", "student.json", "--tokenizer", "other", "--out", out, "--steps",
            steps, "--json", *more]  # fmt: skip


def curve(out, kind, value):
    lines = [json.loads(line) for line in pathlib.Path(out, "metrics.jsonl").read_text().splitlines()]
    return [line[value] for line in lines if line["kind"] == kind]


def weights(out):
    return pathlib.Path(out, f"checkpoint-{STEPS:08}", "model.safetensors").read_bytes()


def expect_refusal():
    run = subprocess.run([os.environ["DISTILL"], *map(str, command("refused"))], capture_output=True, text=True)
    if run.returncode != 1 or "other_tokenizer: aligned" not in run.stderr:
        sys.exit(f"without a recipe: exit code {run.returncode}, {run.stderr}")


def check(method):
    summary = json.loads(tiny_run.distill(*command(method, method=method)))
    losses, held_out = curve(method, "train", "loss"), curve(method, "validation", "cross_entropy")
    print(f"{method}: training loss {losses[0]:.3f} -> {losses[-1]:.3f}, held-out cross-entropy {held_out[-1]:.3f}")
    if summary["steps"] != STEPS or losses[-1] > 0.4 * losses[0] or held_out[-1] > 0.5 * held_out[0]:
        sys.exit(f"{method}: the student learned little")

    tiny_run.distill(*command(f"{method}-parts", method=method, steps=23))
    tiny_run.distill(*command(f"{method}-parts", method=method))
    if weights(f"{method}-parts") != weights(method):
        sys.exit(f"{method}: a run in two parts ends elsewhere")
    tiny_run.distill(*command(f"{method}-ranks", "--nproc", 2, method=method, steps=10))
    ranks = curve(f"{method}-ranks", "train", "loss")
    worst = max(abs(a - b) / a for a, b in zip(losses, ranks))
    print(f"{method}: two ranks differ by {worst:.1e}")
    if len(ranks) != 10 or worst > 1e-4:
        sys.exit(f"{method}: two ranks learn something else")


def check_export():
    """transformers answers with the student's own tokenizer, template and end, much as the teacher would."""
    tiny_run.distill("export", "--model", "aligned", "--out", "exported", "--format", "hf", "--dtype", "fp32")
    tokenizer = transformers.AutoTokenizer.from_pretrained("exported")
    model = transformers.AutoModelForCausalLM.from_pretrained("exported")
    text = tiny_run.TEXT[2]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text[:9]}], tokenize=False,
                                           add_generation_prompt=True)  # fmt: skip
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    answer = model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=1, pad_token_id=1)[0, ids.shape[1] :]
    print(f"the student answers: {tokenizer.decode(answer)!r}")
    words = tokenizer.decode(answer)
    if not words.startswith(text[:7]) or not words.endswith("<|eot_id|>"):
        sys.exit("that is not what its teacher answers, or has no end")


def main():
    tiny_run.make_teacher("teacher")
    teach_the_teacher()
    make_other()
    prompts = [{"id": f"text-{i}", "prompt": tiny_run.TEXT[i % 3][: 9 + i // 6]} for i in range(30)]
    prompts += [{"id": f"chat-{i}", "messages": [{"role": "user", "content": tiny_run.TEXT[i % 3][:9]}]}
                for i in range(60)]  # fmt: skip
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    tiny_run.distill("generate", "--teacher", "teacher", "--prompts", "prompts.jsonl", "--out", "traces", "--targets",
                     "threshold:8", "--max-new-tokens", 60, "--dtype", "fp32")  # fmt: skip
    expect_refusal()
    for method in ("text", "aligned"):
        check(method)
    check_export()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
        os.chdir("/")
