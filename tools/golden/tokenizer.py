"""Golden ids of CLIP's tokenizer, and the two tables our own tokenizer embeds.

Needs `transformers`, `tokenizers`, for the tables `unicodedata2`, and the published merge list `bpe_simple_vocab_16e6.txt.gz` (MIT; it ships in the
PyPI packages open_clip_torch and clip-anytorch), whose first 48,894 merges make CLIP's 49,408-entry vocabulary.

    python tools/golden/tokenizer.py bpe_simple_vocab_16e6.txt.gz            # golden ids
    python tools/golden/tokenizer.py bpe_simple_vocab_16e6.txt.gz --tables   # also the embedded tables

The character classes are measured from the `tokenizers` library itself, one code point at a time, because its regex
engine, its NFC and its lower-casing each carry a different edition of Unicode.
"""

import argparse
import gzip
import hashlib
import json
import pathlib
import random
import struct
import tempfile

import tokenizers
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
MERGES_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGE_COUNT = 49152 - 256 - 2


def byte_characters():
    """The 256 printable characters that stand for bytes, in vocabulary order, and the bytes they stand for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return printable + rest, [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def vocabulary(path):
    raw = path.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == MERGES_SHA256, "another edition of the merge list"
    lines = gzip.decompress(raw).decode("utf-8").split("\n")[1 : 1 + MERGE_COUNT]
    merges = [tuple(line.split()) for line in lines]
    characters = byte_characters()[1]
    tokens = characters + [c + "</w>" for c in characters] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    assert len(ids) == len(tokens) == 49408
    return merges, ids


def hugging_face(merges, ids):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
        return transformers.CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def code_points():
    return (c for c in range(0x110000) if not 0xD800 <= c < 0xE000)


def ranges(points):
    out = []
    for c in points:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def classes(backend):
    """Letters, numbers and white space as the pre-tokenizer's regex engine sees them."""
    letters, numbers, spaces = [], [], []
    split = backend.pre_tokenizer.pre_tokenize_str
    for c in code_points():
        pieces = len(split(chr(c) * 2))
        if pieces == 0:
            spaces.append(c)
        elif pieces == 2:
            numbers.append(c)
        elif len(split("a" + chr(c))) == 1:
            letters.append(c)
    return {"LETTERS": letters, "NUMBERS": numbers, "SPACES": spaces}


def combining_unknown(nfc):
    """Code points that Unicode reorders or composes today and this NFC leaves where they are."""
    import unicodedata2 as now  # the edition of the `unicode-normalization` crate, 18.0

    unknown = set()
    for c in code_points():
        s = chr(c)
        if now.combining(s):
            # A known mark sorts before U+0345, the only one of the last class, which itself sorts after class 1.
            test = "a" + s + "\u0334" if c == 0x345 else "a\u0345" + s
            if nfc(test) == test:
                unknown.add(c)
        parts = now.decomposition(s)
        if parts and parts[0] != "<" and nfc(s) == s and now.normalize("NFD", s) != s:
            decomposed = now.normalize("NFD", s)
            if now.normalize("NFC", decomposed) == s and nfc(decomposed) == decomposed:
                unknown.update(ord(p) for p in [s, *decomposed] if now.combining(p) == 0)
    return sorted(unknown)


def write_tables(merges, ids, tokenizer):
    assets = ROOT / "crates/convert/assets"
    assets.mkdir(parents=True, exist_ok=True)
    packed = b"".join(struct.pack("<HH", ids[a], ids[b]) for a, b in merges)
    (assets / "clip_merges.bin").write_bytes(packed)
    tables = classes(tokenizer.backend_tokenizer)
    tables["UNKNOWN_TO_NFC"] = combining_unknown(tokenizers.normalizers.NFC().normalize_str)
    docs = {
        "LETTERS": "What the tokenizer's regex engine calls `\\p{L}`, beyond ASCII.",
        "NUMBERS": "What it calls `\\p{N}`, beyond ASCII.",
        "SPACES": "What it calls `\\s`, beyond ASCII.",
        "UNKNOWN_TO_NFC": "Code points that its NFC, of an older edition of Unicode, neither reorders nor composes.",
    }
    out = [
        "//! Character classes as Hugging Face's `tokenizers` has them, as inclusive ranges in ascending order.",
        "//!",
        f"//! Measured from tokenizers {tokenizers.__version__} by `tools/golden/tokenizer.py --tables`; not edited by hand.",
        "",
    ]
    for name, points in tables.items():
        out += [f"/// {docs[name]}", "#[rustfmt::skip]", f"pub(super) const {name}: &[(u32, u32)] = &["]
        cells = [f"(0x{a:x}, 0x{b:x})," for a, b in ranges(p for p in points if p > 0x7F)]
        line = "   "
        for cell in cells:
            if len(line) + len(cell) > 116:
                out.append(line)
                line = "   "
            line += " " + cell
        out += [line, "];", ""]
    (ROOT / "crates/diffusion/src/tokenizer/classes.rs").write_text("\n".join(out[:-1]) + "\n")


