#!/usr/bin/env python3
"""Loads what `distill export` writes with transformers: the same logits as our own model's (fp32, max |difference| <=
1e-4), weights that are exactly the checkpoint's in each dtype, the same token ids, conversations and end tokens.

The program is named by $DISTILL."""

import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file

import tiny_run
from tiny_run import distill

BOUND = 1e-4


def check(condition, message):
    if not condition:
        sys.exit(f"export_parity: {message}")


@torch.no_grad()
def logits_difference(exported, model, vocab):
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(vocab, (n,), generator=generator).tolist() for n in (1, 7, 60)]
    pathlib.Path("tokens.jsonl").write_text("".join(json.dumps(ids) + "\n" for ids in sequences))
    distill("logits", "--model", model, "--tokens", "tokens.jsonl", "--out", "logits.safetensors", "--dtype", "fp32")
    ours = load_file("logits.safetensors")
    return max((exported(torch.tensor([ids])).logits[0].float() - ours[str(i)]).abs().max().item()
               for i, ids in enumerate(sequences))  # fmt: skip


def compare(model, tokenizer_of, label):
    checkpoint = load_file(next(pathlib.Path(model).glob("**/model.safetensors")))
    for dtype, torch_dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        shutil.rmtree("exported", ignore_errors=True)
        distill("export", "--model", model, "--out", "exported", "--format", "hf", "--dtype", dtype)
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained("exported", dtype="auto", output_loading_info=True)
        check(not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"{label}: {info}")
        check(loaded.dtype == torch_dtype, f"{label}: loaded as {loaded.dtype}, exported as {dtype}")
        stored = load_file("exported/model.safetensors")
        for name, tensor in checkpoint.items():
            check(torch.equal(stored[name], tensor.to(torch_dtype)), f"{label}: {dtype}: {name} differs")
        difference = logits_difference(loaded.float().eval(), "exported", loaded.config.vocab_size)
        check(difference <= BOUND, f"{label}: {dtype}: logits differ by {difference:.2e}")
        print(f"{label}, {dtype}: {len(checkpoint)} tensors exact, max |logit difference| {difference:.2e}")

    ours = transformers.AutoTokenizer.from_pretrained("exported")
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
    for text in tiny_run.TEXT + ["", "naïve 👍", "<|im_start|>user\nHi<|im_end|>"]:
        check(ours(text).input_ids == theirs(text).input_ids, f"{label}: ids of {text!r} differ")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rendered = [t.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for t in (ours, theirs)]
    check(rendered[0] == rendered[1], f"{label}: conversations differ: {rendered}")
    check(ours.eos_token == theirs.eos_token and ours.bos_token == theirs.bos_token, f"{label}: special tokens differ")
    check(loaded.generation_config.eos_token_id in (1, [1]), f"{label}: ends at {loaded.generation_config.eos_token_id}")
    ids = ours.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    check(loaded.generate(**ids, max_new_tokens=4).shape[1] > ids.input_ids.shape[1], f"{label}: generates nothing")
    check("library_name: transformers" in pathlib.Path("exported/README.md").read_text(), f"{label}: no model card")
    print(f"{label}: tokenizer, chat template and generation settings equal")


def main():
    tiny_run.make_run()
    compare("run", "teacher", "trained student")
    compare("teacher", "teacher", "directory")
    # Training goes on with an exported model as with any other.
    shutil.rmtree("run2", ignore_errors=True)
    distill("train", "--data", "traces", "--student", "exported", "--out", "run2", "--steps", 2, "--batch-tokens", 256)
    compare("run2", "teacher", "directory trained on")


if __name__ == "__main__":
    main()
