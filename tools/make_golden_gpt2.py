#!/usr/bin/env python3
"""Makes tests/golden/gpt2_{forward_bias,forward_nobias,trajectory}.safetensors, the oracles of the GPTs.

Two oracles must agree before anything is written: transformers' GPT2LMHeadModel (with nanoGPT's exact GELU)
and gpt2_ref.py, both in float64. Goldens are float64 results rounded to f32, unless their name ends in .f32;
what f32 arithmetic costs is measured here and stored under "evidence", so that the bounds in the tests can be
derived from it. What each file holds is described in tools/README.md.

    make_golden_gpt2.py [--out DIR] [--only NAME]          write the files
    make_golden_gpt2.py --check [--out DIR] [--only NAME]  make them again, compare, exit 1 if they differ
"""

import dataclasses
import functools
import sys

import numpy as np
import torch
import transformers

import adamw_ref
import gpt2_names as names
import gpt2_ref as ref
from golden_make import (
    FROM_F32,
    FROM_F64,
    as_f32,
    brief,
    learnable_stream,
    main,
    metadata,
    rel,
    train,
    trajectory_golden,
    worst_by_class,
)


def hf_model(cfg, weights, dtype):
    config = transformers.GPT2Config(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.block_size,
        n_embd=cfg.n_embd,
        n_layer=cfg.n_layer,
        n_head=cfg.n_head,
        activation_function="gelu",  # exact; the default is the tanh form
        layer_norm_epsilon=cfg.norm_eps,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(config).to(dtype).train()
    model.loss_type = "ForCausalLM"  # what transformers would take, with a warning
    ours = {n: torch.tensor(w, dtype=dtype) for n, w in weights.items()}
    state = {n: t.contiguous() for n, t in names.hf_transposed(names.fuse_qkv(ours)).items()}
    state[names.HEAD] = state[names.EMBEDDING]
    missing = {n: torch.zeros_like(p) for n, p in model.state_dict().items() if n not in state}
    if cfg.bias and missing or not all(n.endswith(".bias") for n in missing):
        raise SystemExit(f"no weights for {sorted(missing)}")
    model.load_state_dict(state | missing, strict=True)  # without biases, theirs are zero
    if model.lm_head.weight is not model.transformer.wte.weight:
        raise SystemExit("transformers did not tie the head")
    return model


def hf_loss_and_grads(model, ids, targets):
    """(loss, logits, our name -> gradient); the loss is transformers' own in f32."""
    model.zero_grad()
    labels = torch.where(targets < 0, -100, targets).long()
    if next(model.parameters()).dtype == torch.float64:
        # transformers' own loss converts the logits to f32.
        logits = model(input_ids=ids.long(), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    else:
        out = model(input_ids=ids.long(), use_cache=False, labels=labels, shift_labels=labels)
        loss, logits = out.loss, out.logits
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    return loss.detach(), logits.detach(), names.split_qkv(names.hf_transposed(grads))


def random_weights(cfg, rng, scale_of):
    """All tensors random and non-zero, LayerNorm weights around one."""
    weights = {}
    for name, shape in ref.weight_shapes(cfg).items():
        norm_weight = len(shape) == 1 and name.endswith(".weight")
        weights[name] = ref.normal(rng, shape, scale_of(name, shape))
        if norm_weight:
            weights[name] = (1 + weights[name]).astype(np.float32)
    return weights


# ------------------------------------------------------------------------------------------------------------
# forward: logits, loss and every gradient of one batch


def forward_scale(name, shape):
    # Embeddings are small on purpose: only where the variance is near 1e-3 does the eps of LayerNorm move the
    # result by more than f32 rounding. c_fc is wide, so that GELU is met where its two forms differ most.
    if ".wte." in name or ".wpe." in name:
        return 0.02
    if len(shape) == 1:
        return 0.2
    wide = names.part_of(name)[1] in ("mlp.c_fc", "attn.c_q", "attn.c_k")
    return (2.0 if wide else 0.5) / shape[1] ** 0.5


def make_forward(seed, rows, cfg):
    rng = np.random.RandomState(seed)
    weights = random_weights(cfg, rng, forward_scale)
    ids = rng.randint(0, cfg.vocab_size, (rows, cfg.block_size)).astype(np.int32)
    ids[0, :2], ids[1, 0] = (0, 0), cfg.vocab_size - 1  # a repeated token, both ends of the table
    targets = rng.randint(0, cfg.vocab_size, (rows, cfg.block_size)).astype(np.int32)
    targets[0, 3:6], targets[1, 0], targets[1, -1] = -1, -1, -1

    t_ids, t_targets = torch.tensor(ids), torch.tensor(targets)
    results = {}
    for dtype in (torch.float64, torch.float32):
        w = ref.to_torch(weights, dtype)
        reference = (*ref.loss_and_grads(w, t_ids, t_targets, cfg), {n: p.grad for n, p in w.items()})
        results[dtype] = (hf_loss_and_grads(hf_model(cfg, weights, dtype), t_ids, t_targets), reference)

    (loss, logits, grads), (r_loss, r_logits, r_grads) = results[torch.float64]
    agree = {"loss": rel(r_loss, loss), "logits": rel(r_logits, logits)}
    # Keys' biases move every score of a query alike, so their gradient is zero but for rounding.
    dead = {n for n in weights if n.endswith("attn.c_k.bias")}
    agree |= {f"grad.{n}": rel(r_grads[n], grads[n]) for n in weights if n not in dead}
    if not max(agree.values()) < 1e-10:
        raise SystemExit(f"the two float64 oracles disagree: {agree}")
    largest_dead = max((g[n].abs().max().item() for n in dead for g in (grads, r_grads)), default=0.0)
    if largest_dead > 1e-15 or not all((grads[n] != 0).any() for n in weights):
        raise SystemExit(f"a gradient is zero, or that of a key bias is not ({largest_dead:.2g})")

    evidence = {"oracles_f64_max_norm": brief(max(agree.values()))}
    for i, who in enumerate(("transformers", "reference")):
        f32 = results[torch.float32][i]
        evidence[f"f32_minus_f64_{who}"] = {
            "loss_abs": brief((f32[0].double() - loss).abs()),
            "logits": brief(rel(f32[1], logits)),
            "gradients": worst_by_class({n: rel(f32[2][n], grads[n]) for n in weights if n not in dead}),
        }
        if dead:
            evidence[f"f32_minus_f64_{who}"]["key_bias_gradient_abs"] = brief(
                max(f32[2][n].abs().max() for n in dead)
            )
    evidence["mutants"] = forward_mutants(cfg, weights, t_ids, t_targets, logits, grads, dead)

    tensors = dict(weights)
    tensors |= {"ids": ids, "targets": targets, "logits": as_f32(logits), "loss": as_f32(loss).reshape(1)}
    tensors |= {f"grad.{n}": np.zeros_like(weights[n]) if n in dead else as_f32(g) for n, g in grads.items()}
    return tensors, metadata(__file__, cfg, seed, evidence)


def forward_mutants(cfg, weights, ids, targets, logits, grads, dead):
    """What usual porting mistakes do to this golden, as a share of the max-norm: bounds must lie below."""

    def changed(**changes):
        return dataclasses.replace(cfg, **changes)

    swapped, no_positions, bias_lost = dict(weights), dict(weights), dict(weights)
    for i in range(cfg.n_layer):
        for kind in ("weight", "bias") if cfg.bias else ("weight",):
            k, v = (f"transformer.h.{i}.attn.{part}.{kind}" for part in ("c_k", "c_v"))
            swapped[k], swapped[v] = weights[v], weights[k]
    no_positions["transformer.wpe.weight"] = np.zeros_like(weights["transformer.wpe.weight"])
    last_bias = "transformer.ln_f.bias"
    bias_lost[last_bias] = np.zeros(cfg.n_embd, np.float32)
    head = torch.tensor(weights[names.EMBEDDING], dtype=torch.float64)
    cases = {
        "gelu_tanh": (weights, cfg, {"activation": ref.gelu_tanh}),
        "relu": (weights, cfg, {"activation": torch.relu}),
        "norm_eps_1e-6": (weights, changed(norm_eps=1e-6), {}),
        "norm_eps_1e-12": (weights, changed(norm_eps=1e-12), {}),
        "no_positions": (no_positions, cfg, {}),
        "positions_from_one": (weights, cfg, {"first_position": 1}),
        "keys_and_values_swapped": (swapped, cfg, {}),
        "one_head": (weights, changed(n_head=1), {}),
        "head_gradient_lost": (weights, cfg, {"head": head}),
    }
    if cfg.bias:
        cases["last_norm_bias_lost"] = (bias_lost, cfg, {})
    table = {}
    for case, (mutant_weights, mutant_cfg, mistakes) in cases.items():
        w = ref.to_torch(mutant_weights, torch.float64)
        _, got = ref.loss_and_grads(w, ids, targets, mutant_cfg, **mistakes)
        worst = max(rel(w[n].grad, grads[n]) for n in w if n not in dead)
        table[case] = {"logits": brief(rel(got, logits)), "worst_gradient": brief(worst)}
    return table


# ------------------------------------------------------------------------------------------------------------
# trajectory: 20 optimizer steps from random non-zero weights

PLAIN = adamw_ref.NanoGptAdamW(lr_matrix=1e-2, lr_embedding=1e-2, lr_head=1e-2, beta1=0.9, beta2=0.95)
TRAJECTORY_VARIANTS = {
    "plain": PLAIN,
    "decay_clip": dataclasses.replace(PLAIN, weight_decay=0.1, clip_norm=1.0),
}


def make_trajectory():
    seed, steps, rows = 20221228, 20, 4
    cfg = ref.Config(n_layer=2, n_head=2, n_embd=12, vocab_size=40, block_size=24, bias=True)
    rng = np.random.RandomState(seed)
    weights = random_weights(cfg, rng, lambda name, shape: 0.1)
    stream = learnable_stream(rng, steps * rows * cfg.block_size + 1, cfg.vocab_size)
    ids = stream[:-1].reshape(steps, rows, cfg.block_size)
    targets = stream[1:].reshape(steps, rows, cfg.block_size)

    def run(opt, who, dtype, written_out):
        if who == "transformers":
            net = hf_model(cfg, weights, dtype)
            w = dict(net.named_parameters())
            step = functools.partial(hf_loss_and_grads, net)
        else:
            w = ref.to_torch(weights, dtype)
            step = functools.partial(reference_step, w)
        return train(w, ids, targets, opt, lambda *batch: step(*batch)[0], written_out)

    def reference_step(w, step_ids, step_targets):
        return ref.loss_and_grads(w, step_ids, step_targets, cfg)

    tensors = dict(weights) | {"ids": ids, "targets": targets, "stream": stream}
    evidence = {}
    mistakes = adamw_ref.MISTAKES | {"decay_all": {"decay_all": True}}
    for variant, opt in TRAJECTORY_VARIANTS.items():
        results, evidence[variant] = trajectory_golden(opt, functools.partial(run, opt), mistakes)
        tensors |= {f"{variant}.{n}": x for n, x in results.items()}
    optimizers = {name: dataclasses.asdict(opt) for name, opt in TRAJECTORY_VARIANTS.items()}
    return tensors, metadata(__file__, cfg, seed, evidence, optimizer=optimizers)


# ------------------------------------------------------------------------------------------------------------

# Heads of 10: no multiple of 16, and a row of 30 is none of 4 either.
WITH_BIAS = ref.Config(n_layer=2, n_head=3, n_embd=30, vocab_size=97, block_size=24, bias=True)
NO_BIAS = ref.Config(n_layer=2, n_head=2, n_embd=20, vocab_size=61, block_size=16, bias=False)
MAKERS = {
    "forward_bias": functools.partial(make_forward, 20240523, 2, WITH_BIAS),
    "forward_nobias": functools.partial(make_forward, 20240524, 3, NO_BIAS),
    "trajectory": make_trajectory,
}


def tolerance_of(golden):
    """Name -> allowed max-norm error in --check; None is bit equality."""

    def of(name):
        if name in ("ids", "targets", "stream") or name.startswith("transformer."):
            return None
        return FROM_F32 if name.endswith(".f32") or ".final." in name else FROM_F64

    return of


if __name__ == "__main__":
    sys.exit(main(__doc__, "gpt2", MAKERS, tolerance_of))
