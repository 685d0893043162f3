#!/usr/bin/env python3
"""Makes tests/golden/nanochat_{forward,trajectory,steps}.safetensors, the oracles of the nanochat model and
of AdamW.

Two oracles must agree before anything is written: transformers' NanoChatForCausalLM and nanochat_ref.py, both
in float64. Goldens are float64 results rounded to f32, unless their name ends in .f32; what f32 arithmetic
costs is measured here and stored under "evidence", so that the bounds in the tests can be derived from it.
What each file holds is described in tools/README.md.

    make_golden_nanochat.py [--out DIR] [--only NAME]          write the files
    make_golden_nanochat.py --check [--out DIR] [--only NAME]  make them again, compare, exit 1 if they differ
"""

import contextlib
import dataclasses
import functools
import sys

import numpy as np
import torch
from transformers.models.nanochat import modeling_nanochat as hf

import adamw_ref
import nanochat_ref as ref
from golden_make import (
    FROM_F32,
    FROM_F64,
    as_f32,
    brief,
    class_of,
    learnable_stream,
    main,
    metadata,
    rel,
    train,
    trajectory_golden,
    worst_by_class,
)

HF_PARTS = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

# The steps golden allows each f32 gradient element this share of its tensor's max-norm: four times what was
# observed.
GRAD_ERROR = 2e-6


def hf_name(name):
    if name == "transformer.wte.weight":
        return "model.embed_tokens.weight"
    if name == "lm_head.weight":
        return name
    _, _, layer, part, kind, _ = name.split(".")
    return f"model.layers.{layer}.{HF_PARTS[part + '.' + kind]}.weight"


@contextlib.contextmanager
def norms_in_own_dtype():
    """transformers computes RMSNorm in f32 whatever the model's dtype; for float64 that cast has to go."""
    original = hf.NanoChatRMSNorm.forward
    hf.NanoChatRMSNorm.forward = lambda self, x: self._norm(x)
    try:
        yield
    finally:
        hf.NanoChatRMSNorm.forward = original


def hf_model(cfg, weights, dtype):
    config = hf.NanoChatConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.n_embd,
        intermediate_size=4 * cfg.n_embd,
        num_hidden_layers=cfg.n_layer,
        num_attention_heads=cfg.n_head,
        num_key_value_heads=cfg.n_kv_head,
        max_position_embeddings=cfg.seq_len,
        rms_norm_eps=cfg.norm_eps,
        final_logit_softcapping=cfg.softcap,
        rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_base},
        tie_word_embeddings=False,
        # A padding id would silently zero the embedding gradient of that token (the default is 1).
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",  # eager attention rounds its softmax to f32
    )
    model = hf.NanoChatForCausalLM(config).to(dtype).train()
    state = {hf_name(n): torch.tensor(w, dtype=dtype) for n, w in weights.items()}
    model.load_state_dict(state, strict=True)
    return model


def hf_logits(model, ids):
    return model(input_ids=ids.long(), use_cache=False).logits


def hf_loss_and_grads(model, cfg, ids, targets):
    """(loss, logits, nanochat name -> gradient); the loss is transformers' own in f32."""
    model.zero_grad()
    labels = torch.where(targets < 0, -100, targets).long()
    if next(model.parameters()).dtype == torch.float64:
        # transformers' own loss converts the logits to f32.
        with norms_in_own_dtype():
            logits = hf_logits(model, ids)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    else:
        out = model(input_ids=ids.long(), use_cache=False, labels=labels, shift_labels=labels)
        loss, logits = out.loss, out.logits
    loss.backward()
    grads = {n: model.get_parameter(hf_name(n)).grad.clone() for n in ref.weight_shapes(cfg)}
    return loss.detach(), logits.detach(), grads


def random_tensor_scales(cfg, wte, qk, other, head):
    """Standard deviation of every weight when all are random and non-zero."""
    scales = {}
    for name, (_, n_in) in ref.weight_shapes(cfg).items():
        group = ref.group_of(name)
        factor = qk if ".c_q." in name or ".c_k." in name else other
        scales[name] = {ref.EMBEDDING: wte, ref.HEAD: head / n_in**0.5}.get(group, factor / n_in**0.5)
    return scales


# ------------------------------------------------------------------------------------------------------------
# forward: logits, loss and every gradient of one batch


