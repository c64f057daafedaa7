"""Writes data/unicode_runs.inc: the general category and the few properties that pre-tokenizers ask of each code point.

    python tests/parity/make_unicode_table.py > data/unicode_runs.inc

Ids must equal those of Hugging Face `tokenizers`, so the library itself is asked, one code point after the other: its
regular expressions (Oniguruma), its Digits pre-tokenizer (Rust's standard library) and its single-word added tokens
(Rust's regex crate) each carry a Unicode version of their own. Takes about a minute.
"""

import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

CATEGORIES = ("Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co").split()
SPACE, NUMERIC, WORD = 0x20, 0x40, 0x80
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def matched_by(splitter):
    """The code points that `splitter` cuts out from between two control characters."""
    return {c for c in CODE_POINTS if len(splitter.pre_tokenize_str(f"\x01{chr(c)}\x01")) > 1}


def word_characters():
    model = models.BPE({"a": 0, "b": 1}, [], unk_token="b", fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.add_tokens([AddedToken("XX", single_word=True)])
    added = tokenizer.token_to_id("XX")
    return {c for c in CODE_POINTS if added not in tokenizer.encode("XX" + chr(c)).ids}


def main():
    value = [0] * 0x110000
    for c in range(0xD800, 0xE000):
        value[c] = CATEGORIES.index("Cs")
    for index, category in enumerate(CATEGORIES):
        # Of the two control characters around each probe only Cc itself would see anything.
        if category in ("Cn", "Cs", "Cc"):
            continue
        for c in matched_by(pre_tokenizers.Split(Regex(rf"\p{{{category}}}"), "isolated")):
            assert value[c] == 0, hex(c)
            value[c] = index
    for c in CODE_POINTS:
        if unicodedata.category(chr(c)) == "Cc":
            value[c] = CATEGORIES.index("Cc")
    for flag, members in (
        (SPACE, matched_by(pre_tokenizers.Split(Regex(r"\s"), "isolated"))),
        (NUMERIC, matched_by(pre_tokenizers.Digits(individual_digits=True))),
        (WORD, word_characters()),
    ):
        for c in members:
            value[c] |= flag

    runs = [(c, v) for c, v in enumerate(value) if c == 0 or v != value[c - 1]]
    print(f"// Written by tests/parity/make_unicode_table.py with tokenizers {tokenizers.__version__}; do not edit.")
    print("// Runs of code points with equal properties: first code point << 8 | flags | category.")
    for i in range(0, len(runs), 10):
        print(" ".join(f"0x{c << 8 | v:X}," for c, v in runs[i : i + 10]))
    print(f"{len(runs)} runs", file=sys.stderr)


if __name__ == "__main__":
    main()
