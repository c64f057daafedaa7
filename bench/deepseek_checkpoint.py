"""Synthetic DeepSeek-V3 checkpoints, large enough to time: in FP8 with block scales as DeepSeek publishes them, in bf16
(the same values, dequantised) for transformers, and as GGUF in Q8_0 for llama.cpp. Written a layer at a time.

Weights are random, but not what chooses experts: between random scores the gaps are so small that Q8_0's roundings send
tokens to other experts and logits cannot be compared. So each token belongs to a topic, a direction in its embedding, and
each layer's router sends a topic to experts of its own, drawn at random."""

import json
import os
import pathlib
import sys

import gguf
import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/parity"))
from make_deepseek_checkpoints import BLOCK, dequantise, quantise  # noqa: E402

SHAPES = {
    # 0.66 G parameters, of which a token uses 0.16 G.
    "small": dict(vocab_size=16384, hidden_size=1024, intermediate_size=4096, moe_intermediate_size=512,
                  num_hidden_layers=12, num_attention_heads=16, n_routed_experts=32, n_shared_experts=1, n_group=4,
                  topk_group=2, num_experts_per_tok=4, kv_lora_rank=256, q_lora_rank=512, qk_rope_head_dim=64,
                  qk_nope_head_dim=64, v_head_dim=64),
    # DeepSeek-V2-Lite's layers, 6 of its 27: 3.1 G parameters, of which a token uses 0.6 G. With compressed queries as in V2:
    # llama.cpp takes models without them only if they have 26 or 27 layers.
    "v2-lite": dict(vocab_size=32768, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
                    num_hidden_layers=6, num_attention_heads=16, n_routed_experts=64, n_shared_experts=2, n_group=1,
                    topk_group=1, num_experts_per_tok=6, kv_lora_rank=512, q_lora_rank=1536, qk_rope_head_dim=64,
                    qk_nope_head_dim=128, v_head_dim=128),
}  # fmt: skip
# With a prediction module to draft tokens, for our own program alone.
SHAPES["small-drafts"] = SHAPES["small"] | dict(num_nextn_predict_layers=1)
WRONG_DRAFTS = 0.15  # of all tokens; of DeepSeek-V3's 85 to 90 % are right (DeepSeek-V3 report, section 5.4.3)
COMMON = dict(model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"], first_k_dense_replace=1, moe_layer_freq=1,
              scoring_func="sigmoid", topk_method="noaux_tc", norm_topk_prob=True, routed_scaling_factor=2.5,
              hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
              max_position_embeddings=4096, tie_word_embeddings=False, num_nextn_predict_layers=0, bos_token_id=1,
              eos_token_id=2)  # fmt: skip
TOPICS = 32
TOPIC_LOGIT = 8  # of a topic's experts, where hidden states hold nothing else
FOLLOWING_LOGIT = 40  # of a token's follower, where hidden states hold nothing but the token
QUIET = 0.2  # what layers add to them then
OTHER_LOGITS = 0.3  # deviation of what other directions add to experts' logits


def config_of(shape):
    return {**COMMON, **SHAPES[shape], "num_key_value_heads": SHAPES[shape]["num_attention_heads"]}


