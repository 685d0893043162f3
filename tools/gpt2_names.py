"""The names of a GPT's tensors here, in nanoGPT and in Hugging Face, and the way between them.

Ours are nanoGPT's, with the fused attn.c_attn cut into c_q, c_k and c_v (rows q|k|v) and without lm_head,
which is wte. Hugging Face keeps nanoGPT's fused tensors but stores the four matrices of a block as [in, out].
"""

import torch

QKV = ("attn.c_q", "attn.c_k", "attn.c_v")
FUSED = "attn.c_attn"
TRANSPOSED_IN_HF = (FUSED, "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def part_of(name):
    """(prefix with its dot, part, kind): "transformer.h.0.", "attn.c_q", "weight"; outside of blocks the part
    is "wte", "wpe" or "ln_f"."""
    stem, kind = name.rsplit(".", 1)
    if ".h." not in name:
        return "transformer.", stem.removeprefix("transformer."), kind
    _, _, layer, part = stem.split(".", 3)
    return f"transformer.h.{layer}.", part, kind


def split_qkv(fused):
    """nanoGPT's tensors -> ours (views where the file's order allows)."""
    ours = {}
    for name, tensor in fused.items():
        prefix, part, kind = part_of(name)
        if part == FUSED:
            ours |= {f"{prefix}{p}.{kind}": t for p, t in zip(QKV, tensor.chunk(3, dim=0), strict=True)}
        else:
            ours[name] = tensor
    return ours


def fuse_qkv(ours):
    """Our tensors -> nanoGPT's, in nanoGPT's order of parameters; without lm_head."""
    fused = {}
    for name, tensor in ours.items():
        prefix, part, kind = part_of(name)
        if part not in QKV:
            fused[name] = tensor
        elif part == QKV[0]:
            fused[f"{prefix}{FUSED}.{kind}"] = torch.cat([ours[f"{prefix}{p}.{kind}"] for p in QKV])
    return {n: fused[n] for n in sorted(fused, key=nanogpt_order)}


def nanogpt_order(name):
    """Sorts by the position among a nanoGPT model's parameters, which is how its optimizer numbers them."""
    outside = ("wte", "wpe", None, "ln_f")
    inside = ("ln_1", *QKV, FUSED, "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    prefix, part, kind = part_of(name)
    if prefix == "transformer.":
        return (outside.index(part), 0, 0, kind != "weight")
    return (2, int(prefix.split(".")[2]), inside.index(part), kind != "weight")


def hf_transposed(fused):
    """nanoGPT's tensors -> Hugging Face's, or back: the same transpositions."""
    return {n: t.T if t.dim() == 2 and part_of(n)[1] in TRANSPOSED_IN_HF else t for n, t in fused.items()}
