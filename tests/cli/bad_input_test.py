#!/usr/bin/env python3
"""The program on bad input: each case damages one thing and expects the exit code and the words that the message must
hold (the file, the place, what is wrong). bad_input_test.py PROGRAM TOKENIZER_JSON; works in a temporary
folder; SHOW=1 in the environment prints every message."""

import array
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile

PROGRAM, TOKENIZER = map(os.path.abspath, sys.argv[1:3])
VOCAB, HIDDEN, FFN, HEADS, KV_HEADS, CONTEXT = 605, 16, 24, 2, 1, 64
CONFIG = dict(model_type="llama", vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=1,
              num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=CONTEXT,
              tie_word_embeddings=True, eos_token_id=600)  # fmt: skip
WEIGHTS = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.0.self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
    "model.layers.0.self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
    "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
    "model.layers.0.mlp.gate_proj.weight": (FFN, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": (FFN, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, FFN),
    "model.norm.weight": (HIDDEN,),
}

DEEP = "[" * 500000 + "]" * 500000  # JSON that exhausts the stack of who recurses into it

failures = []
cases = 0


def distill(*arguments, stdin=b"", stdout=subprocess.PIPE):
    command = [PROGRAM, "--log-level", "error", "--threads", "1", *map(str, arguments)]
    return subprocess.run(command, input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=120)


def expect(name, words, *arguments, code=1, **streams):
    """The program ends with `code`, 1 (what it was given is bad) or 2 (how it was called), and with a message on stderr
    that holds all of `words`."""
    global cases
    cases += 1
    run = distill(*arguments, **streams)
    message = run.stderr.decode("utf-8", "replace")
    if os.environ.get("SHOW"):
        print(f"{name}: {run.returncode}: {message.strip()}")
    missing = [word for word in words if word not in message]
    if "Exception raised from" in message:
        failures.append(f"{name}: the message has a stack trace")
    if run.returncode != code or missing:
        failures.append(f"{name}: exit code {run.returncode}, not {code}, lacks {missing}: {message.strip()}")


def report():
    print(f"{cases} cases, {len(failures)} of them answered otherwise than they should")
    print("\n".join(failures))
    sys.exit(1 if failures else 0)


def write_weights(path, **changes):
    """Random weights; `changes` are {name: (dtype, shape, bytes) or None} with '.' in names written as '__'."""
    tensors = {}
    for index, (name, shape) in enumerate(WEIGHTS.items()):
        draw = random.Random(index)
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = ("F32", shape, array.array("f", (draw.gauss(0, 0.3) for _ in range(count))).tobytes())
    for name, change in changes.items():
        tensors[name.replace("__", ".")] = change
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def write_tensors(path, tensors):
    """{name: (dtype, shape, bytes)}"""
    header, data = {}, b""
    for name, (dtype, shape, contents) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(contents)]}
        data += contents
    write_header(path, json.dumps(header), data)


def write_header(path, text, data=b""):
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


def write_model(folder, config=(), **weights):
    folder.mkdir()
    write_weights(folder / "model.safetensors", **weights)
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder


def cut(path, size):
    """Leaves the first `size` bytes; a negative size takes as many off the end."""
    contents = path.read_bytes()
    path.write_bytes(contents[:size])


def copy(source, name):
    return pathlib.Path(shutil.copytree(source, name))


