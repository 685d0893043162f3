#!/usr/bin/env python3
"""Parts of a training step in PyTorch, beside qtrain's bench_gemm and bench_attention: the same shapes, counts
of operations and way to take times. It prints one JSON object on stdout and a line per figure on stderr.

    torch_kernels.py dequantize --device cuda           # NF4 weights as QLoRA stacks use them, beside dense ones
    torch_kernels.py attention --device cuda            # scaled_dot_product_attention, forward and backward
    torch_kernels.py dequantize --models 2 --tokens 64  # a small one for the cpu

dequantize: `dense` multiplies with a bf16 weight, `bitsandbytes` expands by its own kernel and multiplies
(left out, with the reason, where it is not installed or refuses), `lut` expands by a compiled table look-up.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F

# The code book and the block are those of the NF4 format (quant/nf4.h).
NF4 = (
    (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453)
    + (-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0)
    + (0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
    + (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
)
BLOCK = 64
SAMPLES, SAMPLE_SECONDS, MOST_CALLS = 7, 0.02, 1000

# name, tokens of a sequence, heads, key/value heads, width of a head
ATTENTION_SHAPES = (
    ("d12", 2048, 6, 6, 128),
    ("d20", 2048, 10, 10, 128),
    ("d32", 2048, 16, 16, 128),
    ("gpt2", 1024, 12, 12, 64),
    ("gpt 12x576", 1024, 12, 12, 48),
    ("d32, 4 kv heads", 2048, 16, 4, 128),
)


def median_seconds(work, device):
    """Of one call: the median of samples of many calls and one wait, after calls that are left out."""

    def sample(calls):
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    sample(1)
    once = max(sample(1), 1e-7)
    calls = min(max(int(SAMPLE_SECONDS / once), 1), MOST_CALLS)
    return sorted(sample(calls) for _ in range(SAMPLES))[SAMPLES // 2]


def show(row):
    print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), file=sys.stderr)


# ---- products with NF4 weights -----------------------------------------------------------------------------


def quantize(weight):
    """(codes u8 [N * K / 2], largest magnitude of each block f32) of a weight; two codes in a byte."""
    blocks = weight.float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    book = torch.tensor(NF4, device=weight.device)
    middles = (book[1:] + book[:-1]) / 2
    codes = torch.bucketize(blocks / absmax[:, None], middles).to(torch.uint8).reshape(-1)
    return codes[0::2] << 4 | codes[1::2], absmax


def expand(codes, absmax, book, N, K):
    """The weight in bf16."""
    pairs = torch.stack((codes >> 4, codes & 15), 1).reshape(-1, BLOCK)
    return (book[pairs.int()] * absmax[:, None]).to(torch.bfloat16).reshape(N, K)


def bitsandbytes_expand(weight):
    """A function that expands the quantized weight by bitsandbytes, or the reason that there is none."""
    try:
        import bitsandbytes.functional as bnb

        codes, state = bnb.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
        bnb.dequantize_4bit(codes, state)
        return lambda: bnb.dequantize_4bit(codes, state), None
    except Exception as e:  # whatever keeps it from working here
        return None, f"{type(e).__name__}: {e}".splitlines()[0]


def dequantize(args):
    device, rows, reason = args.device, [], None
    compiled = torch.compile(expand, dynamic=False) if args.compile else expand
    book = torch.tensor(NF4, device=device)
    for depth in args.models:
        C = 64 * depth
        for N, K in ((C, C), (4 * C, C), (C, 4 * C)):
            weight = torch.randn(N, K, device=device, dtype=torch.bfloat16)
            codes, absmax = quantize(weight)
            expanders = {"dense": lambda w=weight: w}
            by_bnb, reason = bitsandbytes_expand(weight)
            if by_bnb:
                expanders["bitsandbytes"] = by_bnb
            expanders["lut"] = lambda c=codes, a=absmax, n=N, k=K: compiled(c, a, book, n, k)
            for direction in ("forward", "dx"):
                for M in args.tokens:
                    x = torch.randn(M, K if direction == "forward" else N, device=device, dtype=torch.bfloat16)
                    row = {"model": f"d{depth}", "direction": direction, "M": M, "N": N, "K": K}
                    for how, weights in expanders.items():
                        if direction == "forward":
                            seconds = median_seconds(lambda w=weights: x @ w().T, device)
                        else:
                            seconds = median_seconds(lambda w=weights: x @ w(), device)
                        row[f"{how}_ms"] = 1e3 * seconds
                        row[f"{how}_tflops"] = 2e-12 * M * N * K / seconds
                    rows.append(row)
                    show(row)
    result = {"products": rows}
    if reason:
        result["no_bitsandbytes"] = reason
    return result


# ---- attention ---------------------------------------------------------------------------------------------


def attention(args):
    device, rows = args.device, []
    for B in args.rows:
        for name, T, H, G, D in ATTENTION_SHAPES:
            T = min(T, args.seq_len or T)

            def heads(count):
                return torch.randn(B, count, T, D, device=device, dtype=torch.bfloat16, requires_grad=True)

            q, k, v = heads(H), heads(G), heads(G)

            def forward():
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G < H)

            dy = torch.randn(B, H, T, D, device=device, dtype=torch.bfloat16)
            with torch.no_grad():
                forward_s = median_seconds(forward, device)
            y = forward()
            backward_s = median_seconds(
                lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True), device
            )
            flops = 2.0 * B * H * T * T * D  # the causal half of two products; backward: of five
            row = {"shape": name, "B": B, "T": T, "H": H, "kv": G, "D": D}
            row |= {"forward_ms": 1e3 * forward_s, "forward_tflops": 1e-12 * flops / forward_s}
            row |= {"backward_ms": 1e3 * backward_s, "backward_tflops": 2.5e-12 * flops / backward_s}
            rows.append(row)
            show(row)
    return {"attention": rows}


# ---- command line ------------------------------------------------------------------------------------------


def counts(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("what", choices=("dequantize", "attention"))
    add("--device", default="cpu")
    add("--models", type=counts, default=counts("12,20,32"), help="depths of nanochats: shapes of the products")
    add("--tokens", type=counts, default=counts("64,256,512,1024,2048,4096,16384"), help="M of the products")
    add("--rows", type=counts, default=counts("8"), help="sequences of the attention")
    add("--seq-len", type=int, help="at most so many tokens of a sequence")
    add("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no card")
    torch.manual_seed(1)
    result = {"what": args.what, "torch": torch.__version__, "device": args.device}
    if args.device == "cuda":
        result["device"] = torch.cuda.get_device_name()
    result |= {"dequantize": dequantize, "attention": attention}[args.what](args)
    if args.device == "cuda":
        result["peak_device_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
