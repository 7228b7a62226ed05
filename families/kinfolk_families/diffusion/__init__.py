"""Diffusion: a network learns to remove Gaussian noise at every level; sampling removes it from pure noise, in steps.

One denoiser ``D(x_t, sigma)`` serves every parametrisation and every solver: EDM and DDPM differ in what the network
predicts and at which noise levels it is trained, ancestral sampling, DDIM, Heun and DPM-Solver++ in how they step.

Sources: Karras et al., 2022 (EDM), https://arxiv.org/abs/2206.00364; Ho et al., 2020 (DDPM),
https://arxiv.org/abs/2006.11239; Song et al., 2021 (DDIM), https://arxiv.org/abs/2010.02502; Lu et al., 2022
(DPM-Solver++), https://arxiv.org/abs/2211.01095.
"""

from kinfolk.contract import Family
from kinfolk_families.diffusion.config import DiffusionConfig, Options
from kinfolk_families.diffusion.losses import phases
from kinfolk_families.diffusion.model import build
from kinfolk_families.diffusion.sample import tasks

FAMILY = Family(
    name="diffusion",
    kinds=frozenset({"image", "vector"}),
    config=DiffusionConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
)
