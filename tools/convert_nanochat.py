#!/usr/bin/env python3
"""Between nanochat's checkpoints (as of 2025: before value embeddings) and the Hugging Face folders that qtrain reads.

    convert_nanochat.py to-hf base_checkpoints/d20 DIR [--step N] [--tokenizer tokenizer/tokenizer.pkl]
    convert_nanochat.py to-nanochat DIR base_checkpoints/d20 [--step N]      DIR: of `qtrain export`
    convert_nanochat.py --self-check

to-hf reads model_{step}.pt and meta_{step}.json (the newest, unless --step names one) and keeps the type of each
tensor; `qtrain sample --init-from DIR` runs it, `qtrain export --init-from DIR --to ELSEWHERE` completes it for
transformers. Weights are read with weights_only=True. tokenizer.pkl is a pickle of a tiktoken Encoding: only that
one class is let through, as a plain record, and nothing in the file is executed.
"""

import argparse
import base64
import json
import pathlib
import pickle
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

SHAPE = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
PARTS = {"attn.c_q": "self_attn.q_proj", "attn.c_k": "self_attn.k_proj", "attn.c_v": "self_attn.v_proj",
         "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPECIALS = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
            "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"]  # fmt: skip


def fail(text):
    raise SystemExit(f"error: {text}")


