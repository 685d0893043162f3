#!/usr/bin/env python3
"""nanochat and nanoGPT training in PyTorch, the peer for qtrain's speed, memory and losses.

Same architectures and initialisations as qtrain's, SDPA, AdamW(fused=True), eager or compiled. It prints one
JSON object on stdout and a line per step on stderr.

    torch_twin.py --depth 4 --seq-len 512 --data train.bin --eval-data val.bin --steps 100 --threads 2
    torch_twin.py --gpt 6x384 --n-head 6 --seq-len 256 --vocab-size 65 --random-tokens --dtype bf16 --best
    torch_twin.py --gpt 4x128 --n-head 4 --seq-len 64 --text input.txt --random-offsets --full-eval
    torch_twin.py --self-check              # forward and backward against nanochat_ref.py and gpt2_ref.py

Without --random-offsets row r of micro-batch j reads seq_len + 1 tokens from position (j * rows + r) *
seq_len, wrapping at the end: a plain order of its own, so losses compare with qtrain's as curves, not step by
step.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time

import numpy as np
import torch

import golden_io
import gpt2_ref
import nanochat_ref
import torch_models
import twin_data

# What the options left open are in either family: nanochat's AdamW, nanoGPT's.
NANOCHAT_DEFAULTS = {
    "beta1": 0.8,
    "beta2": 0.95,
    "eps": 1e-10,
    "weight_decay": 0.0,
    "schedule": "warmdown",
}
GPT_DEFAULTS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "schedule": "cosine"}


def peak_rss_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def lr_factor(step, args):
    """Share of the peak rate: nanochat's 1 and then linearly to 0, or nanoGPT's warm-up and cosine."""
    if args.schedule == "warmdown":
        tail = round(args.warmdown * args.steps)
        return 1.0 if step < args.steps - tail else (args.steps - step) / tail
    if step < args.warmup:
        return (step + 1) / (args.warmup + 1)
    through = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.final_lr + 0.5 * (1 + math.cos(math.pi * min(1.0, through))) * (1 - args.final_lr)


class Optimizer:
    """AdamW on f32 weights. With bf16 copies the model's own weights are bf16 and written after each step."""

    def __init__(self, model, args):
        self.model_weights = list(model.parameters())
        groups = model.optimizer_groups(args)
        self.copies = args.dtype == "bf16" and args.bf16 == "copies"
        if self.copies:
            masters = {p: p.detach().clone() for p in self.model_weights}
            groups = [group | {"params": [masters[p] for p in group["params"]]} for group in groups]
            self.masters = [masters[p] for p in self.model_weights]
            for p in self.model_weights:
                p.data = p.data.bfloat16()
        else:
            self.masters = self.model_weights
        self.peak_lr = [group["lr"] for group in groups]
        self.adamw = torch.optim.AdamW(groups, betas=(args.beta1, args.beta2), eps=args.eps, fused=True)
        self.clip_norm = args.clip_norm

    @torch.no_grad()
    def step(self, factor):
        if self.copies:
            for master, p in zip(self.masters, self.model_weights):
                master.grad, p.grad = p.grad.float(), None
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        for group, lr in zip(self.adamw.param_groups, self.peak_lr):
            group["lr"] = lr * factor
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.copies:
            torch._foreach_copy_(self.model_weights, self.masters)


