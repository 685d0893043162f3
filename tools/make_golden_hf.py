#!/usr/bin/env python3
"""Makes tests/golden/hf_nanochat and tests/golden/hf_gpt2: small folders as transformers saves them.

    make_golden_hf.py [--out DIR]

Random weights, none of them where it would hide a mistake. hf_gpt2 is saved in shards with an index, and holds
the tokenizer.json that `tokenizers` makes of tests/golden/gpt2_small. expected.safetensors in each: i32 `ids` [T]
and f32 `logits` [T, V], computed in float64.
"""

import argparse
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"
TOKENS = 8


def configs():
    nanochat = transformers.NanoChatConfig(
        vocab_size=128, hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32)  # fmt: skip
    gpt2 = transformers.GPT2Config(
        vocab_size=1001, n_positions=32, n_embd=8, n_layer=2, n_head=2, activation_function="gelu",
        bos_token_id=1000, eos_token_id=1000)  # fmt: skip
    return {"hf_nanochat": (nanochat, "5GB"), "hf_gpt2": (gpt2, "33KB")}


def save_tokenizer(folder):
    small = GOLDEN / "gpt2_small"
    bpe = models.BPE.from_file(str(small / "vocab.json"), str(small / "merges.txt"))
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=GOLDEN)
    out = parser.parse_args().out
    torch.manual_seed(20)
    for name, (config, shard) in configs().items():
        folder = out / name
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.2)
        model.save_pretrained(folder, max_shard_size=shard)
        if name == "hf_gpt2":
            save_tokenizer(folder)
        ids = torch.tensor([(3 * i * i + 5) % config.vocab_size for i in range(TOKENS)], dtype=torch.int32)
        with torch.no_grad():
            logits = model.double()(ids[None].long()).logits[0].float()
        save_file({"ids": ids, "logits": logits.contiguous()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
