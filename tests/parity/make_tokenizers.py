"""Trains small byte-level BPE tokenizers with the exact pipelines of published families, for the parity tests.

    python tests/parity/make_tokenizers.py FOLDER [--small]

The real vocabularies are not at hand offline, but ids depend on them only through a table; what is hard to get right is
the pipeline around it: normaliser, pre-tokenizer, added tokens, post-processor. The text comes from the files that this
Debian system has under /usr/share, and from random mixtures of scripts, so the vocabularies differ between machines;
each run compares both sides on the same file. --small gives what is committed in tests/data/testdata/tokenizers:
small vocabularies and, in golden.json, the ids that `tokenizers` gives for the texts below.
"""

import argparse
import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SEED = 20240607
ROOTS = ("/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl", "/usr/lib/python3.11", "/usr/share/i18n")

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")


GOLDEN_TEXTS = [
    "", "Hello, world!", "I'm sure THEY'LL say 'tis it'S he's\u017f", "  two  spaces   \n\n\ttab\r\n end ", "1234567 12,345.678 ٣٤٥ ⅫⅣ ½",
    "x = f(a[0]); // --> y-- `` ``", "naïve cafe\u0301 A\u030a\u0327 \u1e9b\u0323 ﬁne ﬁ", "你好，世界！カタカナ ひらがな 한국어 ᄒᆞᆫ", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "<|im_start|>user\nHi<|im_end|>", "a <mask> b <pad>  c  <both>  d <pa <<pad>", "word words aword word. ſword", "\u180e\u2028\u00a0\u3000\x1c\x00",
    "\U000323af \U00011f41 \U0001e08f \ua7da \U000105c9", "\ufffd \ue000 \U0010ffff \u0378", "<｜User｜>x<｜Assistant｜>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]  # fmt: skip
SMALL = ("deepseek-v3", "llama3", "mixed", "qwen2", "tekken")


def isolated(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **options})


def special(*contents):
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def begin_with(token):
    return lambda tokenizer: processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, tokenizer.token_to_id(token))]
            ),
        ]
    )


# name: (normaliser, pre-tokenizer, added tokens, post-processor, model options)
FAMILIES = {
    "gpt2": (None, byte_level(use_regex=True), special("<|endoftext|>"), None, {}),
    "gpt2-prefix": (None, byte_level(use_regex=True, add_prefix_space=True), special("<s>", "</s>"), None, {}),
    "llama3": (
        None,
        pre_tokenizers.Sequence([isolated(LLAMA3), byte_level()]),
        special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        begin_with("<|begin_of_text|>"),
        {"ignore_merges": True},
    ),
    "qwen2": (
        normalizers.NFC(),
        pre_tokenizers.Sequence([isolated(QWEN2), byte_level()]),
        special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + [AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)],
        None,
        {},
    ),
    "deepseek-v3": (
        normalizers.Sequence([]),
        pre_tokenizers.Sequence([*map(isolated, DEEPSEEK_V3), byte_level()]),
        special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>") + [AddedToken("<｜User｜>", normalized=False), AddedToken("<｜Assistant｜>", normalized=False)],
        begin_with("<｜begin▁of▁sentence｜>"),
        {},
    ),
    "deepseek-coder": (
        None,
        pre_tokenizers.Sequence([*map(isolated, DEEPSEEK_CODER), pre_tokenizers.Digits(individual_digits=True), byte_level()]),
        special("<｜begin▁of▁sentence｜>") + [AddedToken("<|EOT|>")],
        begin_with("<｜begin▁of▁sentence｜>"),
        {},
    ),
    "smollm": (
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)]),
        special("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        {},
    ),
    "tekken": (None, pre_tokenizers.Sequence([isolated(TEKKEN), byte_level()]), special("<s>", "</s>", "[INST]", "[/INST]"), begin_with("<s>"), {"ignore_merges": True}),
    # Nobody's pipeline, but every option of it.
    "mixed": (
        normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKC()]),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("--", "removed"),
                pre_tokenizers.Split(Regex(r"[,;]"), "merged_with_previous"),
                pre_tokenizers.Split(Regex(r"[(\[{]"), "merged_with_next"),
                pre_tokenizers.Split(Regex(r"[=+*/-]"), "contiguous"),
                pre_tokenizers.Split(Regex(r"[^@]+"), "isolated", invert=True),
                pre_tokenizers.Digits(individual_digits=False),
                byte_level(use_regex=True, add_prefix_space=True),
            ]
        ),
        [
            AddedToken("<mask>", lstrip=True, special=True, normalized=False),
            AddedToken("<pad>", rstrip=True, special=True, normalized=False),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("word", single_word=True),
            AddedToken("ﬁne", normalized=True),
            AddedToken("   ", normalized=True),
            AddedToken("<", normalized=False),
            AddedToken("<pa", normalized=False),
        ],
        lambda tokenizer: processors.TemplateProcessing(
            single="<pad> $A <mask>", pair="$A $B", special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<pad>", "<mask>")]
        ),
        {"unk_token": "<mask>", "fuse_unk": True},
    ),
}


