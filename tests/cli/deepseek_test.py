#!/usr/bin/env python3
"""A tiny DeepSeek checkpoint in two shards, with FP8 experts and a prediction module, through the program: what it says
of its drafts, and, damaged in one way each, exit code 1 and a message that names the tensor or key.
deepseek_test.py PROGRAM TOKENIZER_JSON; SHOW=1 in the environment prints every message.

Attention and feed-forward layers add nothing: a token's embedding alone decides which one comes next. The answers go
round a cycle of tokens; the prediction module is wrong about one of them."""

import json
import os
import pathlib
import shutil
import struct
import tempfile

from bad_input_test import DEEP, TOKENIZER, copy, cut, distill, expect, failures, report, write_tensors

VOCAB, HIDDEN, EXPERTS, MOE = 605, 16, 4, 8
CONFIG = dict(model_type="deepseek_v3", vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=24,
              moe_intermediate_size=MOE, num_hidden_layers=2, num_nextn_predict_layers=1, num_attention_heads=2,
              num_key_value_heads=2, n_routed_experts=EXPERTS, n_shared_experts=1, num_experts_per_tok=2, n_group=1,
              topk_group=1, first_k_dense_replace=1, routed_scaling_factor=1.0, kv_lora_rank=8, q_lora_rank=None,
              qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4, rms_norm_eps=1e-6, rope_theta=10000.0,
              max_position_embeddings=128, tie_word_embeddings=False, eos_token_id=600,
              quantization_config=dict(quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128]))  # fmt: skip
CYCLE, MISTAKEN = 5, 2  # tokens 0 to 4 follow each other; after this one the prediction module expects token 9
ANSWER = 41  # tokens
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.0.up_proj.weight"
ROUTER = "model.layers.1.mlp.gate.weight"
EMBEDDING = "model.embed_tokens.weight"
NAN = struct.pack("<f", float("nan"))


def matrix(rows, columns, ones):
    """F32, with ones at these (row, column)."""
    values = [0.0] * (rows * columns)
    for row, column in ones:
        values[row * columns + column] = 1.0
    return "F32", (rows, columns), struct.pack(f"<{len(values)}f", *values)


def vector(size, value=1.0):
    return "F32", (size,), struct.pack("<f", value) * size


def feed_forward(prefix, size):
    return {f"{prefix}.{part}_proj.weight": matrix(*shape, [])
            for part, shape in (("gate", (size, HIDDEN)), ("up", (size, HIDDEN)), ("down", (HIDDEN, size)))}


def layer(number, experts):
    tensors = {"input_layernorm.weight": vector(HIDDEN), "post_attention_layernorm.weight": vector(HIDDEN),
               "self_attn.q_proj.weight": matrix(2 * 8, HIDDEN, []),
               "self_attn.kv_a_proj_with_mqa.weight": matrix(8 + 4, HIDDEN, []),
               "self_attn.kv_a_layernorm.weight": vector(8), "self_attn.kv_b_proj.weight": matrix(2 * 8, 8, []),
               "self_attn.o_proj.weight": matrix(HIDDEN, 2 * 4, [])}  # fmt: skip
    if experts:
        tensors |= {"mlp.gate.weight": matrix(EXPERTS, HIDDEN, []),
                    "mlp.gate.e_score_correction_bias": ("F32", (EXPERTS,), struct.pack("<4f", 2, 1, 0, 0))}
        tensors |= feed_forward("mlp.shared_experts", MOE)
        for expert in range(EXPERTS):
            for name, (_, shape, _) in feed_forward(f"mlp.experts.{expert}", MOE).items():
                tensors |= {name: ("F8_E4M3", shape, bytes(MOE * HIDDEN)),
                            f"{name}_scale_inv": matrix(1, 1, [(0, 0)])}
    else:
        tensors |= feed_forward("mlp", CONFIG["intermediate_size"])
    return {f"model.layers.{number}.{name}": tensor for name, tensor in tensors.items()}


def tensors():
    embeddings = [(token, min(token, CYCLE)) for token in range(VOCAB)]  # one for all tokens outside of the cycle
    follows = [(0, CYCLE)] + [((token + 1) % CYCLE, token) for token in range(CYCLE)]
    guesses = [(9 if column == MISTAKEN else row, column) for row, column in follows]
    first_half = [(i, i) for i in range(HIDDEN)]  # of the prediction module's input, which is the embedding
    return {
        "model.embed_tokens.weight": matrix(VOCAB, HIDDEN, embeddings),
        "model.norm.weight": vector(HIDDEN),
        "lm_head.weight": matrix(VOCAB, HIDDEN, follows),
        **layer(0, experts=False),
        **layer(1, experts=True),
        **layer(2, experts=True),
        "model.layers.2.enorm.weight": vector(HIDDEN),
        "model.layers.2.hnorm.weight": vector(HIDDEN),
        "model.layers.2.eh_proj.weight": matrix(HIDDEN, 2 * HIDDEN, first_half),
        "model.layers.2.shared_head.norm.weight": vector(HIDDEN),
        "model.layers.2.shared_head.head.weight": matrix(VOCAB, HIDDEN, guesses),
    }


def write_model(folder, config=(), changes=()):
    """`changes` are {name: tensor, or None to leave it out}."""
    folder.mkdir()
    places = {}
    for shard in (1, 2):
        part = {name: tensor for name, tensor in (tensors() | dict(changes)).items()
                if tensor is not None and ("layers.1." in name) == (shard == 2)}  # fmt: skip
        file = f"model-0000{shard}-of-00002.safetensors"
        write_tensors(folder / file, part)
        places |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder


