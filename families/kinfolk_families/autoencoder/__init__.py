"""Autoencoders: an encoder maps a sample to a small latent vector, a decoder maps it back.

The plain autoencoder minimises the error of its reconstruction. The variational autoencoder gives latents a prior and
the decoder a distribution, and maximises a lower bound of log p(x): the ELBO, with the KL divergence weighted by beta
(beta-VAE) or not, or the tighter importance-weighted bound (IWAE). It samples in one call, encodes, reconstructs,
bounds a sample's log-probability and scores anomalies. Sources: Kingma and Welling, 2014,
https://arxiv.org/abs/1312.6114; Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl; Burda et al., 2016,
https://arxiv.org/abs/1509.00519; Rybkin et al., 2021, https://arxiv.org/abs/2006.13202.
"""

from kinfolk.contract import Family
from kinfolk_families.autoencoder.config import AutoencoderConfig, Options
from kinfolk_families.autoencoder.losses import phases
from kinfolk_families.autoencoder.model import build
from kinfolk_families.autoencoder.sample import tasks

FAMILY = Family(
    name="autoencoder",
    kinds=frozenset({"image", "vector"}),
    config=AutoencoderConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
)
