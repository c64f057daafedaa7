#!/usr/bin/env python3
"""`distill generate --teacher http://...` against a server on loopback that answers what a local teacher answered, in the
dialects of llama.cpp, vLLM and OpenAI, and that misbehaves.

- the traces equal the local ones: tokens, most probable ids, their weights (|difference| <= 4e-3), the mass of the rest;
- after 429 with Retry-After, 500, answers cut or reset, wrong or deeply nested JSON, an HTML page and a server that
  hangs, likewise, and no request comes before Retry-After is over;
- a run that ended early, by a signal or because the server stayed away, asks only for what is missing;
- answers that do not fit the tokenizer are refused, naming prompt and token; 401 and useless requests end the run;
- the key is in the requests and nowhere else: not on the terminal, not in the traces, though the server repeats it.

The program is named by $DISTILL."""

import collections
import http.server
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import tokenizers

from tiny_run import TEXT, distill, make_teacher
from trace_format import Shard

KEY = "sk-test-31415926535"
TOP = 8


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def read(directory):
    documents = {}
    for path in sorted(pathlib.Path(directory).glob("*.h5")):
        shard = Shard(path)
        for document in map(shard.document, range(shard.size)):
            documents[document["prompt_id"]] = document
    return documents


def most_probable(targets):
    return dict(sorted(targets.items(), key=lambda item: (-item[1], item[0]))[:TOP])


