"""Compares `distill tokenize --chat` with transformers' apply_chat_template on random conversations: the published forms of
each family, distill's own templates for --chat-template, errors on bad orders of roles, and templates of no known family.

    DISTILL=build/release/bin/distill python tests/parity/chat_template_parity.py
"""

import json
import os
import pathlib
import random
import subprocess
import sys

import transformers
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from chat_templates import PUBLISHED, UNKNOWN

SEED = 11
CONVERSATIONS = 1500
ERRORS = 12  # conversations that must be refused, per template
DISTILL = os.environ.get("DISTILL", "distill")
FOLDER = pathlib.Path("chat").absolute()

PARTS = ["Hello", " ", "\n", "\n\n", "\t", "\u00a0", "\u3000", "\x1c", "<think>", "</think>", "\n</think>\n\n", "<think>\nLet me see.\n</think>\n\n",
         "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]", "</s>", "{{ bos_token }}", "'", '"', "\\", "\\n", "é", "字", "😀", "<tool_response>",
         "</tool_response>", "a\r\nb", "0", "{% if %}", "<end_of_turn>"]  # fmt: skip


def content(rng):
    if rng.random() < 0.05:
        return "<tool_response>x</tool_response>"
    return "".join(rng.choice(PARTS) for _ in range(rng.choice((0, 1, 1, 2, 3, 6))))


def conversation(rng):
    length = rng.choice((1, 1, 2, 3, 4, 5, 8))
    kind = rng.random()
    if kind < 0.75:  # in order, perhaps with a system message first
        roles = ["user" if i % 2 == 0 else "assistant" for i in range(length)]
        if rng.random() < 0.5:
            roles.insert(0, "system")
    else:
        roles = [rng.choice(("system", "user", "assistant")) for _ in range(length)]
    return [{"role": role, "content": content(rng)} for role in roles]


def expected(template, bos, eos, messages, prompt):
    """The rendered text, or the TemplateError that transformers raises."""
    tokens = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v is not None}
    try:
        return render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt, **tokens)[0][0]
    except TemplateError as error:
        return error


def distill(arguments, conversations, prompt):
    command = [DISTILL, "tokenize", "--chat", *arguments, *(["--add-generation-prompt"] if prompt else [])]
    lines = "".join(json.dumps(c, ensure_ascii=False) + "\n" for c in conversations)
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)


def model_folder(name, template, bos, eos):
    folder = FOLDER / name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    config = {"chat_template": template, "bos_token": bos, "eos_token": {"content": eos, "__type": "AddedToken"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def compare(name, template, bos, eos, arguments, rng):
    """The number of failures."""
    failures = rendered = refused = 0
    for prompt in (False, True):
        good, bad = [], []
        for _ in range(CONVERSATIONS // 2):
            messages = conversation(rng)
            result = expected(template, bos, eos, messages, prompt)
            (bad if isinstance(result, TemplateError) else good).append((messages, result))
        process = distill(arguments, [messages for messages, _ in good], prompt)
        answers = [json.loads(line) for line in process.stdout.splitlines()]
        if len(answers) != len(good):
            print(f"  {name}: {len(answers)} answers to {len(good)} conversations: {process.stderr}")
            failures += 1
        for (messages, theirs), ours in zip(good, answers):
            rendered += 1
            if ours != theirs:
                failures += 1
                if failures < 4:
                    print(f"  {name}, add_generation_prompt={prompt}: {messages}\n    distill {ours!r}\n    theirs  {theirs!r}")
        for messages, error in bad[: ERRORS // 2]:
            refused += 1
            process = distill(arguments, [messages], prompt)
            if process.returncode != 1 or str(error) not in process.stderr:
                failures += 1
                print(f"  {name}: {messages} should fail with {error}, got {process.returncode} {process.stdout}{process.stderr}")
    print(f"{name:36} {rendered:5} rendered, {refused:3} refused, {failures} different", flush=True)
    return failures


def main():
    print(f"transformers {transformers.__version__}, seed {SEED}")
    failures = 0
    for name, (family, bos, eos, template) in PUBLISHED.items():
        folder = model_folder(name, template, bos, eos)
        failures += compare(name, template, bos, eos, ["--model", folder], random.Random(f"{SEED} {name}"))

    dump = os.environ.get("DISTILL_DUMP_TOKENIZER")
    if dump:
        subprocess.run([dump, "--chat-templates", FOLDER / "families.json"], check=True)
        folder = FOLDER / "none"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        for family, own in json.loads((FOLDER / "families.json").read_text()).items():
            arguments = ["--model", folder, "--chat-template", family]
            rng = random.Random(f"{SEED} own {family}")
            failures += compare(f"--chat-template {family}", own["jinja"], own["bos"], own["eos"], arguments, rng)

    for name, template in UNKNOWN.items():
        process = distill(["--model", model_folder(f"unknown {name}", template, "<s>", "</s>")], [[{"role": "user", "content": "Hi"}]], False)
        if process.returncode == 0 or "--chat-template" not in process.stderr:
            failures += 1
            print(f"  {name} should be refused, got {process.returncode} {process.stdout}{process.stderr}")
    print(f"{len(UNKNOWN)} templates of no family refused; {failures} failures")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