def layer_tensors(c, layer):
    """{name: shape} of a layer; projections are stored in FP8."""
    heads, hidden = c["num_attention_heads"], c["hidden_size"]
    queries = heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"])
    shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if c["q_lora_rank"]:
        shapes |= {"self_attn.q_a_proj.weight": (c["q_lora_rank"], hidden),
                   "self_attn.q_a_layernorm.weight": (c["q_lora_rank"],),
                   "self_attn.q_b_proj.weight": (queries, c["q_lora_rank"])}  # fmt: skip
    else:
        shapes["self_attn.q_proj.weight"] = (queries, hidden)
    rank = c["kv_lora_rank"]
    shapes |= {"self_attn.kv_a_proj_with_mqa.weight": (rank + c["qk_rope_head_dim"], hidden),
               "self_attn.kv_a_layernorm.weight": (rank,),
               "self_attn.kv_b_proj.weight": (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), rank),
               "self_attn.o_proj.weight": (hidden, heads * c["v_head_dim"])}  # fmt: skip

    def add_mlp(part, size):
        for name in ("gate_proj", "up_proj"):
            shapes[f"{part}.{name}.weight"] = (size, hidden)
        shapes[f"{part}.down_proj.weight"] = (hidden, size)

    if layer < c["first_k_dense_replace"]:
        add_mlp("mlp", c["intermediate_size"])
    else:
        shapes["mlp.gate.weight"] = (c["n_routed_experts"], hidden)
        shapes["mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
        for expert in range(c["n_routed_experts"]):
            add_mlp(f"mlp.experts.{expert}", c["moe_intermediate_size"])
        add_mlp("mlp.shared_experts", c["n_shared_experts"] * c["moe_intermediate_size"])
    return {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}


def parts(c):
    """The tensors of each file."""
    ends = {"model.embed_tokens.weight": (c["vocab_size"], c["hidden_size"]), "model.norm.weight": (c["hidden_size"],),
            "lm_head.weight": (c["vocab_size"], c["hidden_size"])}  # fmt: skip
    modules = range(c["num_hidden_layers"], c["num_hidden_layers"] + c["num_nextn_predict_layers"])
    hidden = c["hidden_size"]
    return ([ends] + [layer_tensors(c, layer) for layer in range(c["num_hidden_layers"])] +
            [layer_tensors(c, layer) | {f"model.layers.{layer}.{name}.weight": shape for name, shape in
                                        (("enorm", (hidden,)), ("hnorm", (hidden,)), ("eh_proj", (hidden, 2 * hidden)),
                                         ("shared_head.norm", (hidden,)),
                                         ("shared_head.head", (c["vocab_size"], hidden)))}
             for layer in modules])  # fmt: skip


def is_quantised(name):
    return "_proj" in name and name.endswith(".weight")


def stored_bytes(name, shape):
    """In the FP8 checkpoint."""
    if "correction_bias" in name:
        return 4 * shape[0]
    count = int(numpy.prod(shape))
    return count + 4 * (-(-shape[0] // BLOCK) * -(-shape[1] // BLOCK)) if is_quantised(name) else 2 * count


def size_of(c):
    """Parameters and bytes (FP8 checkpoint) of the model, and of them what one token uses."""
    result = dict(parameters=0, bytes=0, active_parameters=0.0, active_bytes=0.0)
    for name, shape in ((n, s) for part in parts(c) for n, s in part.items()):
        share = 1.0
        if name == "model.embed_tokens.weight":
            share = 1 / c["vocab_size"]
        elif ".experts." in name:
            share = c["num_experts_per_tok"] / c["n_routed_experts"]
        count, size = int(numpy.prod(shape)), stored_bytes(name, shape)
        result["parameters"] += count
        result["bytes"] += size
        result["active_parameters"] += share * count
        result["active_bytes"] += share * size
    return result


def projection(shape):
    """[..., inputs]: outputs as large as inputs are, whatever their number, so that no layer drowns the topics."""
    return torch.randn(shape) / shape[-1] ** 0.5


def topic_directions(c):
    """[TOPICS, hidden], orthonormal."""
    return torch.linalg.qr(torch.randn(c["hidden_size"], TOPICS))[0].T


def embedding(c, topics):
    """As large as norms make it, half of it the token's topic."""
    of_token = torch.randint(TOPICS, (c["vocab_size"],))
    return torch.randn(c["vocab_size"], c["hidden_size"]) + c["hidden_size"] ** 0.5 * topics[of_token]


def router(c, topics):
    """Each topic's experts lie in as many groups as a token may use."""
    of_topic = torch.zeros(TOPICS, c["n_routed_experts"])
    for row in of_topic:
        groups = torch.randperm(c["n_group"])[: c["topk_group"]]
        experts = torch.arange(c["n_routed_experts"]).view(c["n_group"], -1)[groups].flatten()
        row[experts[torch.randperm(len(experts))[: c["num_experts_per_tok"]]]] = TOPIC_LOGIT / c["hidden_size"] ** 0.5
    return of_topic.T @ topics + OTHER_LOGITS * projection((c["n_routed_experts"], c["hidden_size"]))


def following_heads(c, embeddings):
    """A head after which one token is followed by one other, as likely as in text, and another that is wrong about some:
    rows are embeddings of the tokens before."""
    before = torch.randperm(c["vocab_size"])
    head = embeddings.float()[before] * FOLLOWING_LOGIT / (2 * c["hidden_size"])
    guesses = head.clone()
    wrong = torch.rand(c["vocab_size"]) < WRONG_DRAFTS
    guesses[wrong] = guesses[wrong].roll(1, 0)
    return head.bfloat16(), guesses.bfloat16()


def write_safetensors(c, fp8, bf16):
    """`bf16` may be None."""
    torch.manual_seed(0)
    topics = topic_directions(c)
    places = {fp8: {}, **({bf16: {}} if bf16 else {})}
    special = {}
    if c["num_nextn_predict_layers"]:
        module = f"model.layers.{c['num_hidden_layers']}"
        embeddings = embedding(c, topics).bfloat16()
        head, guesses = following_heads(c, embeddings)
        hidden = torch.eye(c["hidden_size"])
        special = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head,
                   f"{module}.shared_head.head.weight": guesses,
                   f"{module}.eh_proj.weight": torch.cat([hidden, 0.1 * hidden], 1)}  # fmt: skip
    for folder in places:
        folder.mkdir(parents=True, exist_ok=True)

    def save(folder, file, tensors):
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places[folder] |= dict.fromkeys(tensors, file)

    for index, shapes in enumerate(parts(c)):
        stored, plain = {}, {}
        for name, shape in shapes.items():
            if is_quantised(name):
                values = special.get(name, projection(shape))
                if special and name.endswith(("o_proj.weight", "down_proj.weight")):
                    values = QUIET * values
                stored[name], stored[name + "_scale_inv"] = quantise(values)
                plain[name] = dequantise(stored[name], stored[name + "_scale_inv"]).bfloat16()
                continue
            if name in special:
                values = special[name]
            elif name.endswith("norm.weight"):
                values = (1 + 0.1 * torch.randn(shape)).bfloat16()
            elif name.endswith("correction_bias"):
                values = 0.05 * torch.randn(shape)
            elif name.endswith("gate.weight"):
                values = router(c, topics).bfloat16()
            elif name == "model.embed_tokens.weight":
                values = embedding(c, topics).bfloat16()
            else:
                values = projection(shape).bfloat16()
            stored[name] = plain[name] = values
        save(fp8, f"model-{index:05}.safetensors", stored)
        if bf16:
            save(bf16, f"model-{index:05}.safetensors", plain)
    quantisation = dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[BLOCK, BLOCK])
    for folder in places:
        more = dict(quantization_config=quantisation) if folder == fp8 else {}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": places[folder]}))
        (folder / "config.json").write_text(json.dumps({**c, "torch_dtype": "bfloat16", **more}, indent=2))


GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.o_proj": "attn_output", "mlp.gate": "ffn_gate_inp", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
}  # fmt: skip