def make_forward():
    seed, rows = 20251016, 2
    cfg = ref.Config(n_layer=2, n_embd=64, n_head=4, n_kv_head=2, vocab_size=97, seq_len=24)
    rng = np.random.RandomState(seed)
    # Embedding and query/key are small on purpose: only where the mean square is near 1e-3 does the eps of
    # RMSNorm move the result by more than f32 rounding. The head is large, so that the softcap bends.
    scales = random_tensor_scales(cfg, wte=0.03, qk=0.03, other=1.0, head=6.0)
    weights = {n: ref.normal(rng, s, scales[n]) for n, s in ref.weight_shapes(cfg).items()}
    ids = rng.randint(0, cfg.vocab_size, (rows, cfg.seq_len)).astype(np.int32)
    ids[0, :2], ids[1, 0] = (0, 0), cfg.vocab_size - 1  # a repeated token, both ends of the table
    targets = rng.randint(0, cfg.vocab_size, (rows, cfg.seq_len)).astype(np.int32)
    targets[0, 3:6], targets[1, 0], targets[1, -1] = -1, -1, -1

    t_ids, t_targets = torch.tensor(ids), torch.tensor(targets)
    results = {}
    for dtype in (torch.float64, torch.float32):
        loss, logits, grads = hf_loss_and_grads(hf_model(cfg, weights, dtype), cfg, t_ids, t_targets)
        w = ref.to_torch(weights, dtype)
        r_loss, r_logits, raw = ref.loss_and_grads(w, t_ids, t_targets, cfg)
        results[dtype] = (loss, logits, grads, r_loss, r_logits, {n: p.grad for n, p in w.items()}, raw)

    loss, logits, grads, r_loss, r_logits, r_grads, raw = results[torch.float64]
    agree = {"loss": rel(r_loss, loss), "logits": rel(r_logits, logits)}
    agree |= {f"grad.{n}": rel(r_grads[n], grads[n]) for n in weights}
    if not max(agree.values()) < 1e-10:
        raise SystemExit(f"the two float64 oracles disagree: {agree}")
    if not (raw.abs().max() > 18 and all((g != 0).any() for g in grads.values())):
        raise SystemExit("the softcap is not exercised, or a gradient is zero")

    evidence = {"oracles_f64_max_norm": brief(max(agree.values())), "raw_logit_max": brief(raw.abs().max())}
    for i, who in ((0, "transformers"), (3, "reference")):
        f32 = results[torch.float32][i : i + 3]
        evidence[f"f32_minus_f64_{who}"] = {
            "loss_abs": brief((f32[0].double() - loss).abs()),
            "logits": brief(rel(f32[1], logits)),
            "gradients": worst_by_class({n: rel(f32[2][n], grads[n]) for n in weights}),
        }
    evidence["mutants"] = forward_mutants(cfg, weights, t_ids, t_targets, logits, grads)

    tensors = dict(weights)
    tensors |= {"ids": ids, "targets": targets, "logits": as_f32(logits), "loss": as_f32(loss).reshape(1)}
    tensors |= {f"grad.{n}": as_f32(g) for n, g in grads.items()}
    cos, sin = ref.rope_tables(cfg, cfg.seq_len)
    tensors |= {"rope.cos": cos.numpy(), "rope.sin": sin.numpy()}
    return tensors, metadata(__file__, cfg, seed, evidence)


def forward_mutants(cfg, weights, ids, targets, logits, grads):
    """What usual porting mistakes do to this golden, as a share of the max-norm: bounds must lie below."""
    cos, sin = ref.rope_tables(cfg, cfg.seq_len)
    exponent = torch.arange(0, cfg.head_dim, 2, dtype=torch.float64) / cfg.head_dim
    angle = torch.outer(torch.arange(cfg.seq_len, dtype=torch.float64), cfg.rope_base**-exponent)
    w0 = {n: np.array(w) for n, w in weights.items()}
    for i in range(cfg.n_layer):  # query heads dealt to key/value heads in turn instead of in groups
        name = f"transformer.h.{i}.attn.c_q.weight"
        order = np.arange(cfg.n_head).reshape(cfg.n_kv_head, -1).T.ravel()
        w0[name] = w0[name].reshape(cfg.n_head, -1)[order].reshape(w0[name].shape)
    cases = {
        "rope_plus_theta": (weights, cfg, (cos, -sin)),
        "rope_tables_bf16": (weights, cfg, (cos.bfloat16(), sin.bfloat16())),
        "rope_tables_from_f64 (allowed)": (weights, cfg, (angle.cos(), angle.sin())),
        "norm_eps_1e-6": (weights, dataclasses.replace(cfg, norm_eps=1e-6), None),
        "norm_eps_0": (weights, dataclasses.replace(cfg, norm_eps=0.0), None),
        "no_softcap": (weights, dataclasses.replace(cfg, softcap=0.0), None),
        "query_heads_interleaved": (w0, cfg, None),
    }
    table = {}
    for case, (mutant_weights, mutant_cfg, tables) in cases.items():
        w = ref.to_torch(mutant_weights, torch.float64)
        _, got, _ = ref.loss_and_grads(w, ids, targets, mutant_cfg, tables)
        worst = max(rel(w[n].grad, grads[n]) for n in w)
        table[case] = {"logits": brief(rel(got, logits)), "worst_gradient": brief(worst)}
    return table


