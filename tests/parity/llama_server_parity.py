#!/usr/bin/env python3
"""`distill generate` with a real llama-server as its teacher, over the completions and the chat API.

The same GGUF file is then run here on the traces: KL divergence from the targets that the server sent <= 0.02 per token,
the same most probable token at >= 90 % of the positions. (llama.cpp rounds activations to 8 bits, so that the two differ
a little.) Prompts read the same on both sides: the server counts the tokens that the local tokenizer makes.

Usage: llama_server_parity.py LLAMA_SERVER MODEL.gguf. The program is named by $DISTILL."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from tiny_run import distill

QUESTIONS = ["What is the capital of France?", "How many days has a week?", "Name a colour.", "Say hello."]
CHAT = [{"id": f"chat-{i}", "messages": [{"role": "user", "content": question}]} for i, question in enumerate(QUESTIONS)]
TEXT = [{"id": f"text-{i}", "prompt": f"{question} The answer is"} for i, question in enumerate(QUESTIONS)]


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(server, model):
    port = free_port()
    # --no-repack: the AMX path of llama.cpp needs a permission that it does not ask for everywhere.
    command = [server, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-c", "4096", "-np", "4", "-t", "1",
               "--no-repack", "--no-ui"]  # fmt: skip
    environment = {**os.environ, "LD_LIBRARY_PATH": str(pathlib.Path(server).parent)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=open("llama-server.log", "w"))
    for _ in range(600):
        check(process.poll() is None, f"llama-server ended: {pathlib.Path('llama-server.log').read_text()[-800:]}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return process, f"http://127.0.0.1:{port}"
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit("FAILED: llama-server does not answer")


def main():
    server, model = sys.argv[1:]
    process, url = start(server, model)
    try:
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
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