PROMPTS = """
a photo of an astronaut riding a horse on mars
a house with a red roof on green hills under a sunny sky
masterpiece, best quality, 1girl, solo, (detailed eyes:1.2), [blurry], intricate details
Portrait of a woman, 85mm f/1.4, ISO 100, Kodak Portra 400, film grain, 8k uhd, HDR10+
lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality
trending on ArtStation by Greg Rutkowski & Alphonse Mucha
it's the dog's bowl; they're sure we've won, I'm here, you'll see, he'd go, don't can't won't
IT'S THE DOG'S BOWL; THEY'RE SURE WE'VE WON, I'M HERE, YOU'LL SEE, HE'D GO, DON'T
rock'n'roll 'tis 'twas '90s o'clock ''quoted'' 's 't 're
“curly” ‘quotes’ don’t it’s — dashes – and … ellipsis
1234567890 3.14159 1,000,000 2024-05-06 12:34:56 50% $9.99 #1
x²+y³=z½ ¼ ¾ Ⅷ ⅷ ① ② ٣٤٥ १२३ 一二三
snake_case kebab-case CamelCase PascalCase SCREAMING_SNAKE path/to/file.txt
https://example.com/a?b=c&d=e#f user@example.com @handle #hashtag
!!!??? ... ,,, ;;; ::: --- ___ *** ((( ))) [[[ ]]] {{{ }}} <<< >>> ||| \\\\\\ /// ~~~ ``` ^^^ &&& %%% $$$ ### @@@
:-) ;-) :D XD <3 ^_^ ¯\\_(ツ)_/¯ (╯°□°)╯︵ ┻━┻
café résumé naïve façade Zürich São Paulo Ångström Łódź Đà Nẵng
cafe\u0301 re\u0301sume\u0301 nai\u0308ve A\u030angstro\u0308m e\u0323\u0302 e\u0302\u0323
ﬁ ﬂ ﬀ ﬃ ſ ß ẞ Ǆ ǅ ǆ İ I ı i̇ Σ ΑΣ Σας
Привет мир, как дела? ЁЖИК й и\u0306
Γειά σου Κόσμε ΟΔΥΣΣΕΥΣ
你好世界 這是一個測試 日本語のテキスト カタカナ ﾊﾝｶｸ ひらがな
안녕하세요 세계 \u1112\u1161\u11ab\u1100\u1173\u11af
שלום עולם שָׁלוֹם
مرحبا بالعالم السَّلَامُ عَلَيْكُمْ ۱۲۳
नमस्ते दुनिया क्षत्रिय
สวัสดีชาวโลก ภาษาไทย
🎨🖼️ a painting 👩‍🎨 of 👨‍👩‍👧‍👦 🏳️‍🌈 🇺🇸🇯🇵 👍🏽 ❤️ ☺ ☺️ 1️⃣
😀😃😄😁😆😅😂🤣 🤖 🦊 🪐 🫠 🫨
Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞
<lora:foo:0.8> __wildcard__ {a|b|c} [from:to:0.5] (a:1.3) BREAK AND
<|startoftext|> hello <|endoftext|> world
<|STARTOFTEXT|> hello<|ENDOFTEXT|>world !!<|EndOfText|>!!
<|endoftext|><|endoftext|> <|endoftext |> <|endoftext| <endoftext>
'<|endoftext|>' a<|endoftext|>b e<|endoftext|>\u0301
supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa hahahahahahahaha zzzzzzzzz
the the the the , , , , . . . .
𝓯𝓪𝓷𝓬𝔂 𝕥𝕖𝕩𝕥 ＦＵＬＬＷＩＤＴＨ ｔｅｘｔ ⓒⓘⓡⓒⓛⓔⓓ
Ꭰ Ꮳ ꭰ ᏸ Ა ა Ⴀ ⴀ Ω Ω K Å
""".strip("\n").split("\n")