def names(n_layer):
    """nanochat's name -> Hugging Face's, in nanochat's order."""
    table = {"transformer.wte.weight": "model.embed_tokens.weight"}
    for i in range(n_layer):
        for ours, theirs in PARTS.items():
            table[f"transformer.h.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    return table | {"lm_head.weight": "lm_head.weight"}


def config_of(c):
    return {
        "architectures": ["NanoChatForCausalLM"], "model_type": "nanochat", "vocab_size": c["vocab_size"],
        "hidden_size": c["n_embd"], "intermediate_size": 4 * c["n_embd"], "num_hidden_layers": c["n_layer"],
        "num_attention_heads": c["n_head"], "num_key_value_heads": c["n_kv_head"],
        "max_position_embeddings": c["sequence_len"], "hidden_act": "relu2", "rms_norm_eps": 2.0**-23,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "final_logit_softcapping": 15.0,
        "attention_bias": False, "tie_word_embeddings": False,
    }  # fmt: skip


def check_names(found, wanted, origin):
    for what, which in (("missing", wanted - found), ("unknown", found - wanted)):
        if which:
            fail(f"{origin}: {what} tensors: {', '.join(sorted(which)[:5])}{' ...' * (len(which) > 5)}")


class Encoding:
    """What tiktoken's Encoding is unpickled into: its state and nothing else."""

    def __setstate__(self, state):
        self.state = state


class EncodingOnly(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("tiktoken.core", "Encoding"):
            return Encoding
        if (module, name) == ("copyreg", "_reconstructor"):
            return lambda cls, base, state: cls()
        if (module, name) == ("builtins", "object"):
            return object
        fail(f"the tokenizer's pickle asks for {module}.{name}, which no tokenizer of nanochat's does")


def convert_tokenizer(file, to):
    with open(file, "rb") as stream:
        encoding = EncodingOnly(stream).load()
    state = getattr(encoding, "state", None)
    if not isinstance(state, dict):
        fail(f"{file}: not a pickled tiktoken Encoding")
    if state["pat_str"] != PATTERN:
        fail(f"{file}: the split pattern is not that of 2025: {state['pat_str']}")
    ranks = sorted(state["mergeable_ranks"].items(), key=lambda item: item[1])
    specials = sorted(state["special_tokens"], key=state["special_tokens"].get)
    ids = [rank for _, rank in ranks] + [state["special_tokens"][s] for s in specials]
    if ids != list(range(len(ids))) or specials != SPECIALS:
        fail(f"{file}: the ids do not run from 0 to the nine special tokens")
    header = {"kind": "bpe", "pattern": "nanochat", "specials": specials, "tokens": len(ranks)}
    lines = ["qtrain-tokenizer 1", json.dumps(header, separators=(",", ":"))]
    lines += [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks]
    to.write_text("\n".join(lines) + "\n")


def to_hf(folder, to, step=None, tokenizer=None):
    models = sorted(folder.glob("model_*.pt")) if step is None else [folder / f"model_{step:06d}.pt"]
    if not models or not models[-1].exists():
        fail(f"{folder}: no model_*.pt")
    model = models[-1]
    meta = json.loads((folder / model.name.replace("model_", "meta_")).with_suffix(".json").read_text())
    missing = [k for k in SHAPE if k not in meta["model_config"]]
    if missing:
        fail(f"{folder}: the meta file's model_config lacks {', '.join(missing)}")
    state = torch.load(model, map_location="cpu", weights_only=True, mmap=True)
    state = {n.removeprefix("_orig_mod."): t for n, t in state.items()}
    table = names(meta["model_config"]["n_layer"])
    check_names(state.keys(), table.keys(), model)
    to.mkdir(parents=True, exist_ok=True)
    save_file({table[n]: state[n].contiguous() for n in table}, to / "model.safetensors", {"format": "pt"})
    (to / "config.json").write_text(json.dumps(config_of(meta["model_config"]), indent=1) + "\n")
    if tokenizer:
        convert_tokenizer(tokenizer, to / "tokenizer.txt")


def to_nanochat(folder, to, step):
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "nanochat":
        fail(f"{folder}/config.json: model_type is {config.get('model_type')}, not nanochat")
    state = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        state |= load_file(shard)
    table = names(config["num_hidden_layers"])
    check_names(state.keys(), set(table.values()), folder)
    shape = dict(zip(SHAPE, (config[k] for k in ("max_position_embeddings", "vocab_size", "num_hidden_layers",
                 "num_attention_heads", "num_key_value_heads", "hidden_size"))))  # fmt: skip
    to.mkdir(parents=True, exist_ok=True)
    torch.save({ours: state[theirs] for ours, theirs in table.items()}, to / f"model_{step:06d}.pt")
    (to / f"meta_{step:06d}.json").write_text(json.dumps({"step": step, "model_config": shape}, indent=2))


def self_check():
    torch.manual_seed(3)
    c = dict(zip(SHAPE, (32, 300, 2, 4, 2, 24)))
    rows = {"transformer.wte": c["vocab_size"], "lm_head": c["vocab_size"], "c_fc": 96, "c_k": 12, "c_v": 12}
    state = {}
    for name in names(c["n_layer"]):
        part = name.removesuffix(".weight")
        n = next((r for key, r in rows.items() if part.endswith(key)), 24)
        state[name] = torch.randn(n, 96 if part.endswith("mlp.c_proj") else 24)
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        (work / "in").mkdir()
        torch.save({f"_orig_mod.{n}": t for n, t in state.items()}, work / "in/model_000007.pt")
        (work / "in/meta_000007.json").write_text(json.dumps({"step": 7, "model_config": c}))
        to_hf(work / "in", work / "hf")
        to_nanochat(work / "hf", work / "out", 7)
        back = torch.load(work / "out/model_000007.pt", weights_only=True)
        assert list(back) == list(state), "other names, or another order"
        assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in state.items())
        assert json.loads((work / "out/meta_000007.json").read_text())["model_config"] == c
        evil = work / "evil.pkl"
        evil.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        try:
            convert_tokenizer(evil, work / "tokenizer.txt")
        except SystemExit as e:
            assert "os.system" in str(e) or "posix.system" in str(e), e
        else:
            raise AssertionError("a pickle that calls a program was let through")
        try:
            import tiktoken
        except ImportError:
            print("tiktoken is not there: its pickle was not tried")
        else:
            ranks = {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257}
            special = {s: 258 + i for i, s in enumerate(SPECIALS)}
            encoding = tiktoken.Encoding("rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
            (work / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
            convert_tokenizer(work / "tokenizer.pkl", work / "tokenizer.txt")
            lines = (work / "tokenizer.txt").read_text().splitlines()
            assert lines[-1] == "dGhl 257" and json.loads(lines[1])["tokens"] == 258
    print("there and back: the same bits")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--self-check", action="store_true")
    modes = parser.add_subparsers(dest="mode")
    mode = modes.add_parser("to-hf", help="nanochat's checkpoint -> folder")
    mode.add_argument("folder", type=pathlib.Path), mode.add_argument("to", type=pathlib.Path)
    mode.add_argument("--step", type=int), mode.add_argument("--tokenizer", type=pathlib.Path)
    mode = modes.add_parser("to-nanochat", help="folder -> nanochat's checkpoint")
    mode.add_argument("folder", type=pathlib.Path), mode.add_argument("to", type=pathlib.Path)
    mode.add_argument("--step", type=int, default=0)
    args = parser.parse_args()
    if args.self_check:
        self_check()
    elif args.mode == "to-hf":
        to_hf(args.folder, args.to, args.step, args.tokenizer)
    elif args.mode == "to-nanochat":
        to_nanochat(args.folder, args.to, args.step)
    else:
        parser.print_help()
        sys.exit(2)


if __name__ == "__main__":
    main()
