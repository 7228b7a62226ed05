"""Generative adversarial networks: a generator makes samples in one pass, a critic learns to tell them from data.

The two train against each other in the two phases of a step. A recipe chooses the game (``adversarial.py``), what keeps
the critic smooth (``penalties.py``, ``spectral.py``), the networks (``perceptron.py``, ``convolution.py``,
``resnet.py``, ``residual.py``, ``stylegan.py``, ``progressive.py``), and what stands against collapse: packs of samples
(``packing.py``), a critic that sees other samples (``minibatch.py``) or is foreseen (``unrolling.py``), transforms of
what it sees (``augmentation.py``). Sources: Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661; each file names
its own.
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
