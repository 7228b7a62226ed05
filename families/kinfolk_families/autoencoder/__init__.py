"""Autoencoders: an encoder maps a sample to a small latent, a decoder maps it back.

The plain autoencoder minimises the error of its reconstruction, the denoising one that of reconstructing noised
samples. The variational autoencoder gives latents a prior and the decoder a distribution, and maximises a lower bound
of log p(x): the ELBO, with the KL divergence weighted by beta (beta-VAE) or led along a line (capacity), or the tighter
importance-weighted bound (IWAE). It samples in one call, encodes, reconstructs, interpolates, bounds a sample's
log-probability and scores anomalies. First stages for other families keep their latents on a grid: continuous and
hardly regularised for latent diffusion, tokens of a learned codebook (VQ-VAE) or of fixed levels (FSQ) for a prior over
them. Sources: Vincent et al., 2010, https://www.jmlr.org/papers/v11/vincent10a.html; Kingma and Welling, 2014,
https://arxiv.org/abs/1312.6114; Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl; Burgess et al., 2018,
https://arxiv.org/abs/1804.03599; Burda et al., 2016, https://arxiv.org/abs/1509.00519; Rybkin et al., 2021,
https://arxiv.org/abs/2006.13202; Rombach et al., 2022, https://arxiv.org/abs/2112.10752; van den Oord et al., 2017,
https://arxiv.org/abs/1711.00937; Mentzer et al., 2024, https://arxiv.org/abs/2309.15505.
"""

from kinfolk.contract import Family
from kinfolk_families.autoencoder.config import AutoencoderConfig, Options
from kinfolk_families.autoencoder.losses import phases
from kinfolk_families.autoencoder.model import build, initialise
from kinfolk_families.autoencoder.sample import tasks

FAMILY = Family(
    name="autoencoder",
    kinds=frozenset({"image", "vector"}),
    config=AutoencoderConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
    initialise=initialise,
)
