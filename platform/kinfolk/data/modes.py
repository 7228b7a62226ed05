"""What is known of the modes of a data set: by what rule a sample counts for one, and how many samples are scored.

The two rules and their numbers of samples are those of Lin et al., 2018, PacGAN, https://arxiv.org/abs/1712.04086,
section 4 and its published code.
"""

from typing import Annotated, Literal

from pydantic import Field

from kinfolk.contract import Config


class Mixture(Config):
    """Round Gaussians: a sample counts for the nearest if it is within 3 standard deviations of its centre."""

    kind: Literal["mixture"] = "mixture"
    centres: tuple[tuple[float, ...], ...] = Field(min_length=2)  # (K, D)
    std: float = Field(gt=0)  # of each, in each coordinate
    samples: int = Field(2_500, gt=0)  # scored


class Stack(Config):
    """Classes of classes: a sample counts for the number whose digits a classifier reads off its channels, in order.

    The classifier is the registered one of another data set, which holds what each channel holds.
    """

    kind: Literal["stack"] = "stack"
    judge: str  # name of that data set
    samples: int = Field(26_000, gt=0)  # scored


KnownModes = Annotated[Mixture | Stack, Field(discriminator="kind")]
