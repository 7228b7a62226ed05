"""What critic and generator minimise, gradient penalties, and the two phases of a step.

Losses are functions of critic logits (B,) at real and generated samples and return a mean over samples. Real sample
and generated sample at one position of the batch are a pair; they share their class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kinfolk.contract import Batch, Loss, Phase, Progress
from kinfolk_families.gan.config import PenaltyConfig
from kinfolk_families.gan.model import GAN


@dataclass(frozen=True, slots=True)
class AdversarialLoss:
    """The game: one function for each player."""

    critic: Callable[[Tensor, Tensor], Tensor]  # real logits (B,), fake logits (B,) -> ()
    generator: Callable[[Tensor], Tensor]  # margin (B,): fake logits, less those of the real partner if paired -> ()
    paired: bool  # whether the generator is judged against real samples


def non_saturating_critic(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(g))), mean over samples. (B,), (B,) -> ()

    Source: Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661, eq. 1.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def relativistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x) - D(g)), mean over pairs. (B,), (B,) -> ()

    Source: Jolicoeur-Martineau, 2019, https://arxiv.org/abs/1807.00734; as in R3GAN, https://arxiv.org/abs/2501.05441.
    """
    return F.softplus(-(real - fake)).mean()


def softplus_generator(margin: Tensor) -> Tensor:
    """-log sigmoid(margin), mean over samples. (B,) -> ()

    On D(g) it is the non-saturating loss (Goodfellow et al., 2014, Sec. 3), on D(g) - D(x) the relativistic one.
    """
    return F.softplus(-margin).mean()


LOSSES: Mapping[str, AdversarialLoss] = {
    "non_saturating": AdversarialLoss(non_saturating_critic, softplus_generator, paired=False),
    "relativistic": AdversarialLoss(relativistic_critic, softplus_generator, paired=True),
}


def squared_gradient_norm(x: Tensor, logits: Tensor) -> Tensor:
    """Mean over samples of |d logit / d x|^2; ``x`` must require grad. (B, *), (B,) -> ()

    Times gamma/2 it is R1 at real samples and R2 at generated ones.
    Source: Mescheder et al., 2018, https://arxiv.org/abs/1801.04406, eq. 9 and 10.
    """
    (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)  # (B, *)
    return grad.square().flatten(1).sum(1).mean()


def penalty_weight(penalty: PenaltyConfig, step: int, samples_seen: int) -> float:
    """Factor of the squared gradient norm in this step: gamma/2, times the interval when lazy; 0 between its turns.

    Source: Karras et al., 2020, https://arxiv.org/abs/1912.04958, Appendix B (lazy regularisation; their change of
    Adam's constants to the interval is left to the recipe).
    """
    if step % penalty.every_steps:
        return 0.0
    return penalty.every_steps * penalty.gamma_at(samples_seen) / 2


def judge(gan: GAN, x: Tensor, label: Tensor | None) -> Tensor:
    """Critic logits, for both players the one way to the critic. (B, *), (B,) or None -> (B,)"""
    return gan.critic(x, gan.condition(label))


def critic_loss(gan: GAN, batch: Batch, z: Tensor, progress: Progress) -> Loss:
    """Adversarial loss of the critic plus its penalties, for given noise z (B, Z).

    Logs ``logit_gap``, the mean of D(x) - D(g), and of each penalty due in this step the mean squared gradient norm.
    """
    weights = {p.kind: penalty_weight(p, progress.step, progress.samples_seen) for p in gan.config.penalties}
    with torch.no_grad():
        fake = gan.generator(z, gan.condition(batch.label))
    points = {"r1": batch.x.detach().requires_grad_(), "r2": fake.requires_grad_()}  # where each penalty is taken
    logits = {kind: judge(gan, x, batch.label) for kind, x in points.items()}  # (B,) each
    norms = {kind: squared_gradient_norm(points[kind], logits[kind]) for kind, weight in weights.items() if weight}
    value = LOSSES[gan.config.loss].critic(logits["r1"], logits["r2"])
    for kind, norm in norms.items():
        value = value + weights[kind] * norm
    gap = (logits["r1"] - logits["r2"]).mean().detach()
    return Loss(value, {"logit_gap": gap, **{kind: norm.detach() for kind, norm in norms.items()}})


def generator_loss(gan: GAN, batch: Batch, z: Tensor) -> Loss:
    """Adversarial loss of the generator, for given noise z (B, Z). Logs ``fake_logit``, the mean of D(g)."""
    loss = LOSSES[gan.config.loss]
    fake = judge(gan, gan.generator(z, gan.condition(batch.label)), batch.label)  # (B,)
    margin = fake - _logits_of_data(gan, batch) if loss.paired else fake
    return Loss(loss.generator(margin), {"fake_logit": fake.mean().detach()})


@torch.no_grad()
def _logits_of_data(gan: GAN, batch: Batch) -> Tensor:
    return judge(gan, batch.x, batch.label)


def _critic_turn(gan: GAN, batch: Batch, progress: Progress) -> Loss:
    return critic_loss(gan, batch, gan.noise(len(batch), progress.generator), progress)


def _generator_turn(gan: GAN, batch: Batch, progress: Progress) -> Loss:
    return generator_loss(gan, batch, gan.noise(len(batch), progress.generator))


def phases(gan: GAN) -> Sequence[Phase]:
    """The critic's turn, then the generator's, in every step and each with fresh noise."""
    config = gan.config
    penalised = bool(config.penalties)
    return [
        Phase("critic", gan.critic, partial(_critic_turn, gan), config.critic_optimizer, double_backward=penalised),
        Phase("generator", gan.generator, partial(_generator_turn, gan), config.generator_optimizer),
    ]
