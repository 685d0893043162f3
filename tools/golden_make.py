"""What the make_golden_*.py scripts share: errors and evidence, the synthetic stream, training in float64,
and their command line.
"""

import argparse
import dataclasses
import pathlib

import numpy as np
import torch
import transformers

import adamw_ref
import golden_io

# --check: inputs bit for bit; float64 results rounded to f32 to two ulps of the largest element (another BLAS
# or libm); results of f32 arithmetic to the accuracy that the tests ask for.
FROM_F64 = 2.0**-22
FROM_F32 = 1e-5


def rel(a, b):
    return golden_io.max_norm_error(a.detach().double().numpy(), b.detach().double().numpy())


def brief(value):
    """Evidence is stored to two digits: it says how large, and more would change from machine to machine."""
    return float(f"{float(value):.2g}")


def class_of(name):
    name = name.removesuffix(".weight")
    return name.split(".", 3)[-1] if ".h." in name else name.removeprefix("transformer.")


def worst_by_class(errors):
    worst = {}
    for name, error in errors.items():
        key = class_of(name.removeprefix("grad."))
        worst[key] = brief(max(worst.get(key, 0.0), error))
    return worst


def metadata(script, cfg, seed, evidence, **more):
    return {
        "script": f"tools/{pathlib.Path(script).name}",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "seed": str(seed),
        "config": dataclasses.asdict(cfg),
        "evidence": evidence,
        **more,
    }


def as_f32(t):
    return t.detach().numpy().astype(np.float32)


def learnable_stream(rng, length, vocab):
    """A walk through one random cycle of all tokens that now and then jumps to a skewed random token."""
    follower = np.empty(vocab, np.int64)
    cycle = rng.permutation(vocab)
    follower[cycle] = np.roll(cycle, -1)
    skewed = 1.0 / np.arange(1, vocab + 1)
    cumulative = np.cumsum(skewed) / skewed.sum()
    stream = np.empty(length, np.int32)
    token = 0
    for i in range(length):
        stream[i] = token
        jump, where = rng.random_sample(2)
        token = int(np.searchsorted(cumulative, where)) if jump < 0.2 else int(follower[token])
    return stream


def train(weights, ids, targets, opt, loss_and_grads, written_out=None):
    """Losses before each step, gradient norms before clipping, final weights.

    weights: name -> leaf tensor, changed in place. loss_and_grads(ids, targets) fills their .grad and returns
    the loss. written_out: None for torch's optimizer, else the mistakes for adamw_ref.written_out_step.
    """
    optimizer = opt.torch_optimizer(weights)
    state = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in weights.items()}
    losses, norms = [], []
    for step, (step_ids, step_targets) in enumerate(zip(torch.tensor(ids), torch.tensor(targets)), start=1):
        loss = loss_and_grads(step_ids, step_targets)
        losses.append(loss.double().item())
        grads = [p.grad for p in weights.values()]
        norms.append(torch.nn.utils.get_total_norm(grads, foreach=False).item())
        if opt.clip_norm:
            torch.nn.utils.clip_grad_norm_(weights.values(), opt.clip_norm, foreach=False)
        if written_out is None:
            optimizer.step()
            continue
        with torch.no_grad():
            for n, p in weights.items():
                new, m, v = adamw_ref.written_out_step(
                    opt, opt.lr(n), step, p, p.grad, *state[n], **written_out
                )
                p.copy_(new)
                state[n] = (m, v)
    return np.array(losses), np.array(norms), {n: p.detach() for n, p in weights.items()}


def trajectory_golden(opt, run, mistakes):
    """(tensors without the variant's prefix, evidence) of one variant of a trajectory.

    run(who, dtype, written_out): train() by "reference" or "transformers" from the same start. mistakes: name
    -> arguments for written_out_step, each reported with what it would do to the losses.
    """
    losses, norms, final = run("reference", torch.float64, None)
    losses32, norms32, final32 = run("reference", torch.float32, None)
    losses_hf, _, _ = run("transformers", torch.float32, None)
    written, _, final_written = run("reference", torch.float64, {})
    fall = losses[0] - losses[-1]
    same = max(np.abs(written - losses).max(), max(rel(final_written[n], final[n]) for n in final))
    gap = np.abs(losses32 - losses).max()
    if not (fall >= 1 and same < 1e-10 and gap < 3e-6):
        raise SystemExit(f"loss falls {fall:.3f}, written-out AdamW off by {same:.2g}, f32 off by {gap:.2g}")
    if opt.clip_norm and not (norms.min() < opt.clip_norm < norms.max()):
        raise SystemExit(f"clipping must act in some steps and not in others, norms {norms}")
    evidence = {
        "loss_first": brief(losses[0]),
        "loss_last": brief(losses[-1]),
        "f32_minus_f64_loss": {
            "reference": brief(gap),
            "transformers": brief(np.abs(losses_hf - losses).max()),
        },
        "f32_minus_f64_norm_relative": brief(np.abs(norms32 / norms - 1).max()),
        "f32_minus_f64_final_weights_abs": worst_by_class(
            {n: (final32[n].double() - final[n]).abs().max() for n in final}
        ),
        "mistakes_loss": {
            name: brief(np.abs(run("reference", torch.float64, flags)[0] - losses).max())
            for name, flags in mistakes.items()
        },
    }
    tensors = {
        "loss": losses.astype(np.float32),
        "loss.f32": losses32.astype(np.float32),
        "grad_norm": norms.astype(np.float32),
    }
    return tensors | {f"final.{n}": as_f32(w) for n, w in final.items()}, evidence


def print_evidence(table, indent):
    for key, value in table.items():
        if isinstance(value, dict):
            print(f"{indent}{key}")
            print_evidence(value, indent + "  ")
        else:
            print(f"{indent}{key}: {value}")


def main(doc, prefix, makers, tolerance_of):
    """The scripts' command line; returns the exit code.

    makers: name -> function that returns (tensors, metadata). tolerance_of(name) returns the function that
    golden_io.differences wants.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    repository = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument(
        "--out", type=pathlib.Path, default=repository / "tests/golden", help="default: tests/golden"
    )
    parser.add_argument("--only", choices=makers, action="append", help="this golden alone (may be repeated)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the files in --out instead of writing them"
    )
    args = parser.parse_args()

    # One thread and no fused kernels of choice: the same sums in the same order on every run.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    failed = False
    for name in args.only or makers:
        path = args.out / f"{prefix}_{name}.safetensors"
        made = makers[name]()
        if args.check:
            if not path.exists():
                lines = ["the file is missing"]
            else:
                lines = golden_io.differences(made, golden_io.read(path), tolerance_of(name))
            failed |= bool(lines)
            print(f"{path}: {'differs' if lines else 'agrees'}", *lines, sep="\n  ")
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            golden_io.write(path, *made)
            print(f"{path}: {path.stat().st_size} bytes")
            print_evidence(made[1]["evidence"], "  ")
    return 1 if failed else 0