def models(teacher, prompts):
    """Damaged models, through the commands that compute with one."""
    for name, words, config, weights in [
        ("shape", ["model.norm.weight", "[15]", "[16]"], {},
         {"model__norm__weight": ("F32", (15,), bytes(60))}),
        ("dtype", ["model.norm.weight", "I32"], {}, {"model__norm__weight": ("I32", (16,), bytes(64))}),
        ("nan", ["model.norm.weight", "not finite"], {},
         {"model__norm__weight": ("F32", (16,), struct.pack("<f", float("nan")) * 16)}),
        ("absent", ["model.norm.weight", "missing"], {}, {"model__norm__weight": None}),
        ("negative", ["config.json", "hidden_size"], {"hidden_size": -1}, {}),
        ("unknown", ["config.json", "model_type", "gru"], {"model_type": "gru"}, {}),
        ("heads", ["config.json", "num_attention_heads"], {"num_attention_heads": 3}, {}),
    ]:  # fmt: skip
        model = write_model(pathlib.Path(f"model-{name}"), config, **weights)
        for command in (["generate", "--prompts", prompts, "--out", f"out-{name}", "--teacher"], ["chat", "--model"],
                        ["logits", "--tokens", "ids.jsonl", "--out", "logits.safetensors", "--model"],
                        ["export", "--out", f"out-{name}", "--model"],
                        ["eval", "--data", "traces", "--model"]):  # fmt: skip
            expect(f"{name} in {command[0]}", words, *command, model, stdin=b"Hi\n")
        if pathlib.Path(f"out-{name}").exists():
            failures.append(f"{name}: a directory is left of what failed")

    for name, words, damage in [
        ("no config", ["config.json"], lambda m: (m / "config.json").unlink()),
        ("no weights", ["safetensors"], lambda m: (m / "model.safetensors").unlink()),
        ("no tokenizer", ["tokenizer.json"], lambda m: (m / "tokenizer.json").unlink()),
        ("cut config", ["config.json", "line 1"], lambda m: cut(m / "config.json", 30)),
        ("cut weights", ["model.safetensors"], lambda m: cut(m / "model.safetensors", -8)),
        ("cut header", ["model.safetensors", "header"], lambda m: cut(m / "model.safetensors", 100)),
        ("empty weights", ["model.safetensors"], lambda m: cut(m / "model.safetensors", 0)),
        ("deep config", ["config.json", "nested deeper than 64"],
         lambda m: (m / "config.json").write_text('{"hidden_size": ' + DEEP + "}")),
        ("deep header", ["model.safetensors", "header", "nested deeper than 64"],
         lambda m: write_header(m / "model.safetensors", '{"a": {"shape": ' + DEEP + "}}")),
        ("deep tokenizer", ["tokenizer.json", "nested deeper than 64"],
         lambda m: (m / "tokenizer.json").write_text('{"model": ' + DEEP + "}")),
        ("cut tokenizer", ["tokenizer.json", "line"], lambda m: cut(m / "tokenizer.json", 500)),
        ("binary tokenizer", ["tokenizer.json"], lambda m: (m / "tokenizer.json").write_bytes(b"\xff\x00" * 99)),
    ]:
        model = copy(teacher, "damaged " + name)
        damage(model)
        expect(name, words, "generate", "--teacher", model, "--prompts", prompts, "--out", "out-damaged")
        if not name.startswith("no "):  # inspect shows what there is
            expect(f"{name} in inspect", words, "inspect", model)
        if "tokenizer" in name:
            expect(f"{name} in tokenize", words, "tokenize", "--model", model, stdin=b'"Hi"\n')
    expect("no model", ["nowhere"], "generate", "--teacher", "nowhere", "--prompts", prompts, "--out", "out-nowhere")
    expect("no quickstart's model", ["nowhere"], "quickstart", "--teacher", "nowhere", "--out", "out-q")
    expect("no model to talk to", ["nowhere"], "chat", "--model", "nowhere")

    gguf = pathlib.Path("model.gguf")
    for name, contents in [("empty", b""), ("other file", b"%PDF-1.7 and so on, and so on"),
                           ("cut", b"GGUF" + struct.pack("<IQQ", 3, 5, 9) + b"\x07"),
                           ("counts", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + bytes(64))]:  # fmt: skip
        gguf.write_bytes(contents)
        expect(f"{name} GGUF", ["model.gguf"], "generate", "--teacher", gguf, "--prompts", prompts, "--out", "out-g")
        expect(f"{name} GGUF in inspect", ["model.gguf"], "inspect", gguf)
        expect(f"{name} GGUF in tokenize", ["model.gguf"], "tokenize", "--model", gguf)


