"""Makes the tokenizer goldens: what tiktoken and Hugging Face's tokenizers say about GPT-2's encoding.

tests/golden/gpt2_small/{vocab.json,merges.txt}  a vocabulary of about a thousand tokens, learnt and saved in
                                                 GPT-2's format by `tokenizers`
tests/golden/gpt2_tokenizer.safetensors          the recipe for the texts, and digests of their ids: for that
                                                 vocabulary, and for GPT-2's own where --gpt2 DIR holds it

A file is only written when the two libraries agree on every text. The texts are not stored: they follow from
`fragments`, `ranges` and `seed` by the few lines of TextMaker, which tests/tokenizer/test_gpt2_tokenizer.cpp repeats.
GPT-2's own two files are not part of this repository; the digests for them stay in the golden file, and
--check without --gpt2 leaves them out.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys
import unicodedata

import numpy as np
import tiktoken
import tokenizers

import golden_io

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
SEED = 20190214
STRINGS = 10_000
MIXED_BYTES = 1_200_000  # more than one window of the encoder
BLOCK = 4096  # ids per digest of a long text
SMALL_VOCAB = 1000
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SHARED = ["tinyshakespeare.txt", "wikitext2_valid.txt", "c4_sample.jsonl"]
SHARED_BYTES = 350_000  # of each: about a megabyte of prose, articles and web pages in all

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also did many off before must well back through years much where your way down should because long each
just state people those too how little good very world still see own work men day get here between both life being under
never same another know while last might us great old year come since against go came right used take three himself few
house use during without again place around however home small found thought went say part once general high upon school
every don't didn't it's that's I'll we've they're he'd I'm you're won't can't o'clock rock'n'roll
tokenizer checkpoint gradient momentum embedding attention quantised paged resident window scratch
Straße naïve café coöperate Ångström œuvre señor piñata façade Übergröße
привет мир данные обучение Москва не что это как его
καλημέρα κόσμε λόγος και το είναι
你好 世界 我们 训练 语言 模型 的 是 在 日本語 テスト ひらがな カタカナ 한국어 안녕하세요 세계
שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก
""".split()

PIECES = [
    " ", " ", " ", " ", "  ", "   ", "        ", "\n", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", " \n", "\n ",
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'", "''", "\u2019s", ".", ",", ", ", ". ", "...", "!",
    "?", "?!", ";", ":", "-", "--", "\u2014", "(", ")", "[]", "{}", "{\n", "}\n", "\"", "\u201c", "\u201d", "#", "@",
    "&", "*", "/", "//", "\\", "|", "_", "=", "==", "!=", "+=", "->", "=>", "<", ">", "</", "/>", "<|endoftext|>",
    "<|bos|>", "0", "1", "2", "42", "007", "1999", "2024", "3.14159", "1,000,000", "0x1F", "1e-5", "10%", "$5",
    "\u00a0", "\u3000", "\u2003", "\u200b", "\u2028", "\u0085", "\u180e", "\ufeff", "\u0301", "\u0308", "e\u0301",
    "\u0661\u0662", "\u00bd", "\u00b2", "\u2167", "\u2460", "\u4e00\u4e8c", "\U0001f600", "\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\u00ad", "\u0000", "\u0007",
    "for (int i = 0; i < n; ++i) {\n", "    return x[i] * 2;\n", "def f(self, *args):\n", "\tif (!ok) goto out;\n",
    "#include <vector>\n", "https://example.org/a?b=c&d=e#f", "name@example.org", "a = b + c * (d - e) / f;\n",
    "{\"key\": [1, 2.5, null, true]}", "SELECT * FROM t WHERE id = 7;\n", "x\u00b2 + y\u00b2 = z\u00b2",
    "C:\\Users\\me\\file.txt", "10:30 a.m.", "U.S.A.", "e.g.", "Mr. Smith's", "snake_case_name", "camelCaseName",
    "ALL CAPS", "1st", "2nd", "x86_64", "UTF-8", "I/O", "C++20", "50/50", "AAAAAAAA", "hahahaha", "zzzzz",
]  # fmt: skip

