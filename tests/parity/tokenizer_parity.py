"""Compares `distill tokenize` with Hugging Face tokenizers: token ids of random and adversarial strings, decoding, invalid
UTF-8, and the tokenizer.json that distill writes.

    DISTILL=build/release/bin/distill python tests/parity/tokenizer_parity.py [--per-family 100000] [--families NAME...]

The families' pipelines are those of make_tokenizers.py; "smollm2-gguf" is the real SmolLM2 tokenizer out of its GGUF file.
"""

import argparse
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
import time
import unicodedata

import tokenizers
from tokenizers import Tokenizer

import make_tokenizers

SEED = 7
DISTILL = os.environ.get("DISTILL", "distill")
DEPS = pathlib.Path(os.environ.get("DISTILL_DEPS", pathlib.Path.home() / ".cache/distill"))
SMOLLM2 = DEPS / "SmolLM2-135M-Instruct.Q4_1.gguf"

# Random strings for the families that matter; the others, which share their parts, get fewer.
MANY = 60_000
FEW = 10_000
FAMILIES_WITH_MANY = ("gpt2", "llama3", "qwen2", "deepseek-v3", "smollm2-gguf")

LANGUAGES = """The quick brown fox can't jump over the lazy dog's fence; they've tried, I'm sure we'll see, you'd know.
Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis. L'été où j'ai été là-bas.
Falsches Üben von Xylophonmusik quält jeden größeren Zwerg, daß es schmerzt.
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío, ¿añoraba a su querido cachorro?
Ma la volpe, col suo balzo, ha raggiunto il quieto Fido. Perché no?
À noite, vovô Kowalsky vê o ímã cair no pé do pinguim queixoso.
Pchnąć w tę łódź jeża lub ośm skrzyń fig. Zażółć gęślą jaźń.
Příliš žluťoučký kůň úpěl ďábelské ódy. Nechť již hříšné saxofony.
Árvíztűrő tükörfúrógép. Jó foxim és don Quijote húszwattos lámpánál.
Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ıssız.
Съешь же ещё этих мягких французских булок, да выпей чаю. Объём.
Жебракують філософи при ґанку церкви в Гадячі, ще й шатро їхнє п'яне знаємо.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Οὐχὶ ταὐτὰ παρίσταταί μοι γιγνώσκειν.
דג סקרן שט בים מאוכזב ולפתע מצא לו חברה. שָׁלוֹם עֲלֵיכֶם
صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت — يَحظى الضَجيعُ بِها نَجلاءَ مِعطارِ ٠١٢٣٤٥٦٧٨٩
ژاله و پرنیان در باغچه گل‌های سرخ می‌کارند. ۱۲۳۴
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार भगवान श्रीराम १२३
বিষণ্ণ ঔদাসীন্যে ঊষাবৌদি বাংলাভাষায় প্রচলিত ঈশপের নিখুঁত গল্পটির
யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓
Do bạch kim rất quý nên sẽ dùng để lắp vô xương. Tiếng Việt có dấu.
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。「你好，世界！」今天是2024年6月7日。
我能吞下玻璃而不伤身体。𠀀𠮷野家，龘靐齉爩。
いろはにほへと ちりぬるを わかよたれそ つねならむ。カタカナ、ﾊﾝｶｸ。
다람쥐 헌 쳇바퀴에 타고파. 안녕하세요, 세계! ᄒᆞᆫ글
ჩემო კარგო ქვეყანავ, რაზედ მოგიწყენია. ՀԱՅԵՐԵՆ լեզու
ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ ⠓⠑⠇⠇⠕ ꙮ ﷽ ሀሁሂ ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ ကမ္ဘာ ភាសាខ្មែរ සිංහල ພາສາລາວ བོད་སྐད་""".splitlines()
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇯🇵", "1️⃣", "☺️", "❤️‍🔥", "🧑🏿‍🚀", "©", "™", "🫠", "🪿", "\u200d", "\ufe0f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
SPACES = [*"         \t\t\n\n\r", "\r\n", "\n\n", *map(chr, (0xB, 0xC, 0x1C, 0x1F, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x2003, 0x200A,
          0x200B, 0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF))]  # fmt: skip
