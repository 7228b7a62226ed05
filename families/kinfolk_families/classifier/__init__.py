"""A classifier: the network whose judgement and features the measures of every other family rest on.

It generates nothing. ``classify`` says which class a sample looks like, ``encode`` gives the features from which the
last layer decides; distances between sets of samples are taken there. It is trained with cross-entropy on a labelled
data set, by the same loop and into the same registry as any family, so a figure can name the version of the network it
was measured with. Source: Heusel et al., 2017, https://arxiv.org/abs/1706.08500 (distances in a classifier's features).
"""

from kinfolk.contract import Family
from kinfolk_families.classifier.config import ClassifierConfig, ClassifierOptions
from kinfolk_families.classifier.losses import phases
from kinfolk_families.classifier.model import build
from kinfolk_families.classifier.tasks import tasks

FAMILY = Family(
    name="classifier",
    kinds=frozenset({"image", "vector"}),
    config=ClassifierConfig,
    options=ClassifierOptions,
    build=build,
    phases=phases,
    tasks=tasks,
)