# ------------------------------------------------------------------------------------------------------------
# trajectory: 20 optimizer steps from random non-zero weights

TRAJECTORY_VARIANTS = {
    "plain": adamw_ref.AdamW(lr_matrix=3e-3, lr_embedding=1e-2, lr_head=1e-2),
    "decay_clip": adamw_ref.AdamW(
        lr_matrix=3e-3, lr_embedding=1e-2, lr_head=1e-2, weight_decay=0.1, clip_norm=1.0
    ),
}


def make_trajectory():
    seed, steps, rows = 4346536, 20, 4
    cfg = ref.Config(n_layer=2, n_embd=64, n_head=2, n_kv_head=2, vocab_size=64, seq_len=32)
    rng = np.random.RandomState(seed)
    scales = {n: 0.1 if ref.group_of(n) == ref.MATRIX else 0.05 for n in ref.weight_shapes(cfg)}
    weights = {n: ref.normal(rng, s, scales[n]) for n, s in ref.weight_shapes(cfg).items()}
    stream = learnable_stream(rng, steps * rows * cfg.seq_len + 1, cfg.vocab_size)
    ids = stream[:-1].reshape(steps, rows, cfg.seq_len)
    targets = stream[1:].reshape(steps, rows, cfg.seq_len)

    def run(opt, who, dtype, written_out):
        if who == "transformers":
            net = hf_model(cfg, weights, dtype)
            w = {n: net.get_parameter(hf_name(n)) for n in weights}
            step = functools.partial(hf_loss_and_grads, net, cfg)
        else:
            w = ref.to_torch(weights, dtype)
            step = functools.partial(reference_step, w)
        return train(w, ids, targets, opt, lambda *batch: step(*batch)[0], written_out)

    def reference_step(w, step_ids, step_targets):
        return ref.loss_and_grads(w, step_ids, step_targets, cfg)

    tensors = dict(weights) | {"ids": ids, "targets": targets, "stream": stream}
    evidence = {}
    for variant, opt in TRAJECTORY_VARIANTS.items():
        results, evidence[variant] = trajectory_golden(opt, functools.partial(run, opt), adamw_ref.MISTAKES)
        tensors |= {f"{variant}.{n}": x for n, x in results.items()}
    optimizers = {name: dataclasses.asdict(opt) for name, opt in TRAJECTORY_VARIANTS.items()}
    return tensors, metadata(__file__, cfg, seed, evidence, optimizer=optimizers)


# ------------------------------------------------------------------------------------------------------------
# steps: one step at a time from nanochat's zero initialisation


