"""nanochat and nanoGPT as one would write them for speed in PyTorch: SDPA, fused projections where upstream
fuses them, optional recomputation of blocks and of the loss. torch_twin.py trains them.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import gpt2_names
import gpt2_ref
import nanochat_ref


class LanguageModel(torch.nn.Module):
    """forward() is the mean loss. A family has `transformer`, embed(), block_inputs(), last(), logits()."""

    def __init__(self, cfg, ckpt_activations, loss_chunk_tokens):
        super().__init__()
        self.cfg, self.ckpt_activations, self.loss_chunk_tokens = cfg, ckpt_activations, loss_chunk_tokens

    def block_inputs(self, T, dtype):
        return ()

    def hidden(self, ids, dtype):
        x, more = self.embed(ids, dtype), self.block_inputs(ids.shape[1], dtype)
        for block in self.transformer["h"]:
            if self.ckpt_activations and self.training:
                x = checkpoint(block, x, *more, use_reentrant=False)
            else:
                x = block(x, *more)
        return self.last(x)

    def nll_sum(self, x, targets):
        return F.cross_entropy(self.logits(x), targets, ignore_index=-1, reduction="sum")

    def forward(self, ids, targets, dtype=torch.float32):
        """With loss_chunk_tokens the logits of only that many tokens exist at a time."""
        x, targets = self.hidden(ids, dtype).flatten(0, 1), targets.flatten()
        chunk = self.loss_chunk_tokens or len(targets)
        if chunk >= len(targets):
            return self.nll_sum(x, targets) / (targets >= 0).sum()
        total = x.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(targets), chunk):
            part = slice(begin, begin + chunk)
            total = total + checkpoint(self.nll_sum, x[part], targets[part], use_reentrant=False)
        return total / (targets >= 0).sum()


# ---- nanochat ----------------------------------------------------------------------------------------------


def rms_norm(x, cfg):
    return F.rms_norm(x, (x.size(-1),), eps=cfg.norm_eps)


class NanochatBlock(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        C, kv = cfg.n_embd, cfg.n_kv_head * cfg.head_dim

        def linear(n_out, n_in):
            return torch.nn.Linear(n_in, n_out, bias=False)

        self.attn = torch.nn.ModuleDict(
            {"c_q": linear(C, C), "c_k": linear(kv, C), "c_v": linear(kv, C), "c_proj": linear(C, C)}
        )
        self.mlp = torch.nn.ModuleDict({"c_fc": linear(4 * C, C), "c_proj": linear(C, 4 * C)})

    def forward(self, x, cos, sin):
        cfg = self.cfg
        B, T, C = x.shape
        a = rms_norm(x, cfg)
        q = self.attn["c_q"](a).view(B, T, cfg.n_head, cfg.head_dim).transpose(1, 2)
        k = self.attn["c_k"](a).view(B, T, cfg.n_kv_head, cfg.head_dim).transpose(1, 2)
        v = self.attn["c_v"](a).view(B, T, cfg.n_kv_head, cfg.head_dim).transpose(1, 2)
        q, k = (rms_norm(nanochat_ref.rotate(t, cos, sin), cfg) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=cfg.n_kv_head < cfg.n_head)
        x = x + self.attn["c_proj"](y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp["c_proj"](F.relu(self.mlp["c_fc"](rms_norm(x, cfg))).square())


class Nanochat(LanguageModel):
    """Parameter names are nanochat's."""

    def __init__(self, cfg, ckpt_activations=False, loss_chunk_tokens=0):
        super().__init__(cfg, ckpt_activations, loss_chunk_tokens)
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(cfg.vocab_size, cfg.n_embd),
                "h": torch.nn.ModuleList(NanochatBlock(cfg) for _ in range(cfg.n_layer)),
            }
        )
        self.lm_head = torch.nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        cos, sin = nanochat_ref.rope_tables(cfg, cfg.seq_len)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def embed(self, ids, dtype):
        return rms_norm(self.transformer["wte"](ids).to(dtype), self.cfg)

    def block_inputs(self, T, dtype):
        return self.cos[:T].to(dtype), self.sin[:T].to(dtype)

    def last(self, x):
        return rms_norm(x, self.cfg)

    def logits(self, x):
        return self.cfg.softcap * torch.tanh(self.lm_head(x).float() / self.cfg.softcap)

    def load(self, weights):
        self.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=True)

    def optimizer_groups(self, args):
        scale = (self.cfg.n_embd / 768) ** -0.5
        lr = {
            nanochat_ref.MATRIX: args.lr_matrix,
            nanochat_ref.EMBEDDING: args.lr_embedding * scale,
            nanochat_ref.HEAD: args.lr_head * scale,
        }
        groups = {group: [] for group in lr}
        for n, p in self.named_parameters():
            groups[nanochat_ref.group_of(n)].append(p)
        return [{"params": groups[g], "lr": lr[g], "weight_decay": args.weight_decay} for g in lr]


