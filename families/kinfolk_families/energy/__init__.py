"""Energy models: a network says how unlikely a sample is, and sampling walks downhill.

Two systems. An energy network E(x) or E(x, label) learns by contrastive divergence: energy falls at the data and rises
where Langevin dynamics, started from a replay buffer, finds it too low. It samples, fills in, denoises, scores
anomalies, and several of them can be added to the energy of their product. The Energy Transformer is a network whose
layers are steps of gradient descent on an energy of its tokens, attention plus an associative memory; it completes
masked patches, draws pictures by doing so in turns, and denoises by weighing each patch against its completion. Its
energy is of tokens, and no training fits it to the density of x, so it takes no part in sums.

Sources: Hinton, 2002, https://doi.org/10.1162/089976602760128018; Tieleman, 2008,
https://doi.org/10.1145/1390156.1390290 (persistent chains); Du & Mordatch, 2019 (IGEBM),
https://arxiv.org/abs/1903.08689; Grathwohl et al., 2020 (JEM), https://arxiv.org/abs/1912.03263; Du et al., 2020
(composition), https://arxiv.org/abs/2004.06030; Hoover et al., 2023 (Energy Transformer),
https://arxiv.org/abs/2302.07253.
"""

from kinfolk.contract import Family
from kinfolk_families.energy.config import ROLES, EnergyConfig, Options
from kinfolk_families.energy.losses import phases
from kinfolk_families.energy.model import build
from kinfolk_families.energy.sample import tasks

FAMILY = Family(
    name="energy",
    kinds=frozenset({"image", "vector"}),
    config=EnergyConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
    roles=frozenset(ROLES),
)
