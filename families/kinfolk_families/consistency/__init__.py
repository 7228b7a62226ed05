"""Consistency models: one network call from pure noise to a sample, and more calls for a better one.

The network maps any point of the probability flow to where its path ends, ``f(x_t, sigma)``, so that all points of one
path agree. Three ways to learn it: easy consistency tuning (ECT) goes on training a diffusion model at pairs of noise
levels that close in on each other; improved consistency training (iCT) does without a teacher, on levels that double in
number; consistency distillation (CD) lets a teacher's Heun step say which two points lie on one path.

Dropout, where a recipe asks for any, has the same masks at both points of a path. On CIFAR-10, iCT took 0.3 (section
3.1) and ECT 0.2 (run_ecm.sh of its code).

Sources: Song et al., 2023 (CD), https://arxiv.org/abs/2303.01469; Song and Dhariwal, 2023 (iCT),
https://arxiv.org/abs/2310.14189; Geng et al., 2024 (ECT), https://arxiv.org/abs/2406.14548.
"""

from kinfolk.contract import Family
from kinfolk_families.consistency.config import ConsistencyConfig, Options
from kinfolk_families.consistency.losses import phases
from kinfolk_families.consistency.model import TEACHER, build
from kinfolk_families.consistency.sample import tasks

FAMILY = Family(
    name="consistency",
    kinds=frozenset({"image", "vector"}),
    config=ConsistencyConfig,
    options=Options,
    build=build,
    phases=phases,
    tasks=tasks,
    roles=frozenset({TEACHER}),
)