def make_steps():
    seed, steps, rows = 1610612736, 5, 2
    cfg = ref.Config(n_layer=2, n_embd=16, n_head=2, n_kv_head=2, vocab_size=37, seq_len=12)
    opt = adamw_ref.AdamW(lr_matrix=3e-3, lr_embedding=0.2, lr_head=4e-3, eps=1e-10)
    rng = np.random.RandomState(seed)
    weights = ref.nanochat_init(cfg, rng)
    ids = rng.randint(0, cfg.vocab_size, (steps, rows, cfg.seq_len)).astype(np.int32)
    targets = rng.randint(0, cfg.vocab_size, (steps, rows, cfg.seq_len)).astype(np.int32)
    tensors = {"ids": ids, "targets": targets}
    zero_until = {n: first_nonzero_step(n) for n in weights}

    state = {n: (w, np.zeros_like(w), np.zeros_like(w)) for n, w in weights.items()}
    losses, worst_grad, worst_ratio = [], {}, {}
    for t in range(steps + 1):
        for n, (w, m, v) in state.items():
            tensors |= {f"state{t}.{n}": w, f"state{t}.m.{n}": m, f"state{t}.v.{n}": v}
        if t == steps:
            break
        after = {}
        for dtype in (torch.float64, torch.float32):
            w = ref.to_torch({n: s[0] for n, s in state.items()}, dtype)
            optimizer = opt.torch_optimizer(w)
            for n, p in w.items():
                m, v = (torch.tensor(x, dtype=dtype) for x in state[n][1:])
                optimizer.state[p] = {"step": torch.tensor(float(t)), "exp_avg": m, "exp_avg_sq": v}
            loss = ref.loss_and_grads(w, torch.tensor(ids[t]), torch.tensor(targets[t]), cfg)[0]
            optimizer.step()
            moments = {n: optimizer.state[p] for n, p in w.items()}
            after[dtype] = (loss, w, moments)

        loss, w, moments = after[torch.float64]
        losses.append(loss.item())
        for n, p in w.items():
            grad32 = after[torch.float32][1][n].grad
            expect_zero = t < zero_until[n]
            if bool((p.grad == 0).all()) != expect_zero or bool((grad32 == 0).all()) != expect_zero:
                raise SystemExit(f"step {t}: gradient of {n} is {'not ' if expect_zero else ''}all zero")
            tensors[f"grad{t}.{n}"] = as_f32(p.grad)
            m, v = moments[n]["exp_avg"], moments[n]["exp_avg_sq"]
            before_w = torch.tensor(state[n][0]).double()
            before_m, before_v = (torch.tensor(x).double() for x in state[n][1:])
            written = adamw_ref.written_out_step(opt, opt.lr(n), t + 1, before_w, p.grad, before_m, before_v)
            if not max(rel(a, b) for a, b in zip(written, (p, m, v))) < 1e-10:
                raise SystemExit(f"step {t}: the written-out AdamW disagrees with torch on {n}")
            grad_error = GRAD_ERROR * p.grad.abs().max().item()
            bounds = (
                adamw_ref.step_bound(opt, opt.lr(n), t + 1, p.detach(), m, v, grad_error),
                *adamw_ref.moment_bounds(opt, p.grad, m, v, grad_error),
            )
            w32, s32 = after[torch.float32][1][n].detach(), after[torch.float32][2][n]
            got = (w32, s32["exp_avg"], s32["exp_avg_sq"])
            key = class_of(n)
            worst_grad[key] = max(worst_grad.get(key, 0.0), rel(grad32, p.grad))
            for bound, x32, x in zip(bounds, got, (p.detach(), m, v)):
                ratio = ((x32.double() - x).abs() / bound.clamp_min(1e-300)).max().item()
                worst_ratio[key] = max(worst_ratio.get(key, 0.0), ratio)
        state = {
            n: (as_f32(p), as_f32(moments[n]["exp_avg"]), as_f32(moments[n]["exp_avg_sq"]))
            for n, p in w.items()
        }

    if abs(losses[0] - np.log(cfg.vocab_size)) > 1e-12 or max(worst_ratio.values()) > 1:
        raise SystemExit(f"first loss {losses[0]}, f32 step over its bound {worst_ratio}")
    tensors["loss"] = np.array(losses, np.float32)
    evidence = {
        "f32_minus_f64_gradient": {k: brief(e) for k, e in worst_grad.items()},
        "f32_step_error_over_bound": {k: brief(e) for k, e in worst_ratio.items()},
    }
    more = {
        "optimizer": dataclasses.asdict(opt),
        "first_nonzero_gradient": zero_until,
        "grad_error": str(GRAD_ERROR),
    }
    return tensors, metadata(__file__, cfg, seed, evidence, **more)


def first_nonzero_step(name):
    """The step at which a weight first gets a gradient, when head and c_proj start at zero."""
    if name == "lm_head.weight":
        return 0
    return 1 if name.endswith("c_proj.weight") or ref.group_of(name) == ref.EMBEDDING else 2


# ------------------------------------------------------------------------------------------------------------

MAKERS = {"forward": make_forward, "trajectory": make_trajectory, "steps": make_steps}


def tolerance_of(golden):
    """Name -> allowed max-norm error in --check; None is bit equality."""

    def of(name):
        if (
            name in ("ids", "targets", "stream")
            or (golden != "steps" and name in inputs)
            or name.startswith("state0.")
        ):
            return None
        if name.endswith(".f32") or name.startswith("rope.") or ".final." in name or name.startswith("state"):
            return FROM_F32
        return FROM_F64

    inputs = {"transformer.wte.weight", "lm_head.weight"}
    inputs |= {f"transformer.h.{i}.{part}.weight" for i in range(2) for part in HF_PARTS}
    return of


if __name__ == "__main__":
    sys.exit(main(__doc__, "nanochat", MAKERS, tolerance_of))
