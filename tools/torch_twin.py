#!/usr/bin/env python3
"""A PyTorch twin of nanochat training, the peer that qtrain's speed, memory and losses are compared with.

Same architecture and initialisation as `qtrain --model d{depth}`, AdamW with nanochat's learning rates, token
shards in llm.c's .bin format. It prints one JSON object on stdout and a line per step on stderr.

    torch_twin.py --depth 4 --seq-len 512 --data train.bin --eval-data val.bin --steps 100 --threads 2
    torch_twin.py --depth 4 --random-tokens --steps 5 --dtype bf16 --ckpt-activations
    torch_twin.py --self-check              # its forward pass against nanochat_ref.py

Row r of micro-batch j reads seq_len + 1 tokens from position (j * rows + r) * seq_len of the shards, wrapping
at the end: a plain order of its own, so losses compare with qtrain's as curves, not step by step.
"""

import argparse
import json
import os
import resource
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import golden_io
import nanochat_ref as ref

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024


class Block(torch.nn.Module):
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
        a = norm(x, cfg)
        q = self.attn["c_q"](a).view(B, T, cfg.n_head, cfg.head_dim).transpose(1, 2)
        k = self.attn["c_k"](a).view(B, T, cfg.n_kv_head, cfg.head_dim).transpose(1, 2)
        v = self.attn["c_v"](a).view(B, T, cfg.n_kv_head, cfg.head_dim).transpose(1, 2)
        q, k = norm(ref.rotate(q, cos, sin), cfg), norm(ref.rotate(k, cos, sin), cfg)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=cfg.n_kv_head < cfg.n_head)
        x = x + self.attn["c_proj"](y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp["c_proj"](F.relu(self.mlp["c_fc"](norm(x, cfg))).square())


def norm(x, cfg):
    return F.rms_norm(x, (x.size(-1),), eps=cfg.norm_eps)


class Twin(torch.nn.Module):
    """Parameter names are nanochat's."""

    def __init__(self, cfg, ckpt_activations=False, loss_chunk_tokens=0):
        super().__init__()
        self.cfg, self.ckpt_activations, self.loss_chunk_tokens = cfg, ckpt_activations, loss_chunk_tokens
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(cfg.vocab_size, cfg.n_embd),
                "h": torch.nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer)),
            }
        )
        self.lm_head = torch.nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        cos, sin = ref.rope_tables(cfg, cfg.seq_len)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids, dtype):
        T = ids.shape[1]
        cos, sin = self.cos[:T].to(dtype), self.sin[:T].to(dtype)
        x = norm(self.transformer["wte"](ids).to(dtype), self.cfg)
        for block in self.transformer["h"]:
            if self.ckpt_activations and self.training:
                x = checkpoint(block, x, cos, sin, use_reentrant=False)
            else:
                x = block(x, cos, sin)
        return norm(x, self.cfg)

    def logits(self, x):
        return self.cfg.softcap * torch.tanh(self.lm_head(x).float() / self.cfg.softcap)

    def nll_sum(self, x, targets):
        return F.cross_entropy(self.logits(x), targets, ignore_index=-1, reduction="sum")

    def forward(self, ids, targets, dtype=torch.float32):
        """Mean loss. With loss_chunk_tokens the logits of only that many tokens exist at a time."""
        x, targets = self.hidden(ids, dtype).flatten(0, 1), targets.flatten()
        chunk = self.loss_chunk_tokens or len(targets)
        if chunk >= len(targets):
            return self.nll_sum(x, targets) / (targets >= 0).sum()
        total = x.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(targets), chunk):
            part = slice(begin, begin + chunk)
            total = total + checkpoint(self.nll_sum, x[part], targets[part], use_reentrant=False)
        return total / (targets >= 0).sum()