def prompt_files(teacher):
    for code, name, words, contents in [
        (1, "no JSON", ["bad.jsonl:2"], b'{"id": "a", "prompt": "x"}\n{"id": \n'),
        (1, "not UTF-8", ["bad.jsonl:1", "UTF-8"], b'{"id": "a", "prompt": "\xff\xfe"}\n'),
        (2, "no id", ["bad.jsonl:1", "id"], b'{"prompt": "x"}\n'),
        (1, "repeated id", ["bad.jsonl:2", "line 1"], b'{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n'),
        (2, "neither prompt nor messages", ["bad.jsonl:1", "prompt", "messages"], b'{"id": "a"}\n'),
        (2, "number for a prompt", ["bad.jsonl:1", "prompt"], b'{"id": "a", "prompt": 7}\n'),
        (2, "unknown verifier", ["verifier", "numeric"],
         b'{"id": "a", "prompt": "x", "answer": "1", "verifier": "magic"}\n'),
        (1, "empty file", ["bad.jsonl", "no prompts"], b""),
        (2, "empty prompt", ["bad.jsonl:1", "empty"], b'{"id": "a", "prompt": ""}\n'),
        (1, "too long prompt", ['prompt "a"', "64"], json.dumps({"id": "a", "prompt": "word and " * 99}).encode()),
    ]:  # fmt: skip
        pathlib.Path("bad.jsonl").write_bytes(contents)
        expect(name, words, "generate", "--teacher", teacher, "--prompts", "bad.jsonl", "--out", f"out {name}",
               code=code)  # fmt: skip
    generate = ["generate", "--prompts", "prompts.jsonl", "--out", "out-h", "--teacher"]
    for layers in ("2", "-1", "first", "0,"):
        expect("unknown layer", ["hidden states", "0 (the embedding) to 1, or last"], *generate, teacher,
               f"--hidden-states={layers}", code=2)  # fmt: skip
    expect("layer twice", ["layer 1 is named twice"], *generate, teacher, "--hidden-states", "1,last", code=2)
    expect("type of no hidden states", ["--hidden-states"], *generate, teacher, "--hidden-dtype", "fp8", code=2)
    expect("hidden states of a server", ["--hidden-states", "remote teacher"], *generate, "http://127.0.0.1:1",
           "--tokenizer", teacher, "--hidden-states", "last", code=2)  # fmt: skip
    expect("no prompts", ["nowhere.jsonl"], "generate", "--teacher", teacher, "--prompts", "nowhere.jsonl", "--out",
           "out-p")  # fmt: skip
    for name, words, line in [("text", [":1", "array"], b'"text"\n'), ("id", [":1", "605"], b"[1, 605]\n"),
                              ("unfinished line", [":1"], b"[1, \n")]:  # fmt: skip
        expect(f"{name} in logits", words, "logits", "--model", teacher, "--tokens", "-", "--out", "l.safetensors",
               stdin=line)  # fmt: skip
    for name, line, flags in [("bytes", b'"\xff"\n', []), ("unfinished", b'"x\n', []), ("number", b"7\n", []),
                              ("unknown id", b"[99999]\n", ["--decode"]), ("no message", b'["x"]\n',
                              ["--chat", "--chat-template", "chatml"])]:  # fmt: skip
        expect(f"{name} in tokenize", ["standard input:1"], "tokenize", "--model", teacher, *flags, stdin=line)


