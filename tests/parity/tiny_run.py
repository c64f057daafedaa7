"""A whole distillation in miniature, made by transformers and the program together: a random teacher, its traces and a
trained student. For the parity scripts of training, evaluation and export.

The program is named by $DISTILL."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

transformers.utils.logging.disable_progress_bar()

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = ["The quick brown fox jumps over the lazy dog.", "One and two are three, two and two are four.",
        "What is the capital of France? It is Paris, on the river Seine."]  # fmt: skip

VOCAB = 300


def distill(*arguments):
    """Standard output of the program; ends the script if it fails."""
    command = [os.environ["DISTILL"], "--log-level", "error", "--threads", "1", *map(str, arguments)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: {run.stderr}")
    return run.stdout


def make_teacher(folder):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in ("<|im_start|>", "<|im_end|>")]
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>",
                                                eos_token="<|im_end|>", pad_token="<|im_end|>")  # fmt: skip
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=True)  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [1]
    model.save_pretrained(folder)


STUDENT = dict(model_type="llama", vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
               rope_theta=10000.0, tie_word_embeddings=True)  # fmt: skip


def make_run(targets="full", steps=12, precision="fp32"):
    """Folders teacher, traces and run in the working folder, made anew."""
    for folder in ("teacher", "traces", "run"):
        shutil.rmtree(folder, ignore_errors=True)
    make_teacher("teacher")
    prompts = [{"id": f"text-{i}", "prompt": text[: 4 + 3 * i]} for i, text in enumerate(TEXT)]
    prompts += [{"id": f"chat-{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(TEXT)]
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    distill("generate", "--teacher", "teacher", "--prompts", "prompts.jsonl", "--out", "traces", "--targets", targets,
            "--samples", 3, "--max-new-tokens", 16, "--dtype", "fp32")  # fmt: skip
    pathlib.Path("student.json").write_text(json.dumps(STUDENT))
    summary = distill("train", "--data", "traces", "--student", "student.json", "--out", "run", "--steps", steps,
                      "--batch-tokens", 256, "--dtype", precision, "--json")  # fmt: skip
    return json.loads(summary)
