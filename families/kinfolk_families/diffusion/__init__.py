"""Diffusion: a network learns to remove Gaussian noise at every level; sampling removes it from pure noise, in steps.

One denoiser ``D(x_t, sigma)`` serves every parametrisation and every solver: EDM, DDPM and flow matching differ in
what the network predicts and at which noise levels it is trained, ancestral sampling, DDIM, Heun and DPM-Solver++ in
how they step. The same denoiser, integrated as a flow, gives the likelihood. On the latents of a registered first stage
it is latent diffusion; over a registered model with few trained weights it is a LoRA.

Sources: Karras et al., 2022 (EDM), https://arxiv.org/abs/2206.00364; Ho et al., 2020 (DDPM),
https://arxiv.org/abs/2006.11239; Lipman et al., 2023 (flow matching), https://arxiv.org/abs/2210.02747; Song et al.,
2021 (DDIM), https://arxiv.org/abs/2010.02502; Lu et al., 2022 (DPM-Solver++), https://arxiv.org/abs/2211.01095; Song et
al., 2021 (probability flow), https://arxiv.org/abs/2011.13456.
"""

from kinfolk.contract import FIRST_STAGE, Family
from kinfolk_families.diffusion.config import DiffusionConfig, Options
from kinfolk_families.diffusion.losses import phases
from kinfolk_families.diffusion.model import BASE, build, initialise
from kinfolk_families.diffusion.tasks import tasks

FAMILY = Family(
    name="diffusion",
    kinds=frozenset({"image", "vector"}),
    config=DiffusionConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
    roles=frozenset({FIRST_STAGE, BASE}),
    initialise=initialise,
)
