"""nanoGPT's model in plain torch operations: a second opinion beside transformers' GPT-2.

Everything is written out (softmax, LayerNorm, GELU, cross-entropy) and runs in the dtype of the weights, so
that float64 really is float64. It is slow and keeps every logit; torch_models.py has the fast one. Dropout is
left out. Dimension letters: B rows, T positions, C width, H heads, D head width, V vocabulary.
"""

import dataclasses
import math

import numpy as np
import torch

from nanochat_ref import loss_of, normal, to_torch  # noqa: F401  (the same for both families)


@dataclasses.dataclass(frozen=True)
class Config:
    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    block_size: int
    bias: bool
    norm_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


def weight_shapes(cfg):
    """Names (gpt2_names.py) in model order -> shape; matrices are [out, in]. lm_head is wte."""
    C = cfg.n_embd
    shapes = {"transformer.wte.weight": (cfg.vocab_size, C), "transformer.wpe.weight": (cfg.block_size, C)}

    def add(name, shape):
        shapes[f"{name}.weight"] = shape
        if cfg.bias:
            shapes[f"{name}.bias"] = shape[:1]

    for i in range(cfg.n_layer):
        h = f"transformer.h.{i}"
        add(f"{h}.ln_1", (C,))
        for part in ("c_q", "c_k", "c_v", "c_proj"):
            add(f"{h}.attn.{part}", (C, C))
        add(f"{h}.ln_2", (C,))
        add(f"{h}.mlp.c_fc", (4 * C, C))
        add(f"{h}.mlp.c_proj", (C, 4 * C))
    add("transformer.ln_f", (C,))
    return shapes


def nanogpt_init(cfg, rng):
    """nanoGPT's: N(0, 0.02), c_proj narrower by sqrt(2 layers), LayerNorm weights one, biases zero."""
    weights = {}
    for name, shape in weight_shapes(cfg).items():
        if name.endswith(".bias"):
            weights[name] = np.zeros(shape, np.float32)
        elif len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
        else:
            narrow = math.sqrt(2 * cfg.n_layer) if name.endswith("c_proj.weight") else 1.0
            weights[name] = normal(rng, shape, 0.02 / narrow)
    return weights


def layer_norm(x, weights, name, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    y = centred / torch.sqrt((centred * centred).mean(dim=-1, keepdim=True) + eps) * weights[f"{name}.weight"]
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def linear(x, weights, name):
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x):
    """GPT-2's and llm.c's approximation: a mistake for nanoGPT's models."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def forward(weights, ids_BT, cfg, activation=gelu, head=None, first_position=0):
    """Logits [B, T, V] in the dtype of the weights. Everything after cfg is for mistakes made on purpose."""
    B, T = ids_BT.shape
    H, D = cfg.n_head, cfg.head_dim
    future_TT = torch.ones(T, T, dtype=torch.bool).triu(1)
    wte, wpe = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]

    position = (torch.arange(T) + first_position) % cfg.block_size
    x = wte[ids_BT.long()] + wpe[position]
    for i in range(cfg.n_layer):
        h = f"transformer.h.{i}"
        a = layer_norm(x, weights, f"{h}.ln_1", cfg.norm_eps)
        q, k, v = (
            linear(a, weights, f"{h}.attn.{part}").view(B, T, H, D).transpose(1, 2)
            for part in ("c_q", "c_k", "c_v")
        )
        score = (q @ k.transpose(2, 3) / math.sqrt(D)).masked_fill(future_TT, -math.inf)
        prob = torch.exp(score - score.amax(dim=-1, keepdim=True).detach())
        y = (prob / prob.sum(dim=-1, keepdim=True)) @ v
        x = x + linear(y.transpose(1, 2).reshape(B, T, H * D), weights, f"{h}.attn.c_proj")
        m = activation(linear(layer_norm(x, weights, f"{h}.ln_2", cfg.norm_eps), weights, f"{h}.mlp.c_fc"))
        x = x + linear(m, weights, f"{h}.mlp.c_proj")
    x = layer_norm(x, weights, "transformer.ln_f", cfg.norm_eps)
    return x @ (wte if head is None else head).T


def loss_and_grads(weights, ids_BT, targets_BT, cfg, **mistakes):
    """Fills .grad of every weight (zeroed first). Returns (loss tensor, logits), detached."""
    for w in weights.values():
        w.grad = None
    logits = forward(weights, ids_BT, cfg, **mistakes)
    loss = loss_of(logits, targets_BT)
    loss.backward()
    return loss.detach(), logits.detach()
