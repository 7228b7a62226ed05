"""The games: what critic and generator minimise, as functions of the critic's logits.

P packs: what the critic judges as one, a single sample unless samples are packed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AdversarialLoss:
    """The game: one function for each player."""

    critic: Callable[[Tensor, Tensor], Tensor]  # real logits (P,), fake logits (P,) -> ()
    generator: Callable[[Tensor], Tensor]  # margin (P,): fake logits, less those of the real partner if paired -> ()
    paired: bool = False  # whether a sample is judged against its partner
    boundary: float = 0.0  # logit between what the critic takes for real and for generated, where it is not paired
    generator_on_data: Callable[[Tensor], Tensor] | None = None  # real logits (P,) -> (), of a foreseen critic alone


def cross_entropy_critic(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(g))), mean over packs. (P,), (P,) -> ()

    Source: Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661, eq. 1.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def saturating_generator(margin: Tensor) -> Tensor:
    """log(1 - sigmoid(D(g))), mean over packs: flat where the critic is sure. (P,) -> ()

    Source: Goodfellow et al., 2014, eq. 1.
    """
    return -F.softplus(margin).mean()


def saturating_on_data(real: Tensor) -> Tensor:
    """log sigmoid(D(x)), mean over packs: the rest of the objective, which a generator moves through a foreseen critic.

    (P,) -> (). Source: Metz et al., 2017, https://arxiv.org/abs/1611.02163, eq. 1 and 10.
    """
    return -F.softplus(-real).mean()


def relativistic_critic(real: Tensor, fake: Tensor) -> Tensor:
    """-log sigmoid(D(x) - D(g)), mean over pairs. (P,), (P,) -> ()

    Source: Jolicoeur-Martineau, 2019, https://arxiv.org/abs/1807.00734; as in R3GAN, https://arxiv.org/abs/2501.05441.
    """
    return F.softplus(-(real - fake)).mean()


def softplus_generator(margin: Tensor) -> Tensor:
    """-log sigmoid(margin), mean over packs. (P,) -> ()

    On D(g) it is the non-saturating loss (Goodfellow et al., 2014, Sec. 3), on D(g) - D(x) the relativistic one.
    """
    return F.softplus(-margin).mean()


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(g)), mean over packs. (P,), (P,) -> ()

    Source: Lim and Ye, 2017, https://arxiv.org/abs/1705.02894; as in SN-GAN, https://arxiv.org/abs/1802.05957, eq. 16.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def least_squares_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Half of (D(x) - 1)^2 + D(g)^2, mean over packs. (P,), (P,) -> ()

    Source: Mao et al., 2017, https://arxiv.org/abs/1611.04076, eq. 9.
    """
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def least_squares_generator(margin: Tensor) -> Tensor:
    """Half of (D(g) - 1)^2, mean over packs. (P,) -> ()

    Source: Mao et al., 2017, eq. 9.
    """
    return 0.5 * (margin - 1).square().mean()


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """D(g) - D(x), mean over packs: of a critic with slope at most 1, minus a distance. (P,), (P,) -> ()

    Source: Arjovsky et al., 2017, https://arxiv.org/abs/1701.07875, eq. 2.
    """
    return fake.mean() - real.mean()


def linear_generator(margin: Tensor) -> Tensor:
    """-D(g), mean over packs. (P,) -> ()"""
    return -margin.mean()


LOSSES: Mapping[str, AdversarialLoss] = {
    "minimax": AdversarialLoss(cross_entropy_critic, saturating_generator, generator_on_data=saturating_on_data),
    "non_saturating": AdversarialLoss(cross_entropy_critic, softplus_generator),
    "hinge": AdversarialLoss(hinge_critic, linear_generator),
    "least_squares": AdversarialLoss(least_squares_critic, least_squares_generator, boundary=0.5),
    "wasserstein": AdversarialLoss(wasserstein_critic, linear_generator, generator_on_data=Tensor.mean),
    "relativistic": AdversarialLoss(relativistic_critic, softplus_generator, paired=True),
}