def config_of_depth(args):
    """nanochat's October rule: width 64 * depth, heads of 128 rounded up."""
    n_embd = args.n_embd or 64 * args.depth
    n_head = args.n_head or max(1, -(-n_embd // 128))
    n_kv_head = args.n_kv_head or n_head
    if n_embd % n_head or n_head % n_kv_head:
        raise SystemExit(
            f"width {n_embd}, {n_head} heads, {n_kv_head} key/value heads: each must divide the one before"
        )
    return ref.Config(args.depth, n_embd, n_head, n_kv_head, args.vocab_size, args.seq_len)


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


def micro_batch(tokens, index, rows, seq_len, device):
    span = len(tokens) - seq_len
    if span < 1:
        raise SystemExit(f"{len(tokens)} tokens are too few for a row of {seq_len} + 1")
    starts = [(index * rows + r) * seq_len % span for r in range(rows)]
    window = torch.from_numpy(np.stack([tokens[s : s + seq_len + 1] for s in starts]).astype(np.int64)).to(
        device
    )
    return window[:, :-1], window[:, 1:]


def peak_rss_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def lr_factor(step, steps, warmdown):
    """1, then linearly to 0 over the last share of the run."""
    tail = round(warmdown * steps)
    return 1.0 if step < steps - tail else (steps - step) / tail


def make_optimizer(model, args, cfg):
    scale = (cfg.n_embd / 768) ** -0.5
    lr = {
        ref.MATRIX: args.lr_matrix,
        ref.EMBEDDING: args.lr_embedding * scale,
        ref.HEAD: args.lr_head * scale,
    }
    params = {group: [p for n, p in model.named_parameters() if ref.group_of(n) == group] for group in lr}
    groups = [{"params": params[g], "lr": lr[g], "initial_lr": lr[g]} for g in lr]
    return torch.optim.AdamW(
        groups, betas=(0.8, 0.95), eps=args.eps, weight_decay=args.weight_decay, fused=True
    )


def load_weights(model, cfg, args):
    if args.init_from:
        stored, _ = golden_io.read(args.init_from)
        weights = {n: stored[n].copy() for n in ref.weight_shapes(cfg)}
    else:
        weights = ref.nanochat_init(cfg, np.random.RandomState(args.seed))
    model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=True)


@torch.no_grad()
def evaluate(run_loss, model, tokens, args):
    model.eval()
    batches = max(1, args.eval_tokens // (args.rows * args.seq_len))
    total = sum(
        run_loss(*micro_batch(tokens, j, args.rows, args.seq_len, args.device)).item() for j in range(batches)
    )
    model.train()
    return total / batches


def train(args):
    cfg = config_of_depth(args)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = Twin(cfg, args.ckpt_activations, args.loss_chunk)
    load_weights(model, cfg, args)
    model.to(args.device).train()
    optimizer = make_optimizer(model, args, cfg)
    compiled = torch.compile(model) if args.compile else model

    def run_loss(ids, targets):
        # As nanochat trains in bf16: f32 weights, cast where they are multiplied; a 16-bit residual stream.
        with torch.autocast(args.device, dtype=dtype, enabled=dtype != torch.float32):
            return compiled(ids, targets, dtype)

    if args.random_tokens:
        tokens = np.random.RandomState(args.seed).randint(0, cfg.vocab_size, 1 << 18).astype(np.uint16)
    else:
        tokens = read_shards(args.data, cfg.vocab_size)
    losses, seconds, evals = [], [], []
    rss_start_bytes = peak_rss_bytes()
    eval_tokens = read_shards(args.eval_data, cfg.vocab_size) if args.eval_data else None
    for step in range(args.steps):
        synchronize(args.device)
        begin = time.perf_counter()
        total = 0.0
        for j in range(args.accum):
            ids, targets = micro_batch(tokens, step * args.accum + j, args.rows, args.seq_len, args.device)
            loss = run_loss(ids, targets) / args.accum
            loss.backward()
            total += loss.detach()
        if args.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor(step, args.steps, args.warmdown)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(total))
        seconds.append(time.perf_counter() - begin)
        print(f"step {step} loss {losses[-1]:.6f} {seconds[-1] * 1e3:.1f} ms", file=sys.stderr, flush=True)
        last = step + 1 == args.steps
        if eval_tokens is not None and (last or (args.eval_every and (step + 1) % args.eval_every == 0)):
            evals.append({"step": step + 1, "loss": evaluate(run_loss, model, eval_tokens, args)})

    tokens_per_step = args.rows * args.accum * args.seq_len
    # The first steps allocate, choose kernels and compile. The median also ignores a neighbour's burst.
    timed = sorted(seconds[min(args.skip_steps, len(seconds) - 1) :])
    result = {
        "model": f"d{args.depth}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "options": {
            k: v for k, v in vars(args).items() if k not in ("data", "eval_data", "init_from", "self_check")
        },
        "tokens_per_step": tokens_per_step,
        "step_ms_median": 1e3 * timed[len(timed) // 2],
        "tokens_per_s": tokens_per_step / timed[len(timed) // 2],
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_start_bytes": rss_start_bytes,  # interpreter, libraries and weights, before the first step
        "losses": losses,
        "evals": evals,
    }
    if args.device == "cuda":
        result["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(result))


def self_check():
    """The fast model against the written-out one, in each memory mode. Returns the exit code."""
    cfg = ref.Config(n_layer=2, n_embd=64, n_head=4, n_kv_head=2, vocab_size=97, seq_len=24)
    rng = np.random.RandomState(7)
    weights = {n: ref.normal(rng, s, 0.1) for n, s in ref.weight_shapes(cfg).items()}
    ids, targets = (torch.tensor(rng.randint(0, cfg.vocab_size, (2, cfg.seq_len))) for _ in range(2))
    targets[0, :3] = -1
    want = ref.to_torch(weights, torch.float64)
    loss = ref.loss_and_grads(want, ids, targets, cfg)[0]
    worst = 0.0
    for ckpt in (False, True):
        for chunk in (0, 13):
            model = Twin(cfg, ckpt, chunk).train()
            model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=True)
            got = model(ids, targets)
            got.backward()
            worst = max(worst, abs(got.item() - loss.item()))
            for n, p in model.named_parameters():
                worst = max(worst, ((p.grad - want[n].grad).abs().max() / want[n].grad.abs().max()).item())
    print(f"largest difference of loss and gradients from the reference: {worst:.2g}")
    return 0 if worst < 1e-5 else 1


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--depth", type=int, default=4, help="nanochat's d: layers, and 64 of width per layer")
    add("--n-embd", type=int, help="another width")
    add("--n-head", type=int)
    add("--n-kv-head", type=int)
    add("--vocab-size", type=int, default=4096)
    add("--seq-len", type=int, default=512)
    add("--rows", type=int, default=4, help="rows of a micro-batch")
    add("--accum", type=int, default=1, help="micro-batches of an optimizer step")
    add("--steps", type=int, default=20)
    add("--skip-steps", type=int, default=3, help="first steps left out of tokens_per_s")
    add("--data", nargs="+", help="token shards (.bin)")
    add("--random-tokens", action="store_true", help="instead of --data: for speed only")
    add("--eval-data", nargs="+", help="token shards to evaluate on")
    add("--eval-every", type=int, default=0, help="steps; 0: after the last only")
    add("--eval-tokens", type=int, default=65536)
    add("--dtype", choices=("f32", "bf16"), default="f32")
    add("--compile", action="store_true")
    add(
        "--ckpt-activations",
        action="store_true",
        help="keep each block's input, recompute the rest in backward",
    )
    add("--loss-chunk", type=int, default=0, help="tokens whose logits exist at a time; 0: all")
    add("--lr-matrix", type=float, default=3e-3)
    add("--lr-embedding", type=float, default=0.2, help="at width 768; scaled by (width/768)^-0.5")
    add("--lr-head", type=float, default=0.004, help="at width 768; scaled likewise")
    add("--eps", type=float, default=1e-10)
    add("--weight-decay", type=float, default=0.0)
    add("--clip-norm", type=float, default=1.0, help="0: off")
    add("--warmdown", type=float, default=0.2, help="last share of the steps, over which the rates fall to 0")
    add("--seed", type=int, default=42)
    add("--init-from", help="f32 safetensors with nanochat's names, for the same start as another program")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=os.cpu_count())
    add("--self-check", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.self_check:
        return self_check()
    if bool(args.data) == args.random_tokens:
        parser.error("give --data or --random-tokens")
    torch.manual_seed(args.seed)
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