HOSTILE = [
    "", " ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028a\u2029b", "\u0085",
    "a\tb\nc\r\nd\u000be\u000cf", "\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f",
    "\x1c\x1d\x1e\x1f", "\ufeffbom", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\ufffd", "\u202eright to left\u202c",
    "\u200f\u200e\u061c", "a\u00adb", "\u0301", "\u0301a", "a\u0301\u0323", "a\u0323\u0301", "\u0345\u0301",
    "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0958", "\u2126", "\u212b", "\ufb1d", "\U0001d15e", "\u0344",
    "\U00011935\U00011930", "\U00011938", "a\u0898\u0301", "a\u0328\u0898\u0301", "\U0001e130\u0301", "\U000105d2\u0307", "\U00016d67\U00016d67", "\U00011382\U000113c9",
    "'", "''", "'s", "'S", "' s", "s's", "a's's", "'ll'll", "'l", "'r", "'v", "'ve've", "1's", "!'s", "''s", "é's",
    "<|", "|>", "<|endoftext", "endoftext|>", "<|startoftext|>", "<|endoftext|>", "<|endoftext|>" * 5, "<||>",
    "<<|endoftext|>>", "<|Endoftext|>!", "!<|Endoftext|>", "<|endoftext|>'s", "<|startoftext|><|Startoftext|>",
    "0", "00", "0a0", "a0a", "٠", "Ⅳ", "½", "²", "\U0001d7d8\U0001d7d9", "\u2460", "\u3007",
    "_", "__", "a_b", "-", "--", ".", "..", "...", "....", ",", ",,", ", ,", "(", "()", "(()", "\\", "\\\\", "\\(",
    "\u4e00", "\u4e00\u4e01", "\U00020000", "\U000323af", "\u3400a", "\u30fc", "\u3005",
    "\u1c89", "\ua7cb", "\ua7ce", "\ua7dc", "\U00010d50", "\U00016ea0", "\U000105c9", "\U0001e900", "\u13a0", "\u1c90",
    "I\u0307", "\u0130", "\u03a3", "a\u03a3", "\u1e9e", "\u01c5", "\u2160", "\u24b6", "\uff21", "\u10a0", "\u0149",
    "\u1f88", "\u1fbc", "\u00aa\u00ba", "\u02b0", "\u2071", "\u16ee", "\u3021", "\u2180", "\ua6e6",
    "\u0e01\u0e33", "\u0eb3", "\u17b4", "\u180e", "\u2060", "\u2064", "\u206a", "\ufff9", "\U000e0001", "\U000e0061",
    "\U0001f1e6", "\U0001f1e6\U0001f1e7\U0001f1e8", "\U0001f468\u200d\U0001f469", "\u200d", "\ufe0f", "\U0001f3fb",
    "a" * 300, "ab" * 200, "1" * 100, "!" * 200, "a " * 100, "é" * 100, "\u0301" * 50, "😀" * 60, " " * 500 + "x",
    "x" + "\n" * 300 + "y", "(" * 120 + "a" + ")" * 120, "日" * 90, "'s" * 40, "a'" * 40, "qzxj" * 60,
    "the quick brown fox jumps over the lazy dog " * 20,
]


def generated(count):
    """Random strings from pools that meet at every boundary the tokenizer knows."""
    rng = random.Random(20)
    pools = [
        "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " \t\n\u00a0", "'\"’", ".,!?;:-_()[]{}<>|\\/",
        "àéîõüçñßøåœæ", "АБВГабвгΑΒΓαβγ", "日本語中文한국어", "אבגדمرحبا", "\u0300\u0301\u0323\u0327\u0345\u05b0", "😀🎨👩\u200d\ufe0f🏽",
        "²³½¼Ⅷ①٣१", "\x00\x07\x1c\x7f\x85\xad\u200b\ufeff",
    ]
    words = "it's they're cat dog, red-roof sky. <|endoftext|> 's 'll HOUSE mountain AND BREAK photo (of 4k masterpiece,".split()
    for i in range(count):
        if i % 3 == 0:
            yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 40)))
        elif i % 3 == 1:
            yield rng.choice([" ", "", ", "]).join(rng.choice(words) for _ in range(rng.randint(1, 30)))
        else:
            lows = (0x20, 0x80, 0x300, 0x900, 0x2000, 0xAC00, 0x10000)
            points = (rng.choice(lows) + rng.randint(0, 0x3FF) for _ in range(rng.randint(1, 25)))
            yield "".join(chr(p) for p in points)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("merges", type=pathlib.Path)
    arguments.add_argument("--tables", action="store_true")
    arguments = arguments.parse_args()
    merges, ids = vocabulary(arguments.merges)
    tokenizer = hugging_face(merges, ids)
    if arguments.tables:
        write_tables(merges, ids, tokenizer)
    texts = list(dict.fromkeys([*PROMPTS, *HOSTILE, *generated(240)]))
    cases = [{"text": t, "ids": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in texts]
    head = {
        "script": "tools/golden/tokenizer.py",
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "tolerance": "exact",
    }
    lines = [json.dumps(head)] + [json.dumps(c, separators=(",", ":")) for c in cases]
    folder = ROOT / "testdata/golden/tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip.jsonl").write_text("\n".join(lines) + "\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