def change_index(folder, name, file):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = file
    (folder / INDEX).write_text(json.dumps(index))


def generate(model, *options):
    return ["generate", "--teacher", model, "--prompts", "prompts.jsonl", "--targets", "topk:4", "--temperature", "0",
            "--max-new-tokens", ANSWER, *options]  # fmt: skip


def count_drafts(length, distances):
    """[checked, accepted] by distance, for an answer that goes round the cycle."""
    counts = [[0, 0] for _ in range(distances)]
    known = 1  # the first token comes with the prompt
    while known < length:
        right = True
        certain = known
        for distance in range(min(distances, length - certain - 1)):
            right = right and (certain + distance - 1) % CYCLE != MISTAKEN
            counts[distance][0] += 1
            counts[distance][1] += right
            known += right
        known += 1
    return counts


def check_drafts(model):
    for distances in (1, 2):
        options = ["--draft-tokens", distances, "--out"]
        run = distill(*generate(model, *options, f"drafts-{distances}-json", "--json"))
        text = distill(*generate(model, *options, f"drafts-{distances}")).stdout.decode()
        if run.returncode != 0:
            raise SystemExit(f"the undamaged model does not work: {run.stderr.decode()}")
        summary = json.loads(run.stdout)
        counts = count_drafts(ANSWER, distances)
        drafts = [dict(checked=checked, accepted=right, acceptance=right / checked) for checked, right in counts]
        tokens_per_pass = 1 + sum(right for _, right in counts) / counts[0][0]
        if summary["drafts"] != drafts or abs(summary["tokens_per_pass"] - tokens_per_pass) > 1e-9:
            failures.append(f"{distances} drafts: {counts} expected, not {run.stdout.decode()}")
        shares = ", ".join(f"{100 * count['acceptance']:.1f} %" for count in drafts)
        line = f"drafts     {shares} accepted, by distance; {tokens_per_pass:.2f} tokens per pass\n"
        if line not in text:
            failures.append(f"{distances} drafts: {line!r} is not in {text!r}")


def check_damages(model):
    shard = "model-00002-of-00002.safetensors"
    nan = "F32", (1, 1), NAN
    for name, words, changes in [
        ("missing expert", [EXPERT, "missing"], {EXPERT: None}),
        ("missing scale", [EXPERT + "_scale_inv", "missing"], {EXPERT + "_scale_inv": None}),
        ("NaN scale", [EXPERT + "_scale_inv", "not finite"], {EXPERT + "_scale_inv": nan}),
        ("NaN in the router", [ROUTER, "not finite"],
         {ROUTER: ("F32", (EXPERTS, HIDDEN), NAN * EXPERTS * HIDDEN)}),
        ("scale of nothing", ["model.norm.weight_scale_inv", "no place"], {"model.norm.weight_scale_inv": nan}),
        ("shape of an expert", [EXPERT, "[8, 8]", "[8, 16]"], {EXPERT: ("F8_E4M3", (MOE, 8), bytes(MOE * 8))}),
    ]:
        expect_everywhere(name, words, write_model(pathlib.Path(name), changes=changes))
    for name, words, config in [
        ("unknown scoring", ["config.json", "scoring_func", "tanh"], {"scoring_func": "tanh"}),
        ("unknown routing", ["config.json", "topk_method", "random"], {"topk_method": "random"}),
        ("sizes", ["num_hidden_layers, 4096", "n_routed_experts, 16384"],
         {"num_hidden_layers": 4096, "n_routed_experts": 16384}),
        ("other quantisation", ["config.json", "quantization_config.quant_method", "gptq"],
         {"quantization_config": {"quant_method": "gptq"}}),
    ]:  # fmt: skip
        expect_everywhere(name, words, write_model(pathlib.Path(name), config))
    unsound = {EMBEDDING: ("F32", (VOCAB, HIDDEN), NAN * VOCAB * HIDDEN)}  # too many to look at before they are used
    expect("NaN while generating", ['prompt "a"', "NaN"],
           *generate(write_model(pathlib.Path("unsound"), changes=unsound), "--out", "begun"))  # fmt: skip
    for name, words, damage in [
        ("cut shard", [shard, "truncated"], lambda m: cut(m / shard, -8)),
        ("no shard", [shard], lambda m: (m / shard).unlink()),
        ("index that leaves the folder", [INDEX, EXPERT, "../"], lambda m: change_index(m, EXPERT, f"../model/{shard}")),
        ("index of another tensor", [INDEX, "model.layers.7"],
         lambda m: change_index(m, "model.layers.7.up_proj.weight", shard)),
        ("deep index", [INDEX, "nested deeper than 64"], lambda m: (m / INDEX).write_text(DEEP)),
    ]:  # fmt: skip
        damaged = copy(model, name)
        damage(damaged)
        expect_everywhere(name, words, damaged)


def expect_everywhere(name, words, model):
    expect(f"{name} in generate", words, *generate(model, "--out", "out"))
    expect(f"{name} in chat", words, "chat", "--model", model, "--chat-template", "chatml", stdin=b"Hi\n")
    if pathlib.Path("out").exists():
        failures.append(f"{name}: a directory is left of what failed")
        shutil.rmtree("out")


def main():
    os.chdir(tempfile.mkdtemp(prefix="distill-deepseek-"))
    try:
        pathlib.Path("prompts.jsonl").write_text('{"id": "a", "prompt": "one and"}\n')
        model = write_model(pathlib.Path("model"))
        check_drafts(model)
        check_damages(model)
    finally:
        shutil.rmtree(os.getcwd())
    report()


if __name__ == "__main__":
    main()
