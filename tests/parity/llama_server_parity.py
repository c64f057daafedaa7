#!/usr/bin/env python3
"""`distill generate` with llama.cpp's server (the one in xllamacpp's wheel) as its teacher, over the completions and the
chat API.

The same GGUF file is then run here on the traces: KL divergence from the targets that the server sent <= 0.02 per token,
the same most probable token at >= 90 % of the positions. (llama.cpp rounds activations to 8 bits, so that the two differ
a little.) Prompts read the same on both sides: the server counts the tokens that the local tokenizer makes.

Usage: llama_server_parity.py MODEL.gguf. The program is named by $DISTILL."""

import json
import pathlib
import shutil
import subprocess
import sys

from tiny_run import distill

# Serves until its standard input ends, and says where. Its logs would fill the terminal.
SERVER = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_parallel = 4096, 4
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""

QUESTIONS = ["What is the capital of France?", "How many days has a week?", "Name a colour.", "Say hello."]
CHAT = [{"id": f"chat-{i}", "messages": [{"role": "user", "content": question}]} for i, question in enumerate(QUESTIONS)]
TEXT = [{"id": f"text-{i}", "prompt": f"{question} The answer is"} for i, question in enumerate(QUESTIONS)]


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def main():
    (model,) = sys.argv[1:]
    with open("llama-server.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-c", SERVER, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=log, text=True)  # fmt: skip
    with server:
        url = server.stdout.readline().strip()
        check(url.startswith("http://"), f"no server: {pathlib.Path('llama-server.log').read_text()[-800:]}")
        for api, prompts in (("completions", TEXT + CHAT), ("chat", CHAT)):
            pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
            shutil.rmtree(api, ignore_errors=True)
            summary = json.loads(distill("generate", "--teacher", url, "--tokenizer", model, "--prompts", "prompts.jsonl",
                                         "--out", api, "--remote-api", api, "--targets", "topk:20", "--max-new-tokens", 16,
                                         "--temperature", 0, "--retries", 2, "--json"))  # fmt: skip
            check(summary["traces"] == len(prompts) and not summary["rejected"], summary)
            measured = json.loads(distill("eval", "--model", model, "--data", api, "--json"))
            print(f"{api}: {summary['completion_tokens']} tokens of {summary['traces']} answers; the same file here: {measured}")
            check(measured["divergence"] <= 0.02, f"KL divergence {measured['divergence']}")
            check(measured["agreement"] >= 0.9, f"agreement {measured['agreement']}")


if __name__ == "__main__":
    main()
