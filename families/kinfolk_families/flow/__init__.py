"""Flows: an invertible network maps each sample to standard normal noise, so its log-probability is known exactly.

RealNVP stacks affine couplings under alternating masks, Glow adds data-initialised normalisation and invertible 1x1
convolutions. Levels are dequantised, by uniform noise or by noise a small flow learns, which makes the probability of
the levels a lower bound. A flow samples in one call, encodes and decodes exactly, interpolates and scores anomalies.
Sources: Dinh et al., 2017, https://arxiv.org/abs/1605.08803; Kingma and Dhariwal, 2018,
https://arxiv.org/abs/1807.03039; Ho et al., 2019, https://arxiv.org/abs/1902.00275.
"""

from kinfolk.contract import Family
from kinfolk_families.flow.config import FlowConfig, Options
from kinfolk_families.flow.losses import phases
from kinfolk_families.flow.model import build, initialise
from kinfolk_families.flow.sample import tasks

FAMILY = Family(
    name="flow",
    kinds=frozenset({"image", "vector"}),
    config=FlowConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
    initialise=initialise,
)