def shards(teacher):
    first = next(pathlib.Path("traces").glob("*.h5")).name
    for name, damage in [("cut", lambda shard: cut(shard, -99)), ("empty", lambda shard: cut(shard, 0)),
                         ("text", lambda shard: shard.write_text("text")),
                         ("flipped", lambda shard: flip(shard))]:  # fmt: skip
        traces = copy("traces", f"traces-{name}")
        damage(traces / first)
        expect(f"{name} shard", [first], "shards", "verify", traces)
        if name != "flipped":
            for command in (["shards", "stats"], ["shards", "list"], ["inspect"],
                            ["train", "--student", "student.json", "--out", "run-x", "--steps", "1", "--data"],
                            ["eval", "--model", teacher, "--data"]):  # fmt: skip
                expect(f"{name} shard in {command[0]}", [first], *command, traces)
    os.mkdir("traces-none")
    for traces in (pathlib.Path("traces-none"), copy("traces", "traces-some")):
        write_shard_without_documents(traces / "shard-99999.h5")
        for command in (["shards", "stats"], ["shards", "list"], ["shards", "verify"], ["inspect"],
                        ["train", "--student", "student.json", "--out", "run-x", "--steps", "1", "--data"],
                        ["eval", "--model", teacher, "--data"]):  # fmt: skip
            expect(f"{traces} in {command[0]}", ["shard-99999.h5", "holds no documents"], *command, traces, code=1)
    distill("generate", "--teacher", teacher, "--prompts", "prompts.jsonl", "--out", "traces-other", "--targets",
            "topk:3", "--max-new-tokens", "4")  # fmt: skip
    mixed = copy("traces", "traces-mixed")
    shutil.copy(next(pathlib.Path("traces-other").glob("*.h5")), mixed / "shard-99999.h5")
    expect("mixed shards", ["shard-99999.h5", "don't mix"], "train", "--student", "student.json", "--out", "run-x",
           "--data", mixed)  # fmt: skip
    expect("no shards", ["nowhere"], "shards", "stats", "nowhere")
    expect("no traces", ["nowhere"], "train", "--data", "nowhere", "--student", "student.json", "--out", "run-x")
    os.mkdir("nothing")
    expect("empty folder", ["nothing"], "train", "--data", "nothing", "--student", "student.json", "--out", "run-x")


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def write_shard_without_documents(path):
    """Sound but for that; no command writes one."""
    def block(crc):
        return b"DSTLSHRD" + struct.pack("<IIQII", 1, crc, 512, 0, 0) + bytes(480)

    path.write_bytes(block(crc32c(block(0))))


