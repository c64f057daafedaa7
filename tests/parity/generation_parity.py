#!/usr/bin/env python3
"""Compares `distill generate` and `distill chat` with transformers on tiny random fp32 checkpoints.

- greedy answers equal transformers' generate token by token, whatever shares the batch, up to its stop token;
- stored targets equal the softmax of transformers' logits to within the rounding of log-probabilities to fp16,
  log-probabilities of drawn tokens those of its distribution after temperature, top-k and top-p (|difference| <= 1e-3
  over an answer);
- a run stopped by SIGINT exits with 130 and, run again, ends with the traces of an uninterrupted run;
- chat answers what transformers answers to the same conversation.

The program is named by $DISTILL."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from make_checkpoints import BASE, FAMILIES, WINDOW, randomise
from trace_format import Shard

CHECKPOINTS = {
    "llama": dict(tie_word_embeddings=True),
    "qwen2": WINDOW,
    "qwen3": dict(head_dim=24),
}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "The quick brown fox jumps over the lazy dog, while seven wizards brew potions of liquid jade; then they ask: what "
    "is the answer to the question, and who wrote it down? "
) * 2
NEW_TOKENS = 40


def make_tokenizer(path):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in ("<|end|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(vocab_size=310, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=CHATML)
    fast.save_pretrained(path)
    return fast


def make_checkpoint(name, path):
    make_config, make_model = FAMILIES[name]
    torch.manual_seed(len(name))
    model = make_model(make_config(**{**BASE, **CHECKPOINTS[name], "vocab_size": 320}))
    randomise(model, BASE["initializer_range"])
    tokenizer = make_tokenizer(path)
    model = model.float().eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=None)
    # The end token is one that ends some of the greedy answers early.
    prompts = make_prompts()
    free = [answer_greedily(model, tokenizer(p["prompt"])["input_ids"], None) for p in prompts]
    counts = np.bincount(np.array([ids[5:30] for ids in free]).flatten(), minlength=320)
    appears = np.array([sum(token in ids[5:30] for ids in free) for token in range(320)])
    eos = int(np.argmin(np.abs(appears - len(free) // 2) * 1000 - counts))
    model.config.eos_token_id = eos
    model.generation_config.eos_token_id = eos
    model.save_pretrained(path)
    return model, tokenizer, eos


def make_prompts(count=14):
    return [{"id": f"p{i}", "prompt": TEXT[i : i + 3 + 11 * i]} for i in range(count)]


@torch.no_grad()
def answer_greedily(model, ids, eos, new_tokens=NEW_TOKENS):
    output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=new_tokens, eos_token_id=eos,
                            pad_token_id=0)
    return output[0, len(ids) :].tolist()


def command(*arguments):
    return [os.environ["DISTILL"], "--log-level", "error", "--threads", "2", *map(str, arguments)]


def generate(model, prompts, out, *options, dtype="fp32"):
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return command("generate", "--teacher", model, "--prompts", "prompts.jsonl", "--out", out, "--dtype", dtype, "--json",
                   "--max-new-tokens", NEW_TOKENS, *options)


def run(arguments):
    return json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def read(directory):
    documents = {}
    for path in sorted(pathlib.Path(directory).glob("*.h5")):
        shard = Shard(path)
        for i in range(shard.size):
            document = shard.document(i)
            assert documents.setdefault((document["prompt_id"], document["sample"]), document) is document, document
    return documents


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


@torch.no_grad()
def logits_of(model, document):
    tokens = torch.tensor([document["tokens"]])
    return model(tokens).logits[0, document["prompt_length"] - 1 : -1].double()


def compare_greedy(name, path, model, tokenizer, eos):
    prompts = make_prompts()
    summary = run(generate(path, prompts, "greedy", "--temperature", 0, "--targets", "full", "--batch", 5))
    documents = read("greedy")
    check(len(documents) == len(prompts) == summary["traces"], f"{name}: {len(documents)} traces")
    worst, stopped, tokens = 0.0, 0, 0
    for prompt in prompts:
        document = documents[prompt["id"], 0]
        ids = tokenizer(prompt["prompt"])["input_ids"]
        check(document["tokens"][: document["prompt_length"]] == ids, f"{name}: other tokens of {prompt}")
        expected = answer_greedily(model, ids, eos)
        answer = document["tokens"][document["prompt_length"] :]
        check(answer == expected, f"{name}, {prompt['id']}: {answer} against {expected}")
        check(document["finish_reason"] == ("stop" if expected[-1] == eos else "length"), f"{name}: finish reason")
        stopped += expected[-1] == eos
        tokens += len(answer)
        log_probabilities = logits_of(model, document).log_softmax(-1)
        check(len(document["targets"]) == len(answer), f"{name}: {len(document['targets'])} targets")
        for row, (target_ids, weights, _) in zip(log_probabilities, document["targets"], strict=True):
            check(len(target_ids) == len(row), f"{name}: {len(target_ids)} of {len(row)} ids")
            difference = (row[target_ids.astype(np.int64)] - torch.tensor(weights).double().log()).abs()
            worst = max(worst, (difference / (row.abs() * 2**-11 + 1e-4)).max().item())
    check(0 < stopped < len(prompts), f"{name}: {stopped} answers stop")
    check(worst <= 1.1, f"{name}: targets differ by {worst} times what fp16 may be off")
    print(f"{name}: {len(prompts)} greedy answers of {tokens} tokens are equal, {stopped} of them stopped; "
          f"worst difference of a target {worst:.2f} times fp16's rounding", flush=True)


def warp(logits, temperature, top_k, top_p):
    processors = [transformers.TemperatureLogitsWarper(temperature), transformers.TopKLogitsWarper(top_k),
                  transformers.TopPLogitsWarper(top_p)]
    for processor in processors:
        logits = processor(None, logits)
    return logits.log_softmax(-1)


def compare_sampled(name, path, model):
    options = ["--temperature", 0.8, "--top-k", 40, "--top-p", 0.9, "--samples", 3, "--seed", 11, "--targets", "topk:4"]
    run(generate(path, make_prompts(), "alone", *options, "--batch", 1))
    run(generate(path, make_prompts(), "together", *options, "--batch", 16))
    alone, together = read("alone"), read("together")
    check(alone.keys() == together.keys() and len(alone) == 42, f"{name}: other traces in another batch")
    worst = 0.0
    for key, document in alone.items():
        check(document["tokens"] == together[key]["tokens"], f"{name}, {key}: another answer in another batch")
        answer = torch.tensor(document["tokens"][document["prompt_length"] :])
        log_probabilities = warp(logits_of(model, document), 0.8, 40, 0.9).gather(1, answer[:, None])
        worst = max(worst, abs(log_probabilities.sum().item() - document["log_probability"]))
    check(len({tuple(d["tokens"]) for d in alone.values()}) > 35, f"{name}: samples repeat each other")
    check(worst <= 1e-3, f"{name}: log-probabilities differ by {worst}")
    print(f"{name}: 42 sampled answers are the same in batches of 1 and 16; worst difference of a log-probability "
          f"{worst:.1e}", flush=True)


def compare_interrupted(name, path):
    prompts = [dict(prompt, id=f"{i}-{prompt['id']}") for i in range(30) for prompt in make_prompts(10)]
    arguments = generate(path, prompts, "stopped", "--batch", 4)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = pathlib.Path("stopped")
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size > 4000 for file in journal.glob("*journal*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    check(process.returncode == 130, f"{name}: exit code {process.returncode} after SIGINT: {errors}")
    check("run the same command again" in errors, f"{name}: no hint how to go on: {errors}")
    summary = json.loads(output)
    check(summary["interrupted"] and 0 < summary["traces"] < len(prompts), f"{name}: {summary}")
    rest = run(arguments)
    check(rest["already_there"] == summary["traces"], f"{name}: {rest}")
    run(generate(path, prompts, "whole", "--batch", 7))
    stopped, whole = read("stopped"), read("whole")
    check({k: d["tokens"] for k, d in stopped.items()} == {k: d["tokens"] for k, d in whole.items()},
          f"{name}: a stopped and continued run ends with other traces")
    shards = [len(list(pathlib.Path(folder).glob("*.h5"))) for folder in ("stopped", "whole")]
    check(shards == [1, 1], f"{name}: {shards} shards")
    print(f"{name}: stopped at {summary['traces']} of {len(prompts)} traces and continued, they are those of a whole run",
          flush=True)


def compare_chat(name, path, model, tokenizer, eos):
    messages, expected = [], ""
    lines = ["what is it?", "and who wrote the answer down", "/reset", "what is it?", "/exit", "never asked"]
    for line in lines[:4]:
        if line == "/reset":
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = tokenizer.decode([t for t in answer_greedily(model, ids, eos, 12) if t != eos], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        expected += answer + "\n"
    actual = subprocess.run(command("chat", "--model", path, "--temperature", 0, "--max-new-tokens", 12, "--dtype", "fp32"),
                            input="\n".join(lines) + "\n", check=True, stdout=subprocess.PIPE, text=True).stdout
    check(actual == expected, f"{name}: chat says {actual!r} against {expected!r}")
    print(f"{name}: chat answers the same in 3 turns", flush=True)


def check_bad_input(name, path):
    def fails(code, message, prompts, *options):
        result = subprocess.run(generate(path, prompts, "bad", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)
        check(result.returncode == code and message in result.stderr,
              f"{name}: exit code {result.returncode}, not {code} with {message!r}: {result.stderr}")

    good = make_prompts(2)
    fails(1, "has 300 tokens", good + [{"id": "long", "prompt": "@" * 300}])
    check(len(read("bad")) == 2, f"{name}: the other prompts were not answered")
    fails(1, "sampling seed", good, "--seed", 1)
    shutil.rmtree("bad")
    fails(2, 'did you mean "prompt"', good + [{"id": "x", "promt": "y"}])
    fails(2, "top-p", good, "--top-p", 1.5)
    fails(2, "no verifier 'oracle'", [dict(good[0], answer="x", verifier="oracle")])
    check(not pathlib.Path("bad").exists(), f"{name}: a refused run left something behind")
    print(f"{name}: bad input is refused", flush=True)


def main():
    torch.set_num_threads(2)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for folder in ("checkpoints", "greedy", "alone", "together", "stopped", "whole", "bad"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in CHECKPOINTS:
        path = pathlib.Path("checkpoints") / name
        model, tokenizer, eos = make_checkpoint(name, path)
        compare_greedy(name, path, model, tokenizer, eos)
        compare_sampled(name, path, model)
        if name == "llama":
            compare_interrupted(name, path)
            check_bad_input(name, path)
        compare_chat(name, path, model, tokenizer, eos)
        for folder in ("greedy", "alone", "together"):
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