@torch.no_grad()
def evaluate(run_loss, model, tokens, args):
    """Mean loss of the first eval_tokens, or of all tokens."""
    model.eval()
    if args.full_eval:
        batches = twin_data.all_windows(tokens, args.eval_rows or args.rows, args.seq_len, args.device)
    else:
        count = max(1, args.eval_tokens // (args.rows * args.seq_len))
        batches = (
            twin_data.micro_batch(tokens, j, args.rows, args.seq_len, args.device) for j in range(count)
        )
    total, scored = 0.0, 0
    for ids, targets in batches:
        n = int((targets >= 0).sum())
        total += run_loss(ids, targets).item() * n
        scored += n
    model.train()
    return total / scored


def tokens_of(args):
    """(train tokens, evaluation tokens or None); sets the vocabulary size of a text."""
    if args.text:
        train, val, args.vocab_size = twin_data.read_characters(args.text)
        return train, val
    if args.random_tokens:
        return np.random.RandomState(args.seed).randint(0, args.vocab_size, 1 << 18).astype(np.uint16), None
    val = twin_data.read_shards(args.eval_data, args.vocab_size) if args.eval_data else None
    return twin_data.read_shards(args.data, args.vocab_size), val


def train(args):
    """The result that is printed."""
    rss_import_bytes = peak_rss_bytes()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    tokens, eval_tokens = tokens_of(args)
    rng = np.random.RandomState(args.seed)
    with torch.device(args.device if args.device_init else "cpu"):
        model, shapes, initial = torch_models.build(args, rng)
    if args.init_from:
        stored, _ = golden_io.read(args.init_from)
        model.load({n: stored[n].copy() for n in shapes})
    elif not args.device_init:
        model.load(initial())
    model.to(args.device).train()
    optimizer = Optimizer(model, args)
    compiled = torch.compile(model) if args.compile else model
    # f32 weights are cast where they are multiplied, the residual stream has 16 bits, as nanochat trains.
    autocast = args.dtype == "bf16" and args.bf16 == "autocast"

    def run_loss(ids, targets):
        with torch.autocast(args.device, dtype=dtype, enabled=autocast):
            return compiled(ids, targets, dtype)

    def batch(index):
        if args.random_offsets:
            return twin_data.random_batch(tokens, rng, args.rows, args.seq_len, args.device)
        return twin_data.micro_batch(tokens, index, args.rows, args.seq_len, args.device)

    losses, seconds, evals = [], [], []
    rss_start_bytes = peak_rss_bytes()
    for step in range(args.steps):
        synchronize(args.device)
        begin = time.perf_counter()
        total = 0.0
        for j in range(args.accum):
            loss = run_loss(*batch(step * args.accum + j)) / args.accum
            loss.backward()
            total += loss.detach()
        optimizer.step(lr_factor(step, args))
        losses.append(float(total))
        seconds.append(time.perf_counter() - begin)
        last = step + 1 == args.steps
        if last or (step + 1) % args.log_every == 0:
            text = f"step {step} loss {losses[-1]:.6f} {seconds[-1] * 1e3:.1f} ms"
            print(text, file=sys.stderr, flush=True)
        if eval_tokens is not None and (last or (args.eval_every and (step + 1) % args.eval_every == 0)):
            evals.append({"step": step + 1, "loss": evaluate(run_loss, model, eval_tokens, args)})
            print(f"step {step + 1} validation loss {evals[-1]['loss']:.4f}", file=sys.stderr, flush=True)

    tokens_per_step = args.rows * args.accum * args.seq_len
    # The first steps allocate, choose kernels and compile. The median also ignores a neighbour's burst.
    timed = sorted(seconds[min(args.skip_steps, len(seconds) - 1) :])
    left_out = ("data", "eval_data", "text", "init_from", "self_check", "best")
    result = {
        "model": f"gpt {args.gpt}" if args.gpt else f"d{args.depth}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "options": {k: v for k, v in vars(args).items() if k not in left_out},
        "tokens_per_step": tokens_per_step,
        "step_ms_median": 1e3 * timed[len(timed) // 2],
        "tokens_per_s": tokens_per_step / timed[len(timed) // 2],
        "train_s": sum(seconds),
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_import_bytes": rss_import_bytes,  # interpreter and libraries
        "rss_start_bytes": rss_start_bytes,  # with data and weights, before the first step
        "losses": losses,
        "evals": evals,
    }
    if args.device == "cuda":
        result["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    return result


def best(args, command):
    """The fastest of eager and compiled, in bf16 each with both ways to use it, and what the others reached.

    One process measures one of them, because the peak of resident memory belongs to a process.
    """
    ways = ("autocast", "copies") if args.dtype == "bf16" else (None,)
    results, table = [], []
    for compiled, way in ((c, w) for c in (False, True) for w in ways):
        extra = ["--compile"] * compiled + (["--bf16", way] if way else [])
        call = [sys.executable, __file__, *command, *extra]
        child = subprocess.run(call, stdout=subprocess.PIPE, text=True)
        if child.returncode:
            raise SystemExit(f"{' '.join(call)}: exit code {child.returncode}")
        results.append(json.loads(child.stdout))
        keys = ("tokens_per_s", "step_ms_median", "peak_rss_bytes", "rss_import_bytes")
        shown = {k: results[-1][k] for k in keys}
        table.append({"how": f"{'compiled' if compiled else 'eager'}{f' {way}' if way else ''}"} | shown)
    return max(results, key=lambda r: r["tokens_per_s"]) | {"all": table}


# ---- self-check --------------------------------------------------------------------------------------------


def worst_gradient(model, ids, targets, want):
    """Loss and gradients of the model against (loss, our name -> gradient) in float64."""
    loss, grads = want
    got = model(ids, targets)
    got.backward()
    worst = abs(got.item() - loss.item())
    for n, p in model.named_parameters():
        worst = max(worst, ((p.grad - grads[n]).abs().max() / grads[n].abs().max()).item())
    return worst


def self_check():
    """The fast models against the written-out ones, in each memory mode; schedule and full evaluation.

    Returns the exit code.
    """
    rng = np.random.RandomState(7)
    ids, targets = (torch.tensor(rng.randint(0, 97, (2, 24))) for _ in range(2))
    targets[0, :3] = -1
    chat = nanochat_ref.Config(n_layer=2, n_embd=64, n_head=4, n_kv_head=2, vocab_size=97, seq_len=24)
    cases = [(torch_models.Nanochat, nanochat_ref, chat)]
    for bias in (True, False):
        cfg = gpt2_ref.Config(n_layer=2, n_head=3, n_embd=60, vocab_size=97, block_size=24, bias=bias)
        cases.append((torch_models.Gpt, gpt2_ref, cfg))
    worst = {}
    for family, ref, cfg in cases:
        weights = {n: ref.normal(rng, s, 0.1) for n, s in ref.weight_shapes(cfg).items()}
        w = ref.to_torch(weights, torch.float64)
        loss = ref.loss_and_grads(w, ids, targets, cfg)[0]
        grads = {n: p.grad for n, p in w.items()}
        if family is torch_models.Gpt:
            grads = torch_models.gpt2_names.fuse_qkv(grads)
        for ckpt in (False, True):
            for chunk in (0, 13):
                model = family(cfg, ckpt, chunk).train()
                model.load(weights)
                name = f"{family.__name__}{' with bias' if getattr(cfg, 'bias', False) else ''}"
                worst[name] = max(worst.get(name, 0.0), worst_gradient(model, ids, targets, (loss, grads)))

    # `model`, `w`, `cfg` are the last case's. Windows of 24 over 100 tokens: four, and one of three targets.
    text = rng.randint(0, 97, 100)
    total = 0.0
    for s in range(0, 99, 24):
        row = torch.tensor(text[s : s + 25])[None]
        total += gpt2_ref.loss_and_grads(w, row[:, :-1], row[:, 1:], cfg)[0].item() * (row.shape[1] - 1)
    parser = options()
    args = parser.parse_args("--rows 2 --seq-len 24 --full-eval --steps 2000 --warmup 100".split())
    args.schedule, args.final_lr = "cosine", 0.1
    worst["full evaluation"] = abs(evaluate(model, model, text.astype(np.uint16), args) - total / 99)
    factors = {0: 1 / 101, 99: 100 / 101, 100: 1.0, 1050: 0.55, 2000: 0.1}
    worst["cosine schedule"] = max(abs(lr_factor(step, args) - f) for step, f in factors.items())
    print("largest differences from the references:", {k: float(f"{v:.2g}") for k, v in worst.items()})
    return 0 if max(worst.values()) < 1e-5 else 1


# ---- command line ------------------------------------------------------------------------------------------


def options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--depth", type=int, default=4, help="nanochat's d: layers, and 64 of width per layer")
    add("--gpt", metavar="LAYERSxWIDTH", help="nanoGPT's model instead, as 6x384")
    add("--n-embd", type=int, help="another width (nanochat)")
    add("--n-head", type=int, help="nanochat: heads of 128; nanoGPT: of 64")
    add("--n-kv-head", type=int)
    add("--bias", action="store_true", help="nanoGPT: biases in Linear and LayerNorm")
    add("--dropout", type=float, default=0.0, help="nanoGPT")
    add("--vocab-size", type=int, default=4096)
    add("--seq-len", type=int, default=512, help="nanoGPT's block size")
    add("--rows", type=int, default=4, help="rows of a micro-batch")
    add("--accum", type=int, default=1, help="micro-batches of an optimizer step")
    add("--steps", type=int, default=20)
    add("--skip-steps", type=int, default=3, help="first steps left out of tokens_per_s")
    add("--log-every", type=int, default=1)
    add("--data", nargs="+", help="token shards (.bin)")
    add("--text", help="or a text, by characters: nine tenths to train, the rest to evaluate on")
    add("--random-tokens", action="store_true", help="or noise: for speed only")
    add("--random-offsets", action="store_true", help="rows from anywhere in the data, as nanoGPT")
    add("--eval-data", nargs="+", help="token shards to evaluate on")
    add("--eval-every", type=int, default=0, help="steps; 0: after the last only")
    add("--eval-tokens", type=int, default=65536)
    add("--full-eval", action="store_true", help="evaluate on all tokens, each scored once")
    add("--eval-rows", type=int, help="rows of a batch of --full-eval, if not --rows")
    add("--dtype", choices=("f32", "bf16"), default="f32")
    add("--bf16", choices=("autocast", "copies"), default="autocast", help="weights cast on use, or copies")
    add("--compile", action="store_true")
    add("--best", action="store_true", help="measure eager and compiled, report the faster")
    add(
        "--ckpt-activations",
        action="store_true",
        help="keep each block's input, recompute the rest in backward",
    )
    add("--loss-chunk", type=int, default=0, help="tokens whose logits exist at a time; 0: all")
    add("--lr-matrix", type=float, default=3e-3, help="nanochat")
    add("--lr-embedding", type=float, default=0.2, help="nanochat, at width 768; scaled by (width/768)^-0.5")
    add("--lr-head", type=float, default=0.004, help="nanochat, at width 768; scaled likewise")
    add("--lr", type=float, default=6e-4, help="nanoGPT: of all weights")
    add("--beta1", type=float, help="0.8; nanoGPT: 0.9")
    add("--beta2", type=float, help="0.95")
    add("--eps", type=float, help="1e-10; nanoGPT: 1e-8")
    add("--weight-decay", type=float, help="0; nanoGPT: 0.1, of tensors of two dimensions")
    add("--clip-norm", type=float, default=1.0, help="0: off")
    add("--schedule", choices=("warmdown", "cosine"), help="warmdown; nanoGPT: cosine")
    add("--warmdown", type=float, default=0.2, help="last share of the steps, over which the rates fall to 0")
    add("--warmup", type=int, default=0, help="steps of the cosine's linear warm-up")
    add("--final-lr", type=float, default=0.1, help="share of the rate that the cosine ends at")
    add("--seed", type=int, default=42)
    add("--device-init", action="store_true", help="PyTorch's own weights, made on the device: for speed only")
    add("--init-from", help="f32 safetensors of our names, for the same start as another program")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=os.cpu_count())
    add("--self-check", action="store_true")
    return parser


def main():
    parser = options()
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.self_check:
        return self_check()
    if bool(args.data) + bool(args.text) + args.random_tokens != 1:
        parser.error("give one of --data, --text, --random-tokens")
    if args.best and args.compile:
        parser.error("--best tries --compile itself")
    for name, value in (GPT_DEFAULTS if args.gpt else NANOCHAT_DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.best:
        print(json.dumps(best(args, [a for a in sys.argv[1:] if a != "--best"])))
        return 0
    torch.manual_seed(args.seed)
    print(json.dumps(train(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