def flip(path):
    contents = bytearray(path.read_bytes())
    for place in range(len(contents) // 2, len(contents) // 2 + 64):
        contents[place] ^= 0xFF
    path.write_bytes(contents)


def mismatches(teacher):
    train = ["train", "--data", "traces", "--out", "run-m", "--steps", "1", "--student"]
    pathlib.Path("small.json").write_text(json.dumps(CONFIG | {"vocab_size": 300}))
    expect("smaller vocabulary", ["vocab_size", "300", "605"], *train, "small.json")
    other = copy(teacher, "other tokenizer")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][3]["content"] = "<thought>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    expect("student of another tokenizer", ["tokenizer", "other tokenizer"], *train, other)
    expect("evaluated with another tokenizer", ["tokenizer", "other tokenizer"], "eval", "--model", other, "--data",
           "traces")  # fmt: skip
    expect("traces of another teacher", ["traces"], "generate", "--teacher", other, "--prompts", "prompts.jsonl",
           "--out", "traces")  # fmt: skip
    expect("a budget for tokens that are not there", ["<think>"], "chat", "--model", other, "--chat-template",
           "chatml", "--thinking-budget", "5", code=2)  # fmt: skip
    expect("teacher of another tokenizer", ["tokenizer"], *train, "student.json", "--teacher", other)
    bigger = write_model(pathlib.Path("bigger vocabulary"), {"vocab_size": VOCAB - 5})
    expect("config against weights", ["model.embed_tokens.weight", "605", "600"], "export", "--model", bigger, "--out",
           "out-b")  # fmt: skip
    expect("no student", ["nowhere.json"], *train, "nowhere.json")
    pathlib.Path("cut.json").write_text('{"model_type": ')
    expect("cut student", ["cut.json", "line 1"], *train, "cut.json")
    pathlib.Path("bad.yaml").write_text("optimizer: [1,\n  :")
    pathlib.Path("twice.yaml").write_text("steps: 1\nsteps: 2\n")
    pathlib.Path("typo.yaml").write_text("learning_rat: 1\n")
    for name, words in [("bad", ["line"]), ("twice", ["line 2", "steps"]), ("typo", ["learning_rat", "optimizer"]),
                        ("nowhere", [])]:  # fmt: skip
        recipe = ["student.json", "--recipe", f"{name}.yaml"]
        expect(f"{name} recipe", [f"{name}.yaml", *words], *train, *recipe, code=2)
        expect(f"{name} recipe of ranks", [f"{name}.yaml", *words], *train, *recipe, "--nproc", "2", code=2)
    for name, recipe, words in [
        ("misspelt divergence", {"objective": {"divergence": "reverse"}}, ["objective.divergence", "reverse_kl"]),
        ("unsound objective", {"objective": {"divergence": "reverse_kl"}}, ["unsound", "threshold", "--online"]),
        ("hidden states that traces lack", {"objective": {"hidden_states": {"weight": 1}}},
         ["hidden_states are not in these traces", "--hidden-states last", "--online"]),
        ("misspelt layers", {"objective": {"hidden_states": {"layers": {"top": 1}}}},
         ["objective.hidden_states.layers", "{4: 8, last: last}"]),
        ("answers without a teacher", {"on_policy": {"student_share": 0.5}}, ["on_policy", "--online"]),
        ("group of nothing", {"optimizer": {"groups": [{"pattern": "layer.*"}]}}, ["optimizer.groups", "layer.*"]),
        ("misspelt group", {"optimizer": {"groups": [{"pattern": "*", "lr": 1}]}}, ["groups[0]", "lr"]),
        ("nothing to train", {"optimizer": {"groups": [{"pattern": "*", "frozen": True}]}}, ["frozen"]),
    ]:
        pathlib.Path("objective.json").write_text(json.dumps(recipe))
        expect(name, words, *train, "student.json", "--recipe", "objective.json", code=2)
    expect("online teacher of another tokenizer", ["other tokenizer"], *train, "student.json", "--online", other)
    for name, words, weights in [("for too few teachers", ["2 for 1 teachers"], ["0.75", "0.25"]),
                                 ("of nothing", ["0 is not a number above 0"], ["0"])]:  # fmt: skip
        expect(f"weights {name}", ["--online-weights", *words], *train, "student.json", "--online", teacher,
               "--online-weights", *weights, code=2)  # fmt: skip
    expect("no online teacher", ["nowhere"], *train, "student.json", "--online", "nowhere")


def outputs(teacher):
    export = ["export", "--model", teacher, "--out"]
    distill(*export, "out-twice")
    expect("existing output", ["out-twice", "--overwrite"], *export, "out-twice", code=2)
    pathlib.Path("file").write_text("a file")
    pathlib.Path("mine").mkdir()
    pathlib.Path("mine/thesis.txt").write_text("not a model")
    expect("somebody's folder", ["mine"], *export, "mine", "--overwrite", code=2)
    if not pathlib.Path("mine/thesis.txt").exists():
        failures.append("export deleted what was not its own")
    expect("a file for traces", ["file"], "generate", "--teacher", teacher, "--prompts", "prompts.jsonl", "--out",
           "file")  # fmt: skip
    expect("a file for a run", ["file"], "train", "--data", "traces", "--student", "student.json", "--out", "file")
    expect("a file for a model", ["file"], *export, "file", code=2)
    run = ["train", "--data", "traces", "--student", "student.json", "--out", "run", "--steps", "2", "--seed"]
    distill(*run, "1")
    expect("a run of another seed", ["run", "seed"], *run, "2")
    shutil.copytree("run", "run-cut")
    for file in pathlib.Path("run-cut").rglob("*.safetensors"):
        cut(file, -8)
    expect("a damaged checkpoint", ["run-cut", "safetensors"], "eval", "--model", "run-cut", "--data", "traces")
    with open("/dev/full", "wb") as full:
        for command in (["inspect", teacher], ["shards", "stats", "traces"], ["tokenize", "--model", teacher],
                        ["shards", "export", "traces", "--out", "-"], ["eval", "--model", teacher, "--data", "traces"],
                        ["completion", "bash"]):  # fmt: skip
            expect(f"{command[0]} onto a full disk", ["standard output"], *command, stdin=b'"Hi"\n', stdout=full)


