#!/usr/bin/env python3
"""Compare qtrain's NF4 and 8-bit codes with bitsandbytes' own CPU quantizer.

    python tools/check_bnb.py build/tests/quant_dump [--seed N]

Needs torch and bitsandbytes; building, testing and running qtrain needs neither. Exit 0 when everything
agrees, 1 with one line per disagreement. What must agree:

  maps      both dynamic 8-bit maps, bit for bit
  NF4       scales bit for bit; codes equal, except where the normalised value lies within 4 ulp of a
            threshold
  decode    bitsandbytes reads our codes and scales to the same f32 bits
"""

import argparse
import pathlib
import struct
import subprocess
import sys
import tempfile

import bitsandbytes
import bitsandbytes.functional as bnb
import torch

BLOCK = 64


def lcg(seed, count):
    out, s = [], seed
    for _ in range(count):
        s = (1664525 * s + 1013904223) % 2**32
        out.append(((s >> 8) - 8388608) / 8388608)
    return torch.tensor(out, dtype=torch.float32)


def cases(seed):
    gen = torch.Generator().manual_seed(seed)
    normal = torch.randn(1 << 20, generator=gen)
    uniform = lcg(12345, 65536)
    steps = 1 + (torch.arange(65536) // BLOCK % 7)
    zeros = normal[:1024].clone()
    zeros[:64] = 0
    zeros[512:576] = 0
    outlier = normal[:4096].clone()
    outlier[100] = 1e4
    yield "ramp", (torch.arange(64) - 31.5) / 8
    yield "partial last block", torch.tensor([(37 * i % 101 - 50) / 50 for i in range(130)])
    yield "uniform", uniform
    yield "uniform, seven scales", uniform * steps
    yield "normal", normal
    yield "normal * 0.02", normal * 0.02
    yield "normal, bf16 values", normal.bfloat16().float()
    row_scales = torch.logspace(-6, 3, 1000).repeat_interleave(576)
    yield "normal, one scale per row of 576", normal[: 576 * 1000] * row_scales
    yield "zero blocks", zeros
    yield "outlier", outlier
    for n in (1, 2, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097):
        yield f"normal, n = {n}", normal[:n].clone()


def read(path, dtype):
    data = bytearray(path.read_bytes())
    return torch.frombuffer(data, dtype=dtype)


def nibbles(packed, count):
    return torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:count].to(torch.int32)


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def run_case(dump, name, x, folder, failures):
    def check(ok, what):
        if not ok:
            failures.append(f"{name}: {what}")

    source = folder / "input.f32"
    source.write_bytes(b"".join(struct.pack("<f", v) for v in x.tolist()))
    subprocess.run([dump, source, folder / "out"], check=True)
    out = {p.name: p for p in (folder / "out").iterdir()}
    n = x.numel()
    codes, absmax = read(out["codes"], torch.uint8), read(out["absmax"], torch.float32)

    their_codes, state = bnb.quantize_4bit(x, blocksize=BLOCK, quant_type="nf4")
    check(same_bits(absmax, state.absmax), "scales differ")
    ours, theirs = nibbles(codes, n), nibbles(their_codes.reshape(-1), n)
    ties = 0
    for i in (ours != theirs).nonzero().reshape(-1).tolist():
        y = x[i] / absmax[i // BLOCK]
        low = min(ours[i].item(), theirs[i].item())
        threshold = (state.code[low] + state.code[low + 1]) / 2
        ulp = torch.nextafter(threshold.abs(), torch.tensor(2.0)) - threshold.abs()
        near = abs(ours[i].item() - theirs[i].item()) == 1 and (y - threshold).abs() <= 4 * ulp
        check(near, f"element {i} = {x[i].item()!r}: code {ours[i].item()}, bitsandbytes {theirs[i].item()}")
        ties += 1
    if n % 2:
        check(codes[-1].item() & 15 == 7, "the padding nibble is not the code of 0")

    state.absmax, state.shape, state.dtype = absmax, torch.Size([n]), torch.float32
    decoded = bnb.dequantize_4bit(codes.reshape(-1, 1), state)
    check(same_bits(decoded.reshape(-1), read(out["weights"], torch.float32)), "decoded weights differ")

    print(f"{name:32} n {n:8}  codes differing at a tie {ties}")
    return out


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("dump", help="the program quant_dump of a qtrain build")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, seed {args.seed}")
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for name, x in cases(args.seed):
            out = run_case(args.dump, name, x.float().contiguous(), pathlib.Path(folder), failures)
        for kind in ("signed", "unsigned"):
            ours = read(out[f"map_{kind}"], torch.float32)
            theirs = bnb.create_dynamic_map(signed=kind == "signed")
            differ = int((ours.view(torch.int32) != theirs.view(torch.int32)).sum())
            print(f"{kind + ' 8-bit map':32} entries that differ: {differ}")
            if differ:
                failures.append(f"{kind} map: {differ} entries differ")
    for failure in failures[:20]:
        print("DIFFERS", failure)
    print(f"{'FAILED' if failures else 'agrees'} ({len(failures)} disagreements)")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