ENDINGS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'rE", "'ve", "'m", "'ll", "'LL", "'d", "'ſ", "'", "''", "’s", "'x", "'l", "'R", "'ß"]
NUMBERS = "0123456789٠٣۷९๕²³¼½ⅫⅷⅣ①⑳㉛𝟘𝟡৪᧑〇零〡𐄇𒐀🯰"
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»‹›„“”‘’…–—¡¿§¶†‡•€£¥¢°±×÷√∞≠≤≥←→↔∀∃∑∏∫¬¦¨´¸^`˜‿⁀＿［］（）"
CODE = """def f(self, x: int = 0x1F) -> list[str]:\n    return [f"{x!r:>10}" for _ in range(10**3)]  # TODO\n
for (auto&& [k, v] : map) { std::cout << k << "\\t" << v->get()[i++] << '\\n'; }\n
SELECT a.id, COUNT(*) FROM "t" AS a WHERE a.x >= 3.14e-10 AND b != 'it''s';\n
<div class="a b" id='x'>&nbsp;<br/></div>\n\n\n#include <stdio.h>\r\n\tint main(void){return 0;}\r\n
let π = 3.14159; const α_β = (x) => x?.y ?? `${x}`;\n        if not a == b:\n            pass\n
{"key": [1, 2.5, null, true], "nested": {"a": "\\u00e9"}}\n$ ls -la | grep -E '^d.*[0-9]+$' && cd ../..\n""".splitlines(True)


def random_character(rng):
    kind = rng.random()
    if kind < 0.3:
        return chr(rng.randrange(0x20, 0x7F))
    if kind < 0.5:
        return chr(rng.randrange(0x80, 0x800))
    if kind < 0.8:
        return chr(rng.choice((rng.randrange(0x800, 0xD800), rng.randrange(0xE000, 0x10000))))
    if kind < 0.95:
        return chr(rng.choice((rng.randrange(0x10000, 0x12000), rng.randrange(0x16000, 0x17000), rng.randrange(0x1D000, 0x20000))))
    return chr(rng.randrange(0x10000, 0x110000))


def marks():
    """Characters that normalisation moves or combines, those of later Unicode versions among them."""
    return [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and (unicodedata.combining(chr(c)) or unicodedata.decomposition(chr(c)))] + [
        chr(c) for c in (0x11F41, 0x11F42, 0x1E08F, 0x10EFD, 0x10EFE, 0x10EFF, 0x1E4EC, 0x1E4EF, 0x16D67, 0x113C2, 0x113C5, 0x113C9, 0x105C9, 0x10D69)
    ]


def strings(rng, count, specials):
    """Yields `count` strings: each way of being difficult alone and mixed with the others."""
    words = [w for line in LANGUAGES for w in line.split(" ")]
    combining = marks()

    def part():
        kind = rng.randrange(15)
        if kind == 0:
            return "".join(random_character(rng) for _ in range(rng.randint(1, 12)))
        if kind == 1:
            return rng.choice(LANGUAGES)[rng.randrange(30) :][: rng.randint(1, 60)]
        if kind == 2:
            return "".join(rng.choice(EMOJI) for _ in range(rng.randint(1, 4)))
        if kind == 3:
            return "".join(rng.choice(SPACES) for _ in range(rng.randint(1, 8)))
        if kind == 4:
            return rng.choice(" \t\n\u3000") * rng.choice((1, 2, 3, 7, 40))
        if kind == 5:
            return rng.choice(words) + rng.choice(ENDINGS) + rng.choice(("", " ", "a", "S"))
        if kind == 6:
            return "".join(rng.choice(NUMBERS if rng.random() < 0.3 else NUMBERS[:10]) for _ in range(rng.randint(1, 14)))
        if kind == 7:
            return "".join(rng.choice(SIGNS) for _ in range(rng.randint(1, 6)))
        if kind == 8:
            return rng.choice(CODE)
        if kind == 9:
            return rng.choice("aeiouAEIOU가각ᄀक") + "".join(rng.choice(combining) for _ in range(rng.randint(1, 5)))
        if kind == 10:
            return rng.choice(specials)[rng.choice((0, 0, 0, 1)) :] if specials else "<|"
        if kind == 11:
            return f"{rng.randrange(10 ** rng.randint(1, 12)):,}" + rng.choice(("", "%", "€", ".5", "e-7"))
        return " " * rng.randint(0, 2) + rng.choice(words)

    for i in range(count):
        yield "".join(part() for _ in range(rng.choice((1, 1, 2, 3, 5, 8))))
    yield from ("", "a" * 5000, " " * 5000, "'" * 300, "\n" * 1000 + "x", "é" * 1000, "字" * 3000, "1" * 2000, "ab" * 3000, "\x00")


def sweep(step=24):
    """Every code point there is, between a letter, a space and a digit in turn."""
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    separators = itertools.cycle(("a", " ", "1", "\n", "'", ".", ""))
    for i in range(0, len(points), step):
        separator = next(separators)
        yield separator.join(map(chr, points[i : i + step]))


def run(model, lines, *options):
    """What distill answers to `lines` (bytes), one JSON value each."""
    process = subprocess.run([DISTILL, "tokenize", "--model", str(model), *options], input=b"\n".join(lines) + b"\n", stdout=subprocess.PIPE, check=False)
    if process.returncode != 0:
        sys.exit(f"distill tokenize --model {model} failed")
    return [json.loads(line) for line in process.stdout.splitlines()]


def encode_with_peer(tokenizer, texts, **options):
    return [e.ids for i in range(0, len(texts), 10_000) for e in tokenizer.encode_batch_fast(texts[i : i + 10_000], **options)]


def first_difference(texts, ours, theirs):
    if len(ours) != len(theirs):
        return f"{len(ours)} answers to {len(theirs)} questions"
    for text, a, b in zip(texts, ours, theirs):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            return f"{text!r:.300}\n    distill  {a[max(0, at - 2) : at + 8]}\n    theirs   {b[max(0, at - 2) : at + 8]} (from token {max(0, at - 2)})"
    return None


class Report:
    failures = 0

    def add(self, family, what, texts, ours, theirs):
        difference = first_difference(texts, ours, theirs)
        wrong = sum(a != b for a, b in zip(ours, theirs))
        print(f"{family:16} {what:34} {len(texts):8} compared, {wrong} different", flush=True)
        if difference:
            self.failures += 1
            print("  first:", difference, flush=True)


def smollm2_peer():
    """SmolLM2's tokenizer.json, put together from the GGUF's lists and the family's published pipeline."""
    import gguf

    fields = gguf.GGUFReader(SMOLLM2).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    _, pre_tokenizer, _, _, _ = make_tokenizers.FAMILIES["smollm"]
    tokenizer = Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()])
    )
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def compare(report, family, model, peer, count, rng, sweeps):
    specials = [t.content for t in peer.get_added_tokens_decoder().values()]
    texts = [*strings(rng, count, specials), *sweeps]
    lines = [json.dumps(t, ensure_ascii=False).encode() for t in texts]
    ids = run(model, lines)
    report.add(family, "ids", texts, ids, encode_with_peer(peer, texts))

    some = texts[: count // 10]
    report.add(family, "ids without special tokens", some, run(model, lines[: len(some)], "--no-special-tokens"), encode_with_peer(peer, some, add_special_tokens=False))

    size = peer.get_vocab_size()
    samples = ids[: count // 20] + [[rng.randrange(size) for _ in range(rng.randint(0, 20))] for _ in range(count // 20)]
    lines = [json.dumps(s).encode() for s in samples]
    report.add(family, "decoded text", samples, run(model, lines, "--decode"), peer.decode_batch(samples, skip_special_tokens=False))
    report.add(family, "decoded, special tokens skipped", samples, run(model, lines, "--decode", "--skip-special-tokens"), peer.decode_batch(samples, skip_special_tokens=True))

    # Random bytes: stray continuations, overlong forms, surrogates, characters cut off.
    pieces = [b"a", b" ", b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80"]
    raw = [b"".join(rng.choice(pieces) if rng.random() < 0.7 else bytes([rng.choice([b for b in range(256) if b != 10])]) for _ in range(rng.randint(1, 20))) for _ in range(count // 20)]
    repaired = [line.decode("utf-8", "replace") for line in raw]
    report.add(family, "ids of invalid UTF-8", repaired, run(model, raw, "--plain"), encode_with_peer(peer, repaired))


def compare_written_json(report, family, model, folder, rng):
    """The tokenizer.json that distill writes, loaded by tokenizers, against distill reading the original."""
    dump = os.environ.get("DISTILL_DUMP_TOKENIZER")
    if not dump:
        return
    written = folder / f"{family}.written.json"
    subprocess.run([dump, model, written], check=True)
    peer = Tokenizer.from_file(str(written))
    texts = list(strings(rng, 3000, [t.content for t in peer.get_added_tokens_decoder().values()]))
    lines = [json.dumps(t, ensure_ascii=False).encode() for t in texts]
    report.add(family, "ids with the tokenizer.json written", texts, run(model, lines), encode_with_peer(peer, texts))
    report.add(family, "ids with it, both", texts, run(written, lines), encode_with_peer(peer, texts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-family", type=int, help="random strings; every code point comes on top (46,000 strings)")
    parser.add_argument("--families", nargs="*", default=[*make_tokenizers.FAMILIES, "smollm2-gguf"])
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    folder = pathlib.Path("tokenizers").absolute()
    folder.mkdir(exist_ok=True)
    wanted = [f for f in arguments.families if f != "smollm2-gguf"]
    missing = [f for f in wanted if not (folder / f"{f}.json").exists()]
    if missing:
        subprocess.run([sys.executable, make_tokenizers.__file__, folder, "--families", *missing], check=True)

    report = Report()
    sweeps = list(sweep())
    started = time.time()
    print(f"tokenizers {tokenizers.__version__}, seed {SEED}")
    for family in arguments.families:
        rng = random.Random(f"{SEED} {family}")
        if family == "smollm2-gguf":
            if not SMOLLM2.exists():
                print(f"{family:16} left out: {SMOLLM2} is not there (scripts/setup.sh --model)")
                continue
            model, peer = SMOLLM2, smollm2_peer()
        else:
            model = folder / f"{family}.json"
            peer = Tokenizer.from_file(str(model))
        count = arguments.per_family or (MANY if family in FAMILIES_WITH_MANY else FEW)
        compare(report, family, model, peer, count, rng, sweeps)
        compare_written_json(report, family, model, folder, rng)
    print(f"{report.failures} comparisons failed, {time.time() - started:.0f} s")
    sys.exit(report.failures > 0)


if __name__ == "__main__":
    main()