def byte_alphabet():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class Oracle:
    """What the teacher answers, by prompt tokens."""

    def __init__(self, folder, documents, stop):
        self.stop = stop
        tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        alphabet = byte_alphabet()
        self.special = {0, 1}
        self.bytes = [tokenizer.id_to_token(i).encode() if i in self.special
                      else bytes(alphabet[c] for c in tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
        self.by_prompt, self.by_conversation = {}, {}
        for prompt in PROMPTS:
            document = documents[prompt["id"]]
            length = document["prompt_length"]
            answer = dict(id=prompt["id"], prompt_length=length, tokens=document["tokens"][length:],
                          reason=document["finish_reason"],
                          targets=[{int(i): math.log(max(float(w), 1e-30)) for i, w in zip(ids, weights)}
                                   for ids, weights, _ in document["targets"]])
            self.by_prompt[tuple(document["tokens"][:length])] = answer
            if "messages" in prompt:
                self.by_conversation[json.dumps(prompt["messages"], sort_keys=True)] = answer

    def text(self, tokens):
        return b"".join(self.bytes[t] for t in tokens if t not in self.special).decode("utf-8", "replace")

    def name(self, token, dialect):
        if dialect == "vllm":
            return f"token_id:{token}"
        data = self.bytes[token]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def row(self, token, value, dialect):
        hidden = dialect == "llamacpp" and token in self.special
        row = {"token": "" if hidden else self.bytes[token].decode("utf-8", "replace"), "logprob": value,
               "bytes": [] if hidden else list(self.bytes[token])}
        return row | ({"id": token} if dialect == "llamacpp" else {})


class Server:
    """Answers in one dialect; `faults` are committed one request each, in order, before anything is answered properly.
    Some are of the server for good: "limit" (answers so many, then 500), "spoil" (changes the rows of one prompt),
    "models" (what it says to be asked what it serves)."""

    def __init__(self, oracle, dialect="llamacpp", faults=(), limit=None, spoil=None, status=None, delay=0.0,
                 models=None):  # fmt: skip
        self.oracle, self.dialect, self.faults = oracle, dialect, collections.deque(faults)
        self.limit, self.spoil, self.status, self.delay, self.models = limit, spoil, status, delay, models
        self.arrivals, self.answered, self.pauses, self.problems = [], [], [], []
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                listed = {"object": "list", "data": [{"id": "tiny", "owned_by": outer.dialect}]}
                self.reply(200, outer.models or json.dumps(listed))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.answer(self, body)

            def reply(self, status, text, headers=(), content="application/json"):
                self.send_response(status)
                self.send_header("Content-Type", content)
                self.send_header("Content-Length", str(len(text.encode())))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def stream(self, events, cut=False):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                data = "".join(f"data: {event}\r\n\r\n" for event in events).encode()
                if cut:
                    data = data[: len(data) // 2]
                for i in range(0, len(data), 777):
                    piece = data[i : i + 777]
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                if cut:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = self.note_problem
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def note_problem(self, *_):
        problem = sys.exc_info()[1]
        if not isinstance(problem, (ConnectionError, ValueError)):  # the client went away, or we did
            self.problems.append(repr(problem))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        check(not self.problems, self.problems[:1])

    def answer(self, handler, body):
        with self.lock:
            self.arrivals.append(time.monotonic())
            if handler.headers["Authorization"] != f"Bearer {KEY}":
                self.problems.append(f"a request without the key: {handler.headers['Authorization']}")
            fault = self.faults.popleft() if self.faults else None
            if self.limit is not None and len(self.answered) >= self.limit:
                fault = "500"
        time.sleep(self.delay)
        chat = "messages" in body
        answer = (self.oracle.by_conversation[json.dumps(body["messages"], sort_keys=True)] if chat
                  else self.oracle.by_prompt[tuple(body["prompt"])])
        if self.status:
            return handler.reply(self.status, json.dumps({"error": {"message": f"no, not with {KEY}"}}))
        if fault == "429":
            self.pauses.append(time.monotonic())
            return handler.reply(429, '{"error": "slow down"}', [("Retry-After", "1")])
        if fault == "500":
            return handler.reply(500, json.dumps({"error": {"message": f"out of order, {KEY}"}}))
        if fault == "html":
            return handler.reply(200, "<html>It works!</html>", content="text/html")
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            handler.close_connection = True
            return handler.connection.close()
        events = self.events(answer, chat)
        if fault == "hang":
            time.sleep(4)
            handler.close_connection = True
            return None
        if fault == "no-end":
            events = events[:-2]
        if fault == "json":
            events[1] = '{"' + "." * 100 + KEY
        if fault == "deep":
            events[1] = '{"choices": [{"logprobs": {"content": [{"token": ' + "[" * 300000 + "]" * 300000 + "}]}}]}"
        if fault == "error-event":
            events[1:] = [json.dumps({"error": {"code": 500, "message": f"slot lost {KEY}"}})]
        handler.stream(events, cut=fault == "cut")
        if fault is None:
            with self.lock:
                self.answered.append(answer["id"])
        return None

    def events(self, answer, chat):
        tokens, dialect = answer["tokens"], self.dialect
        shown = [t for t in tokens if t != self.oracle.stop] if chat else tokens
        spoilt = self.spoil if self.spoil and answer["id"] == "text-1" else None
        events = []
        for i, token in enumerate(shown):
            targets = answer["targets"][i]
            top = most_probable(targets)
            choice = {"index": 0, "finish_reason": None}
            if chat or dialect == "llamacpp":
                row = self.oracle.row(token, targets[token], dialect)
                row["top_logprobs"] = [self.oracle.row(t, value, dialect) for t, value in top.items()]
                if callable(spoilt) and i == 3:
                    spoilt(row)
                choice["logprobs"] = {"content": [row]}
            else:
                top[token] = targets[token]  # as OpenAI does, one more where it is not among them
                choice["logprobs"] = {"tokens": [self.oracle.name(token, dialect)], "token_logprobs": [targets[token]],
                                      "top_logprobs": [{self.oracle.name(t, dialect): v for t, v in top.items()}]}
            choice |= {"delta": {"content": "..."}} if chat else {"text": self.oracle.text(shown) if i == 0 else ""}
            events.append(json.dumps({"choices": [choice]}))
        reason = f"refused {KEY}" if self.spoil == "reason" and answer["id"] == "text-1" else answer["reason"]
        events.append(json.dumps({"choices": [{"index": 0, "finish_reason": reason, "logprobs": None}]}))
        lost = 2 if self.spoil == "count" and answer["id"] == "text-1" else 0
        events.append(json.dumps({"choices": [], "usage": {"prompt_tokens": answer["prompt_length"],
                                                           "completion_tokens": len(tokens) + lost}}))
        return [*events, "[DONE]"]


def generate(server, out, *options):
    defaults = {"--targets": f"topk:{TOP}", "--retries": 4}
    defaults = [word for name, value in defaults.items() if name not in options for word in (name, value)]
    command = [os.environ["DISTILL"], "--log-level", "debug", "generate", "--teacher", server.url, "--tokenizer", "teacher",
               "--prompts", "prompts.jsonl", "--out", out, "--temperature", 0, "--max-new-tokens", 16, "--json",
               *defaults, *options]  # fmt: skip
    return list(map(str, command))


ENVIRONMENT = {**os.environ, "DISTILL_API_KEY": KEY, "OPENAI_API_KEY": "not-this-one", "no_proxy": "127.0.0.1"}


def expect_secret_kept(run, out):
    check(KEY[:12] not in run.stdout + run.stderr, f"the key was shown: {run.stdout}{run.stderr}")
    for path in pathlib.Path(out).rglob("*"):
        check(not path.is_file() or KEY.encode() not in path.read_bytes(), f"the key was stored in {path}")


def run(server, out, *options, code=0, says=()):
    result = subprocess.run(generate(server, out, *options), env=ENVIRONMENT, capture_output=True, text=True)
    check(result.returncode == code, f"exit code {result.returncode}, not {code}: {result.stderr}")
    for text in says:
        check(text in result.stderr, f"{text!r} is not in {result.stderr}")
    expect_secret_kept(result, out)
    return result


def fresh(name):
    shutil.rmtree(name, ignore_errors=True)
    return name


def compare(out, local, stop=None, ids=None):
    remote, worst = read(out), 0.0
    check(remote.keys() == (ids or set(local)), f"{out}: traces of {sorted(remote)}")
    for key, document in remote.items():
        expected = local[key]
        length = expected["prompt_length"]
        tokens = [t for i, t in enumerate(expected["tokens"]) if i < length or t != stop]
        check(document["tokens"] == tokens and document["finish_reason"] == expected["finish_reason"], f"{out}: {key}")
        for (got, weights, rest), (ids_, full, _) in zip(document["targets"], expected["targets"]):
            wanted = most_probable(dict(zip(ids_, full)))
            check(list(got) == list(wanted), f"{out}: {key}: ids {got} instead of {list(wanted)}")
            worst = max(worst, *(abs(a - wanted[i]) for i, a in zip(got, weights)), abs(rest - (1 - sum(wanted.values()))))
    # Shards round shares to 9 bits (docs/targets.md).
    check(worst <= 4e-3, f"{out}: weights differ by {worst:.1e}")
    return worst


def set_id(row):
    row["id"] = 299 - row["id"]


def set_bytes(row):
    row["bytes"] = list(b"\xff\xff\xff")
    del row["id"]


def set_text(row):
    row["token"] = f"wrong key: {KEY}"
    del row["id"], row["bytes"]


def drop_alternatives(row):
    row["top_logprobs"] = []


PROMPTS = [{"id": f"text-{i}", "prompt": (TEXT[i % 3] * 2)[: 4 + 3 * i]} for i in range(10)]
PROMPTS += [{"id": f"chat-{i}", "messages": [{"role": "user", "content": text}]} for i, text in enumerate(TEXT)]


def write_prompts(prompts):
    pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def answer_locally():
    distill("generate", "--teacher", "teacher", "--prompts", "prompts.jsonl", "--out", fresh("local"), "--targets",
            "topk:300", "--temperature", 0, "--max-new-tokens", 16, "--dtype", "fp32")  # fmt: skip
    return read("local")


def main():
    make_teacher("teacher")
    write_prompts(PROMPTS)
    # The end token is one that ends some of the answers early.
    free = [document["tokens"][document["prompt_length"] + 4 :] for document in answer_locally().values()]
    stop = min(range(2, 300), key=lambda token: abs(sum(token in tokens for tokens in free) - len(free) / 2))
    pathlib.Path("teacher/generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    local = answer_locally()
    reasons = collections.Counter(document["finish_reason"] for document in local.values())
    check(len(reasons) == 2, f"answers end in one way only: {reasons}")
    oracle = Oracle("teacher", local, stop)

    for dialect in ("llamacpp", "vllm", "openai"):
        with Server(oracle, dialect) as server:
            run(server, fresh(dialect))
            print(f"completions as {dialect} sends them: {len(local)} traces equal, weights within {compare(dialect, local):.1e}")
    chat = [prompt for prompt in PROMPTS if "messages" in prompt]
    write_prompts(chat)
    with Server(oracle, "openai") as server:
        run(server, fresh("chat"), "--remote-api", "chat")
        compare("chat", local, stop=stop, ids={prompt["id"] for prompt in chat})
        print(f"chat: {len(chat)} traces equal")
    write_prompts(PROMPTS)

    faults = ["429", "500", "cut", "json", "deep", "reset", "html", "no-end", "error-event", "hang", "429",
              "500"]  # fmt: skip
    with Server(oracle, faults=faults) as server:
        result = run(server, fresh("faults"), "--batch", 4, "--stall-timeout", 1,
                     says=["the server answered 429: slow down", "out of order, <key>", "slot lost <key>",
                           "nested deeper than 64 levels"])  # fmt: skip
        compare("faults", local)
        check(not server.faults, f"not committed: {server.faults}")
        retries = result.stderr.count("trying again")
        # libcurl itself repeats a request if a connection that it kept open turns out to be dead.
        check(len(faults) - 2 <= retries <= len(faults), f"{retries} retries after {len(faults)} faults")
        for pause in server.pauses:
            early = [arrival - pause for arrival in server.arrivals if 0.15 < arrival - pause < 0.95]
            check(not early, f"requests {early} s after the server asked for 1 s")
        print(f"{len(faults)} faults: {retries} retries, all traces equal, Retry-After kept")

    with Server(oracle, limit=5) as server:
        run(server, fresh("resumed"), "--batch", 2, "--retries", 0, code=1, says=["given up after 1 attempts", "500"])
        first = list(server.answered)
    with Server(oracle) as server:
        run(server, "resumed")
        check(sorted(first + server.answered) == sorted(local), f"{first} and then {server.answered}")
        compare("resumed", local)
        print(f"a server that stayed away after {len(first)} answers: {len(server.answered)} asked for when run again")

    with Server(oracle, delay=0.3) as server:
        process = subprocess.Popen(generate(server, fresh("stopped"), "--batch", 1), env=ENVIRONMENT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        while len(server.answered) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        check(process.wait() == 128 + signal.SIGINT, process.stderr.read())
        answered, server.answered = server.answered, []
        server.delay = 0.0
        run(server, "stopped")
        # The last answer may have come too late to be kept.
        missing = sorted(set(local) - set(answered)), sorted(set(local) - set(answered[:-1]))
        check(sorted(server.answered) in missing, f"{answered} and then {server.answered}")
        compare("stopped", local)
        print(f"stopped by a signal after {len(answered)} answers: {len(server.answered)} asked for when run again")

    spoils = [(set_id, "has id"), (set_bytes, "is none of the tokenizer's"), (drop_alternatives, "no \"top_logprobs\""),
              (set_text, "wrong key: <key>"), ("reason", 'ended the answer with "refused <key>"'),
              ("count", "tokens but sent the log-probabilities of")]  # fmt: skip
    for spoil, says in spoils:
        where = ("answer token 3",) if callable(spoil) else ()
        with Server(oracle, spoil=spoil) as server:
            run(server, fresh("spoilt"), code=1, says=['prompt "text-1"', says, *where])
            compare("spoilt", local, ids=set(local) - {"text-1"})
    print(f"{len(spoils)} kinds of answers that contradict the tokenizer: refused, the others written")

    for status, says in ((401, "DISTILL_API_KEY"), (400, "none of 7 prompts before it"), (307, "answered 307")):
        with Server(oracle, status=status) as server:
            run(server, fresh("refused"), code=1, says=[says])
    with socket.socket() as full:  # its queue of connections: the next one hears nothing
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(full.getsockname())
        nobody = types.SimpleNamespace(url=f"http://127.0.0.1:{full.getsockname()[1]}")
        result = run(nobody, fresh("refused"), "--connect-timeout", 0.5, "--retries", 0, code=1, says=["/models: "])
        waited = re.search(r"after (\d+) m", result.stderr)
        check(waited and 500 <= int(waited[1]) < 9000, f"--connect-timeout 0.5 gave: {result.stderr}")
        for connection in waiting:
            connection.close()
    print(f"--connect-timeout of 500 ms: given up after {waited[1]} ms")
    two = json.dumps({"data": [{"id": f"{name} of {KEY}"} for name in ("one", "other")]})
    for models, code, says in ((f"<html>who is {KEY}?", 1, "who is <key>?"), (two, 2, "one of <key>, other of <key>")):
        with Server(oracle, models=models) as server:
            run(server, fresh("refused"), code=code, says=[says])
    with Server(oracle) as server:
        run(server, fresh("refused"), "--targets", "full", code=2, says=["topk:K"])
        server.url = server.url.replace("127.0.0.1", "user:word@127.0.0.1")
        result = run(server, fresh("refused"), code=2, says=["DISTILL_API_KEY"])
        check("word" not in result.stderr.replace("password", ""), result.stderr)
    print("401, 400 for everything, redirects, full targets and passwords in URLs end the run")


if __name__ == "__main__":
    main()