def corpus(rng, limit):
    """Text of this system's documentation and code, and random words of many scripts."""
    files = [p for root in ROOTS for p in pathlib.Path(root).rglob("*") if p.suffix in {"", ".txt", ".py", ".pm", ".md"} and p.is_file()]
    rng.shuffle(files)
    size = 0
    for path in files:
        text = path.read_bytes()[:20000].decode("utf-8", "replace")
        size += len(text)
        yield text
        if size > limit:
            break
    blocks = ((0x4E00, 0x4F00), (0x3040, 0x30FF), (0xAC00, 0xAD00), (0x400, 0x45F), (0x370, 0x3CE), (0x5D0, 0x5EA), (0x620, 0x64A),
              (0x905, 0x94D), (0xE01, 0xE3A), (0x10A0, 0x10FF), (0x1F600, 0x1F64F), (0xC0, 0x24F))  # fmt: skip
    for _ in range(2000):
        low, high = rng.choice(blocks)
        yield " ".join("".join(chr(min(high, low + int(rng.expovariate(0.1)))) for _ in range(rng.randint(1, 9))) for _ in range(30))


def train(name, texts, vocab_size):
    normalizer, pre_tokenizer, added, post_processor, options = FAMILIES[name]
    tokenizer = Tokenizer(models.BPE(**{k: v for k, v in options.items() if k != "unk_token"}))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    # "mixed" lacks half of the bytes that no prose has, so that some are unknown.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if name == "mixed":
        alphabet = alphabet[:150]
    first = [token.content for token in added[:2]] if name in ("mixed", "gpt2", "smollm") else []
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    if name == "mixed":
        content["model"]["unk_token"] = options["unk_token"]
        content["model"]["fuse_unk"] = True
        content["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens(added)
    if post_processor is not None:
        tokenizer.post_processor = post_processor(tokenizer)
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--families", nargs="*")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    texts = list(corpus(random.Random(SEED), 300_000 if arguments.small else 3_000_000))
    golden = {}
    for name in arguments.families or (SMALL if arguments.small else FAMILIES):
        tokenizer = train(name, texts, 600 if arguments.small else 12_000)
        path = arguments.folder / f"{name}.json"
        content = json.loads(tokenizer.to_str())
        if name in ("llama3", "gpt2"):
            # The older spelling of merges.
            content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        path.write_text(json.dumps(content, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n")
        golden[name] = [{"text": text, "ids": tokenizer.encode(text).ids} for text in GOLDEN_TEXTS]
        print(f"{path}: {tokenizer.get_vocab_size()} tokens, tokenizers {tokenizers.__version__}")
    if arguments.small:
        lines = (f'"{name}": {json.dumps(cases)}' for name, cases in golden.items())
        (arguments.folder / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