# Scripts, symbols and private use; a range is cut into runs without code points that Unicode 14 leaves free, since
# what a later version assigns would be a letter to one library and none to the other.
BLOCKS = [
    (0x00, 0x7F), (0x20, 0x7E), (0x80, 0xFF), (0x100, 0x24F), (0x250, 0x36F), (0x370, 0x3FF), (0x400, 0x52F),
    (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x900, 0x97F), (0xE01, 0xE5B), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x1680, 0x169C), (0x1E00, 0x1FFE), (0x2000, 0x206F), (0x2070, 0x209C), (0x20A0, 0x20BF),
    (0x2100, 0x218B), (0x2190, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x27BF), (0x3000, 0x303F), (0x3041, 0x30FF),
    (0x4E00, 0x9FFC), (0xA000, 0xA48C), (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0xFB00, 0xFB4F), (0xFE00, 0xFE0F),
    (0xFF01, 0xFFEE), (0x10000, 0x100FA), (0x10400, 0x1049D), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F),
    (0x1F680, 0x1F6C5), (0x20000, 0x2A6DD), (0xE0100, 0xE01EF), (0x10FF00, 0x10FFFD),
]  # fmt: skip


def assigned_ranges():
    ranges = []
    for low, high in BLOCKS:
        begin = None
        for c in range(low, high + 2):
            free = c > high or unicodedata.category(chr(c)) == "Cn"
            if not free and begin is None:
                begin = c
            if free and begin is not None:
                ranges.append((begin, c - 1))
                begin = None
    return ranges


class TextMaker:
    """SplitMix64 draws; a text is a row of fragments, code points of one range, and repeats."""

    def __init__(self, seed, fragments, ranges):
        self.state, self.fragments, self.ranges = seed, fragments, ranges

    def draw(self, below):
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return (z ^ (z >> 31)) % below

    def part(self, fragment_share):
        kind = self.draw(100)
        if kind < fragment_share:
            return self.fragments[self.draw(len(self.fragments))]
        if kind < 97:
            low, high = self.ranges[self.draw(len(self.ranges))]
            return "".join(chr(low + self.draw(high - low + 1)) for _ in range(1 + self.draw(4)))
        return self.fragments[self.draw(len(self.fragments))] * (2 + self.draw(60))

    def string(self):
        return "".join(self.part(40) for _ in range(1 + self.draw(24)))

    def text(self, size):
        parts, length = [], 0
        while length < size:
            # Words with a space before them, as prose has it; the rest in between.
            part = self.part(96)
            if self.draw(4):
                part = " " + part
            parts.append(part)
            length += len(part.encode())
        return "".join(parts)


def digest(ids):
    """FNV-1a over the ids as little-endian int32, as int32."""
    h = 0x811C9DC5
    for byte in np.asarray(ids, "<i4").tobytes():
        h = ((h ^ byte) * 0x01000193) % 2**32
    return h - 2**32 if h >= 2**31 else h


def block_digests(ids):
    return np.array([digest(ids[i : i + BLOCK]) for i in range(0, len(ids), BLOCK)], np.int32)


def byte_symbols():
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


class Oracles:
    """The same vocabulary in both libraries."""

    def __init__(self, vocab_file, merges_file):
        vocab = json.loads(vocab_file.read_text())
        special = vocab.pop("<|endoftext|>")
        symbols = byte_symbols()
        ranks = {bytes(symbols[c] for c in token): rank for token, rank in vocab.items()}
        self.ranks = ranks
        self.tiktoken = tiktoken.Encoding(
            "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": special}
        )
        model = tokenizers.models.BPE.from_file(str(vocab_file), str(merges_file))
        self.hf = tokenizers.Tokenizer(model)
        self.hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def encode(self, text):
        ids = self.tiktoken.encode_ordinary(text)
        other = self.hf.encode(text, add_special_tokens=False).ids
        if ids != other:
            raise SystemExit(f"tiktoken and tokenizers disagree on {text[:200]!r}")
        if self.tiktoken.decode_bytes(ids) != text.encode():
            raise SystemExit(f"tiktoken does not give back {text[:200]!r}")
        return ids


