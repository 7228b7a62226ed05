"""What keeps the critic smooth: penalties on its gradient, and clipped weights. P packs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kinfolk_families.gan.config import PenaltyConfig


def input_gradient(x: Tensor, logits: Tensor) -> Tensor:
    """d logit / d x, one row for each pack; ``x`` must require grad. (P, *), (P,) -> (P, D)"""
    (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)  # (P, *)
    return grad.flatten(1)


def squared_gradient_norm(x: Tensor, logits: Tensor) -> Tensor:
    """Mean over packs of |d logit / d x|^2; ``x`` must require grad. (P, *), (P,) -> ()

    Times gamma/2 it is R1 at real samples and R2 at generated ones.
    Source: Mescheder et al., 2018, https://arxiv.org/abs/1801.04406, eq. 9 and 10.
    """
    return input_gradient(x, logits).square().sum(1).mean()


def unit_norm_distance(x: Tensor, logits: Tensor) -> Tensor:
    """Mean over packs of (|d logit / d x| - 1)^2; ``x`` must require grad. (P, *), (P,) -> ()

    Source: Gulrajani et al., 2017, https://arxiv.org/abs/1704.00028, eq. 3.
    """
    return (input_gradient(x, logits).norm(dim=1) - 1).square().mean()


def between(real: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """Points on the lines between pairs, ``weight`` of the way to the generated end. (P, *), (P, *), (P,) -> (P, *)"""
    return torch.lerp(real, fake.to(real.dtype), weight.view(-1, *[1] * (real.ndim - 1)))


def penalty_weight(penalty: PenaltyConfig, step: int, samples_seen: int) -> float:
    """Factor of what is penalised in this step: gamma, halved for r1 and r2, times the interval when lazy; else 0.

    Source: Karras et al., 2020, https://arxiv.org/abs/1912.04958, Appendix B (lazy regularisation; their change of
    Adam's constants to the interval is left to the recipe).
    """
    if step % penalty.every_steps:
        return 0.0
    half = 0.5 if penalty.kind in ("r1", "r2") else 1.0
    return half * penalty.every_steps * penalty.gamma_at(samples_seen)


def due(penalties: Sequence[PenaltyConfig], step: int, samples_seen: int) -> dict[str, float]:
    """Factors by kind, of the penalties that weigh something in this step."""
    weights = {each.kind: penalty_weight(each, step, samples_seen) for each in penalties}
    return {kind: weight for kind, weight in weights.items() if weight}


@torch.no_grad()
def clip_weights(module: nn.Module, bound: float) -> None:
    """Every weight back between -bound and bound.

    Source: Arjovsky et al., 2017, https://arxiv.org/abs/1701.07875, algorithm 1.
    """
    for parameter in module.parameters():
        parameter.clamp_(-bound, bound)
