"""Autoregressive models: a sample is a row of tokens, and each is drawn given those before it.

The product of the tokens' probabilities is the exact probability of a sample. Three networks predict the next token:
the gated PixelCNN and PixelCNN++ by convolutions that see only what comes before a pixel, ImageGPT by causal attention.
Tokens are levels, binarised pixels, the colours of a palette, or those of a first stage (a VQ-VAE), to which the model
then is the prior. It samples in one call a position with what it has computed kept in the rows, completes pictures of
which a first part is given, in raster order, and scores anomalies. Sources: van den Oord et al., 2016,
https://arxiv.org/abs/1606.05328; Salimans et al., 2017, https://arxiv.org/abs/1701.05517; Chen et al., 2020 (ImageGPT),
Generative Pretraining from Pixels; van den Oord et al., 2017 (VQ-VAE), https://arxiv.org/abs/1711.00937.
"""

from kinfolk.contract import FIRST_STAGE, Family
from kinfolk_families.autoregressive.config import AutoregressiveConfig, Options
from kinfolk_families.autoregressive.losses import initialise, phases
from kinfolk_families.autoregressive.model import build
from kinfolk_families.autoregressive.sample import tasks

FAMILY = Family(
    name="autoregressive",
    kinds=frozenset({"image", "tokens"}),
    config=AutoregressiveConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
    roles=frozenset({FIRST_STAGE}),
    initialise=initialise,
)
