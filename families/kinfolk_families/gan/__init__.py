"""Generative adversarial networks: a generator makes samples in one pass, a critic learns to tell them from data.

The two train against each other in the two phases of a step. What is chosen in a recipe is the game (non-saturating
or relativistic), the gradient penalties that keep the critic smooth and the game convergent, and the networks (DCGAN's
strided convolutions, R3GAN's residual blocks, or fully connected layers). Sources: Goodfellow et al., 2014,
https://arxiv.org/abs/1406.2661; Mescheder et al., 2018, https://arxiv.org/abs/1801.04406 (R1, R2); Huang et al., 2024,
https://arxiv.org/abs/2501.05441 (R3GAN).
"""

from kinfolk.contract import Family
from kinfolk_families.gan.config import GANConfig, GANOptions
from kinfolk_families.gan.losses import phases
from kinfolk_families.gan.model import build
from kinfolk_families.gan.sample import tasks

FAMILY = Family(
    name="gan",
    kinds=frozenset({"image", "vector"}),
    config=GANConfig,
    options=GANOptions,
    build=build,
    phases=phases,
    tasks=tasks,
)