def full_disk(teacher):
    """On a file system of 48 KiB, a third of it taken, where mounting one is permitted: an error, and no file under its
    final name."""
    disk = pathlib.Path("disk")
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)], capture_output=True).returncode:
        print("full disk: not tried, mounting is not permitted here")
        return
    try:
        (disk / "ballast").write_bytes(bytes(16 << 10))
        for command in (["export", "--model", teacher, "--dtype", "fp32", "--out"],
                        ["generate", "--teacher", teacher, "--prompts", "prompts.jsonl", "--samples", "200",
                         "--targets", "full", "--out"],
                        ["train", "--data", "traces", "--student", "student.json", "--steps", "1", "--out"],
                        ["shards", "export", "traces", "--out"],
                        ["logits", "--model", teacher, "--tokens", "ids.jsonl", "--out"]):  # fmt: skip
            expect(f"{command[0]} onto a full disk", ["disk/", "No space left"], *command, disk / command[0])
            if command[0] in ("export", "logits") and (disk / command[0]).exists():
                failures.append(f"{command[0]} left something on a full disk")
            shutil.rmtree(disk / command[0], ignore_errors=True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def usage(teacher):
    expect("no command", ["subcommand"], code=2)
    expect("unknown command", ["destil"], "destil", code=2)
    expect("unknown option", ["--promts"], "generate", "--promts", "x", code=2)
    expect("no such number", ["--steps", "0", "from 1"], "train", "--data", "traces", "--student", "s", "--out", "r",
           "--steps", "0", code=2)
    for option, value in [("--targets", "topk:0"), ("--targets", "many"), ("--temperature", "-1"), ("--top-p", "2"),
                          ("--samples", "0"), ("--dtype", "int4"), ("--chat-template", "nobody")]:  # fmt: skip
        expect(f"{option} {value}", [option.lstrip("-")], "generate", "--teacher", teacher, "--prompts",
               "prompts.jsonl", "--out", "out-u", option, value, code=2)  # fmt: skip
    generate = ["generate", "--teacher", teacher, "--prompts", "prompts.jsonl", "--out", "out-u"]
    expect("FP8 latents of a model without them", ["latent attention", "llama"], *generate, "--cache-dtype", "fp8",
           code=2)  # fmt: skip
    expect("drafts without a prediction module", ["draft"], *generate, "--draft-tokens", "2", code=2)


def help_of_every_command(*command):
    """--help opens with an example, for each command that --help lists."""
    global cases
    cases += 1
    text = distill(*command, "--help").stdout.decode()
    if not text.startswith("Example: "):
        failures.append(f"{' '.join(command)} --help opens with: {text[:60]}")
    _, _, listed = text.partition("Subcommands:\n")
    for line in listed.splitlines():
        if line.startswith("  ") and line[2:3].strip():
            help_of_every_command(*command, line.split()[0])


def main():
    os.chdir(tempfile.mkdtemp(prefix="distill-bad-input-"))
    try:
        teacher = write_model(pathlib.Path("teacher"))
        prompts = [{"id": f"p{i}", "prompt": "one and " * (i + 1)} for i in range(6)]
        pathlib.Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        pathlib.Path("ids.jsonl").write_text("".join(f"{list(range(1, 60))}\n" for _ in range(20)))
        pathlib.Path("student.json").write_text(json.dumps(CONFIG))
        made = distill("generate", "--teacher", teacher, "--prompts", "prompts.jsonl", "--out", "traces", "--samples",
                       "4", "--max-new-tokens", "16")  # fmt: skip
        if made.returncode != 0:
            sys.exit(f"the undamaged teacher does not work: {made.stderr.decode()}")
        models(teacher, "prompts.jsonl")
        prompt_files(teacher)
        shards(teacher)
        mismatches(teacher)
        outputs(teacher)
        full_disk(teacher)
        usage(teacher)
        help_of_every_command()
    finally:
        shutil.rmtree(os.getcwd())
    report()


if __name__ == "__main__":
    main()
