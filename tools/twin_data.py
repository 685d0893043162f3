"""Tokens for torch_twin.py: llm.c shards or characters of a text, and how batches are cut from them."""

import numpy as np
import torch

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024


def read_shards(paths, vocab_size):
    """All tokens of llm.c shards (256 int32: magic, version, count, 0...; then uint16 tokens), joined."""
    parts = []
    for path in paths:
        header = np.fromfile(path, "<i4", 256)
        if len(header) < 256 or header[0] != SHARD_MAGIC or header[1] != SHARD_VERSION:
            raise SystemExit(f"{path}: not a token shard (magic {SHARD_MAGIC}, version {SHARD_VERSION})")
        tokens = np.fromfile(path, "<u2", offset=SHARD_HEADER_BYTES)
        if len(tokens) != header[2]:
            raise SystemExit(f"{path}: header says {header[2]} tokens, the file holds {len(tokens)}")
        parts.append(tokens)
    tokens = np.concatenate(parts)
    if tokens.max() >= vocab_size:
        raise SystemExit(f"token {tokens.max()} in the data, but the vocabulary has {vocab_size}")
    return tokens


def read_characters(path):
    """(train tokens, validation tokens, vocabulary size) as nanoGPT's shakespeare_char prepares a text.

    Characters in sorted order; the last tenth is for validation.
    """
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    alphabet = sorted(set(text))
    ids = {c: i for i, c in enumerate(alphabet)}
    tokens = np.array([ids[c] for c in text], np.uint16)
    cut = int(len(tokens) * 0.9)
    return tokens[:cut], tokens[cut:], len(alphabet)


def windows(tokens, starts, seq_len, device):
    """ids, targets [len(starts), seq_len]. Beyond the end of the tokens ids are 0 and targets -1."""
    rows = np.full((len(starts), seq_len + 1), -1, np.int64)
    for row, s in zip(rows, starts):
        piece = tokens[s : s + seq_len + 1]
        row[: len(piece)] = piece
    ids, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
    ids[ids < 0] = 0
    return torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device)


def check_length(tokens, seq_len):
    """How many positions a full window may start from."""
    span = len(tokens) - seq_len
    if span < 1:
        raise SystemExit(f"{len(tokens)} tokens are too few for a row of {seq_len} + 1")
    return span


def micro_batch(tokens, index, rows, seq_len, device):
    """Row r of micro-batch `index` starts at (index * rows + r) * seq_len, wrapping at the end."""
    span = check_length(tokens, seq_len)
    return windows(tokens, [(index * rows + r) * seq_len % span for r in range(rows)], seq_len, device)


def random_batch(tokens, rng, rows, seq_len, device):
    """As nanoGPT draws them: any offset, with replacement."""
    return windows(tokens, rng.randint(0, check_length(tokens, seq_len), rows), seq_len, device)


def all_windows(tokens, rows, seq_len, device):
    """Batches of windows that do not overlap: every token but the first is scored once.

    The last batch is filled up with rows of targets that are all -1.
    """
    starts = list(range(0, len(tokens) - 1, seq_len))
    starts += [len(tokens)] * (-len(starts) % rows)
    for i in range(0, len(starts), rows):
        yield windows(tokens, starts[i : i + rows], seq_len, device)