def learn_small(texts, folder):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SMALL_VOCAB, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    vocab_file = folder / "vocab.json"
    vocab = json.loads(vocab_file.read_text())
    vocab["<|endoftext|>"] = len(vocab)
    vocab_file.write_text(json.dumps(dict(sorted(vocab.items(), key=lambda kv: kv[1])), ensure_ascii=False))


def tensors_for(name, oracles, strings, mixed):
    mixed_ids = oracles.encode(mixed)
    return {
        f"{name}.strings": np.array([digest(oracles.encode(s)) for s in strings], np.int32),
        f"{name}.mixed": block_digests(mixed_ids),
        f"{name}.mixed.count": np.array([len(mixed_ids)], np.int32),
        f"{name}.mixed.first": np.array(mixed_ids[:64], np.int32),
    }


def make(gpt2, shared, small_folder):
    ranges = assigned_ranges()
    fragments = WORDS + PIECES
    joined = "\n".join(json.dumps(f) for f in fragments)
    maker = TextMaker(SEED, fragments, ranges)
    strings = [maker.string() for _ in range(STRINGS)]
    mixed = maker.text(MIXED_BYTES)
    # Learnt from other draws than those it is asked about.
    learn_small([TextMaker(SEED + 1, fragments, ranges).text(200_000)], small_folder)
    tensors = {
        "ranges": np.array(ranges, np.int32),
        "fragments": np.frombuffer(joined.encode().ljust(-(-len(joined.encode()) // 4) * 4, b"\n"), np.int32),
        "strings.bytes": np.array([sum(len(s.encode()) for s in strings)], np.int32),
        "mixed.bytes": np.array([len(mixed.encode())], np.int32),
    }
    tensors |= tensors_for("small", Oracles(small_folder / "vocab.json", small_folder / "merges.txt"), strings, mixed)
    if gpt2:
        oracles = Oracles(gpt2 / "gpt2_vocab.json", gpt2 / "gpt2_merges.txt")
        tensors |= tensors_for("gpt2", oracles, strings, mixed)
        for file in SHARED:
            text = (shared / file).read_bytes()[:SHARED_BYTES].decode("utf-8", "ignore")
            tensors[f"gpt2.{file}"] = block_digests(oracles.encode(text))
            tensors[f"gpt2.{file}.bytes"] = np.array([len(text.encode())], np.int32)
    metadata = {
        "script": "tools/make_golden_tokenizer.py",
        "versions": {n: importlib.metadata.version(n) for n in ("tiktoken", "tokenizers")},
        "seed": str(SEED),
        "unicode": unicodedata.unidata_version,
    }
    return tensors, metadata


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt2", type=pathlib.Path, help="folder with gpt2_vocab.json, gpt2_merges.txt and the texts")
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN)
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 where they differ")
    args = parser.parse_args()
    if unicodedata.unidata_version.split(".")[0] != "14":
        sys.exit(f"the ranges are those of Unicode 14 (Python 3.11); this Python has {unicodedata.unidata_version}")
    path = args.out / "gpt2_tokenizer.safetensors"
    if args.check:
        small = pathlib.Path(__import__("tempfile").mkdtemp())
        made, stored = make(args.gpt2, args.gpt2, small), golden_io.read(path)
        if not args.gpt2:
            stored = ({k: v for k, v in stored[0].items() if not k.startswith("gpt2")}, stored[1])
        lines = golden_io.differences(made, stored, lambda name: None)
        for name in ("vocab.json", "merges.txt"):
            if (small / name).read_bytes() != (args.out / "gpt2_small" / name).read_bytes():
                lines.append(f"gpt2_small/{name} differs")
        print("\n".join(lines) or "the tokenizer goldens are as this script makes them")
        sys.exit(1 if lines else 0)
    if not args.gpt2:
        sys.exit("the golden file holds digests for GPT-2's own vocabulary: name its folder with --gpt2")
    golden_io.write(path, *make(args.gpt2, args.gpt2, args.out / "gpt2_small"))


if __name__ == "__main__":
    main()
