"""nanochat (the October 2025 architecture) in plain torch operations: a second opinion beside transformers.

Everything is written out (softmax, RMSNorm, rotation, cross-entropy) and runs in the dtype of the weights, so
that float64 really is float64. It is slow and keeps every logit; torch_twin.py is the fast one. Dimension
letters: B rows, T positions, C width, H query heads, G key/value heads, D head width, V vocabulary.
"""

import dataclasses
import math

import numpy as np
import torch

MATRIX, EMBEDDING, HEAD = "matrix", "embedding", "head"
PARTS = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclasses.dataclass(frozen=True)
class Config:
    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    vocab_size: int
    seq_len: int
    softcap: float = 15.0
    norm_eps: float = 2.0**-23
    rope_base: float = 10000.0

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


def weight_shapes(cfg):
    """nanochat's state-dict names in model order -> shape [out, in]."""
    C, kv = cfg.n_embd, cfg.n_kv_head * cfg.head_dim
    shapes = {"transformer.wte.weight": (cfg.vocab_size, C)}
    for i in range(cfg.n_layer):
        h = f"transformer.h.{i}"
        shapes[f"{h}.attn.c_q.weight"] = (C, C)
        shapes[f"{h}.attn.c_k.weight"] = (kv, C)
        shapes[f"{h}.attn.c_v.weight"] = (kv, C)
        shapes[f"{h}.attn.c_proj.weight"] = (C, C)
        shapes[f"{h}.mlp.c_fc.weight"] = (4 * C, C)
        shapes[f"{h}.mlp.c_proj.weight"] = (C, 4 * C)
    shapes["lm_head.weight"] = (cfg.vocab_size, C)
    return shapes


def group_of(name):
    """Parameter group of a weight: embedding, head and block matrices have their own learning rates."""
    return {"transformer.wte.weight": EMBEDDING, "lm_head.weight": HEAD}.get(name, MATRIX)


def normal(rng, shape, std):
    """f32 array. rng is a RandomState: its streams are frozen, so the goldens can be made again later."""
    return (rng.standard_normal(shape) * std).astype(np.float32)


def nanochat_init(cfg, rng):
    """nanochat's initial weights: embedding N(0, 1), matrices N(0, s^2), head and c_proj exactly zero."""
    weights = {}
    for name, (n_out, n_in) in weight_shapes(cfg).items():
        if name == "lm_head.weight" or name.endswith("c_proj.weight"):
            weights[name] = np.zeros((n_out, n_in), np.float32)
        elif group_of(name) == EMBEDDING:
            weights[name] = normal(rng, (n_out, n_in), 1.0)
        else:
            weights[name] = normal(rng, (n_out, n_in), min(1.0, math.sqrt(n_out / n_in)) / math.sqrt(n_in))
    return weights


def rope_tables(cfg, T):
    """cos, sin [T, D/2] f32: frequencies, angles and functions all in f32, as in nanochat before its cast."""
    exponent = torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim
    angle = torch.outer(torch.arange(T, dtype=torch.float32), 1.0 / (cfg.rope_base**exponent))
    return angle.cos(), angle.sin()


def rms(x, eps):
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


def rotate(x_BHTD, cos_TD, sin_TD):
    """Rotation by minus the angle, first half of the head against second half."""
    a, b = x_BHTD.chunk(2, dim=-1)
    return torch.cat((a * cos_TD + b * sin_TD, b * cos_TD - a * sin_TD), dim=-1)


def forward(weights, ids_BT, cfg, tables=None):
    """(logits [B, T, V] after the softcap, pre-cap logits), in the dtype of the weights."""
    dtype = weights["lm_head.weight"].dtype
    B, T = ids_BT.shape
    H, G, D = cfg.n_head, cfg.n_kv_head, cfg.head_dim
    cos, sin = (t.to(dtype) for t in (tables or rope_tables(cfg, T)))
    future_TT = torch.ones(T, T, dtype=torch.bool).triu(1)

    x = rms(weights["transformer.wte.weight"][ids_BT.long()], cfg.norm_eps)
    for i in range(cfg.n_layer):
        w = {part: weights[f"transformer.h.{i}.{part}.weight"].T for part in PARTS}
        a = rms(x, cfg.norm_eps)
        q = (a @ w["attn.c_q"]).view(B, T, H, D).transpose(1, 2)
        k = (a @ w["attn.c_k"]).view(B, T, G, D).transpose(1, 2)
        v = (a @ w["attn.c_v"]).view(B, T, G, D).transpose(1, 2)
        q = rms(rotate(q, cos, sin), cfg.norm_eps)
        k = rms(rotate(k, cos, sin), cfg.norm_eps)
        # Query heads h*H/G .. (h+1)*H/G - 1 share key/value head h.
        k, v = (t.repeat_interleave(H // G, dim=1) for t in (k, v))
        score = (q @ k.transpose(2, 3) / math.sqrt(D)).masked_fill(future_TT, -math.inf)
        prob = torch.exp(score - score.amax(dim=-1, keepdim=True).detach())
        y = (prob / prob.sum(dim=-1, keepdim=True)) @ v
        x = x + y.transpose(1, 2).reshape(B, T, H * D) @ w["attn.c_proj"]
        m = rms(x, cfg.norm_eps) @ w["mlp.c_fc"]
        x = x + torch.relu(m).square() @ w["mlp.c_proj"]

    raw = rms(x, cfg.norm_eps) @ weights["lm_head.weight"].T
    logits = cfg.softcap * torch.tanh(raw / cfg.softcap) if cfg.softcap else raw
    return logits, raw


def loss_of(logits_BTV, targets_BT):
    """Mean cross-entropy over the targets that are not -1."""
    logits = logits_BTV.reshape(-1, logits_BTV.shape[-1])
    targets = targets_BT.reshape(-1).long()
    kept = (targets >= 0).nonzero().squeeze(1)
    nll = torch.logsumexp(logits[kept], dim=-1) - logits[kept, targets[kept]]
    return nll.mean()


def to_torch(weights, dtype, requires_grad=True):
    return {n: torch.tensor(w, dtype=dtype, requires_grad=requires_grad) for n, w in weights.items()}


def loss_and_grads(weights, ids_BT, targets_BT, cfg, tables=None):
    """Fills .grad of every weight (zeroed first). Returns (loss tensor, logits, pre-cap logits), detached."""
    for w in weights.values():
        w.grad = None
    logits, raw = forward(weights, ids_BT, cfg, tables)
    loss = loss_of(logits, targets_BT)
    loss.backward()
    return loss.detach(), logits.detach(), raw.detach()
