"""AdamW in qtrain's order of arithmetic, and how far an f32 step may lie from an exact one."""

import dataclasses

import torch

import nanochat_ref as ref


@dataclasses.dataclass(frozen=True)
class AdamW:
    lr_matrix: float
    lr_embedding: float
    lr_head: float
    beta1: float = 0.8
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # 0: no clipping

    def lr(self, name):
        return {ref.MATRIX: self.lr_matrix, ref.EMBEDDING: self.lr_embedding, ref.HEAD: self.lr_head}[
            ref.group_of(name)
        ]

    def decay(self, w):
        """Weight decay of a parameter."""
        return self.weight_decay

    def torch_optimizer(self, weights):
        groups = [
            {"params": [w], "lr": self.lr(n), "weight_decay": self.decay(w)} for n, w in weights.items()
        ]
        return torch.optim.AdamW(groups, betas=(self.beta1, self.beta2), eps=self.eps, foreach=False)


@dataclasses.dataclass(frozen=True)
class NanoGptAdamW(AdamW):
    """nanoGPT's: one rate for all, and only tensors of at least decay_min_dims dimensions decay."""

    decay_min_dims: int = 2

    def lr(self, name):
        return self.lr_matrix

    def decay(self, w):
        return self.weight_decay if w.dim() >= self.decay_min_dims else 0.0


# Flags of written_out_step.
MISTAKES = {
    "decay_after": {"decay_after": True},
    "plain_eps": {"plain_eps": True},
    "correct": {"correct": False},
}


def written_out_step(
    opt, lr, t, w, g, m, v, decay_after=False, plain_eps=False, correct=True, decay_all=False
):
    """One step in qtrain's order; returns (w, m, v). The flags are mistakes, to see what they would cost."""
    m = opt.beta1 * m + (1 - opt.beta1) * g
    v = opt.beta2 * v + (1 - opt.beta2) * g * g
    c1 = 1 - opt.beta1**t if correct else 1.0
    c2 = (1 - opt.beta2**t) ** 0.5 if correct else 1.0
    decay = 1 - lr * (opt.weight_decay if decay_all else opt.decay(w))
    step = -lr * c2 / c1 * m / (v.sqrt() + (1.0 if plain_eps else c2) * opt.eps)
    return ((w + step) * decay if decay_after else w * decay + step), m, v


def step_bound(opt, lr, t, w, m, v, grad_error):
    """How far one f32 AdamW step may lie from the float64 one if every gradient element is off by grad_error.

    With U = mhat / D and D = sqrt(vhat) + eps, a change d of g moves mhat by a*d, a = (1-b1)/c1, and D by at
    most b*d, b = sqrt((1-b2)/c2). So |dU| <= (a + b*|U'|) * d/D, and |U'| <= |U| + |dU| gives the quotient
    below. It is capped by twice the largest |U| there is, a/b * t. The last term is rounding: of w, and of a
    few operations on U whose terms may cancel. m and v are those after the step.
    """
    c1, c2 = 1 - opt.beta1**t, 1 - opt.beta2**t
    a, b = (1 - opt.beta1) / c1, ((1 - opt.beta2) / c2) ** 0.5
    largest = a / b * t
    denominator = (v / c2).sqrt() + opt.eps
    update = (m / c1).abs() / denominator
    relative = grad_error / denominator
    moved = (a + b * update) * relative / (1 - b * relative).clamp_min(1e-30)
    return lr * moved.clamp_max(2 * largest) + 2.0**-23 * (w.abs() + 4 * lr * largest)


def moment_bounds(opt, g, m, v, grad_error):
    """The same for the moments (m, v after the step); rounding of terms that may cancel in m, not in v."""
    dm = (1 - opt.beta1) * grad_error + 2.0**-22 * (m.abs() + g.abs())
    dv = (1 - opt.beta2) * (2 * g.abs() + grad_error) * grad_error + 2.0**-22 * v
    return dm, dv