def gguf_tensors(c, bf16):
    """(name, fp32 values) in the order of the file. Latent attention's up-projection is split in keys, transposed, and
    values; experts are stacked."""
    for index, shapes in enumerate(parts(c)):
        with safe_open(bf16 / f"model-{index:05}.safetensors", "pt") as file:

            def load(name):
                return file.get_tensor(name).float().numpy()

            if index == 0:
                for name, title in (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"),
                                    ("lm_head", "output")):  # fmt: skip
                    yield f"{title}.weight", load(f"{name}.weight")
                continue
            prefix, block = f"model.layers.{index - 1}.", f"blk.{index - 1}."
            for name in shapes:
                part = name.removeprefix(prefix).removesuffix(".weight")
                if part in GGUF_NAMES:
                    yield f"{block}{GGUF_NAMES[part]}.weight", load(name)
                elif part == "mlp.gate.e_score_correction_bias":
                    yield f"{block}exp_probs_b.bias", load(name)
                elif part == "self_attn.kv_b_proj":
                    heads = load(name).reshape(c["num_attention_heads"], -1, c["kv_lora_rank"])
                    keys, values = numpy.split(heads, [c["qk_nope_head_dim"]], axis=1)
                    yield f"{block}attn_k_b.weight", numpy.ascontiguousarray(keys.transpose(0, 2, 1))
                    yield f"{block}attn_v_b.weight", numpy.ascontiguousarray(values)
                elif part.startswith("mlp.experts.0."):
                    kind = part.removeprefix("mlp.experts.0.")
                    yield f"{block}ffn_{kind.removesuffix('_proj')}_exps.weight", numpy.stack(
                        [load(f"{prefix}mlp.experts.{e}.{kind}.weight") for e in range(c["n_routed_experts"])])


def write_gguf(c, bf16, path):
    writer = gguf.GGUFWriter(path, "deepseek2", use_temp_file=True)
    rank, rope = c["kv_lora_rank"], c["qk_rope_head_dim"]
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(1)  # all heads read the same latents
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_rope_dimension_count(rope)
    if c["q_lora_rank"]:
        writer.add_q_lora_rank(c["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(c["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(c["v_head_dim"])
    writer.add_leading_dense_block_count(c["first_k_dense_replace"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_shared_count(c["n_shared_experts"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_weights_scale(c["routed_scaling_factor"])
    writer.add_expert_weights_norm(c["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(c["n_group"])
    writer.add_expert_group_used_count(c["topk_group"])
    writer.add_vocab_size(c["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{token}>" for token in range(c["vocab_size"])])
    writer.add_token_scores([0.0] * c["vocab_size"])
    writer.add_token_types([gguf.TokenType.NORMAL] * c["vocab_size"])
    writer.add_bos_token_id(c["bos_token_id"])
    writer.add_eos_token_id(c["eos_token_id"])
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, values in gguf_tensors(c, bf16):
        if values.ndim == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder, shape):
    """Whatever of the three is not there yet in `folder`; of small-drafts the FP8 checkpoint alone."""
    c = config_of(shape)
    if c["num_nextn_predict_layers"]:
        if not (folder / f"{shape}-fp8/config.json").exists():
            write_safetensors(c, folder / f"{shape}-fp8", None)
        return
    fp8, bf16, q8 = (folder / f"{shape}{end}" for end in ("-fp8", "-bf16", "-q8_0.gguf"))
    if not bf16.joinpath("config.json").exists():
        write_safetensors(c, fp8, bf16)
    if not q8.exists():
        partial = q8.with_suffix(".partial")
        write_gguf(c, bf16, partial)
        partial.rename(q8)
        # Freshly written files lie scattered in memory, and reading them is slower by a tenth to a third than what was
        # read from the disk.
        for file in (*fp8.iterdir(), *bf16.iterdir(), q8):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]), sys.argv[2])