# ---- nanoGPT -----------------------------------------------------------------------------------------------


class LayerNorm(torch.nn.LayerNorm):
    """In the dtype of its input, which autocast would raise to f32."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class GptBlock(torch.nn.Module):
    def __init__(self, cfg, dropout):
        super().__init__()
        self.cfg, self.dropout = cfg, dropout
        C = cfg.n_embd

        def linear(n_out, n_in):
            return torch.nn.Linear(n_in, n_out, bias=cfg.bias)

        self.ln_1 = LayerNorm(C, eps=cfg.norm_eps, bias=cfg.bias)
        self.attn = torch.nn.ModuleDict({"c_attn": linear(3 * C, C), "c_proj": linear(C, C)})
        self.ln_2 = LayerNorm(C, eps=cfg.norm_eps, bias=cfg.bias)
        self.mlp = torch.nn.ModuleDict({"c_fc": linear(4 * C, C), "c_proj": linear(C, 4 * C)})

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            t.view(B, T, self.cfg.n_head, self.cfg.head_dim).transpose(1, 2)
            for t in self.attn["c_attn"](self.ln_1(x)).split(C, dim=2)
        )
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        x = x + self.drop(self.attn["c_proj"](y.transpose(1, 2).reshape(B, T, C)))
        return x + self.drop(self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)))))


class Gpt(LanguageModel):
    """Parameter names are nanoGPT's, without the tied lm_head."""

    def __init__(self, cfg, ckpt_activations=False, loss_chunk_tokens=0, dropout=0.0):
        super().__init__(cfg, ckpt_activations, loss_chunk_tokens)
        self.dropout = dropout
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(cfg.vocab_size, cfg.n_embd),
                "wpe": torch.nn.Embedding(cfg.block_size, cfg.n_embd),
                "h": torch.nn.ModuleList(GptBlock(cfg, dropout) for _ in range(cfg.n_layer)),
                "ln_f": LayerNorm(cfg.n_embd, eps=cfg.norm_eps, bias=cfg.bias),
            }
        )

    def embed(self, ids, dtype):
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[1]]
        x = x.to(dtype)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def last(self, x):
        return self.transformer["ln_f"](x)

    def logits(self, x):
        return F.linear(x, self.transformer["wte"].weight).float()

    def load(self, weights):
        """weights: name (gpt2_names.py) -> array."""
        ours = {n: torch.from_numpy(w) for n, w in weights.items()}
        self.load_state_dict(gpt2_names.fuse_qkv(ours), strict=True)

    def optimizer_groups(self, args):
        decays, stays = [], []
        for p in self.parameters():
            (decays if p.dim() >= 2 else stays).append(p)
        return [
            {"params": decays, "lr": args.lr, "weight_decay": args.weight_decay},
            {"params": stays, "lr": args.lr, "weight_decay": 0.0},
        ]


# ---- by name -----------------------------------------------------------------------------------------------


def nanochat_config(args):
    """nanochat's October rule: width 64 * depth, heads of 128 rounded up."""
    n_embd = args.n_embd or 64 * args.depth
    n_head = args.n_head or max(1, -(-n_embd // 128))
    n_kv_head = args.n_kv_head or n_head
    if n_embd % n_head or n_head % n_kv_head:
        raise SystemExit(
            f"width {n_embd}, {n_head} heads, {n_kv_head} key/value heads: each must divide the one before"
        )
    return nanochat_ref.Config(args.depth, n_embd, n_head, n_kv_head, args.vocab_size, args.seq_len)


def gpt_config(args):
    try:
        n_layer, n_embd = (int(x) for x in args.gpt.split("x"))
    except ValueError:
        raise SystemExit(f"--gpt {args.gpt}: write LAYERSxWIDTH, as 6x384") from None
    n_head = args.n_head or max(1, n_embd // 64)
    if n_embd % n_head:
        raise SystemExit(f"width {n_embd} is not divisible by {n_head} heads (--n-head)")
    return gpt2_ref.Config(n_layer, n_head, n_embd, args.vocab_size, args.seq_len, args.bias)


def build(args, rng):
    """(model, weight shapes by name, function that makes the initial weights) of the command line."""
    if args.gpt:
        cfg = gpt_config(args)
        model = Gpt(cfg, args.ckpt_activations, args.loss_chunk, args.dropout)
        return model, gpt2_ref.weight_shapes(cfg), lambda: gpt2_ref.nanogpt_init(cfg, rng)
    cfg = nanochat_config(args)
    model = Nanochat(cfg, args.ckpt_activations, args.loss_chunk)
    return model, nanochat_ref.weight_shapes(cfg), lambda: nanochat_ref.nanochat_init(cfg, rng)
