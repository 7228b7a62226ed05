"""Differentiable transforms of real and generated samples alike, and the strength that keeps a critic from overfitting.

Sources: Zhao et al., 2020, https://arxiv.org/abs/2006.10738 (the transforms, and their ranges from its published
code); Karras et al., 2020, https://arxiv.org/abs/2006.06676, Sec. 3 (a probability, adapted). Shapes: B samples,
C channels, H W pixels.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Progress
from kinfolk_families.gan.config import AugmentationConfig

SHIFT = 0.125  # largest translation, as a share of each side
HOLE = 0.5  # sides of the part that is cut out, as a share of the image's


def _uniform(x: Tensor, columns: int, generator: Generator) -> Tensor:
    """Numbers in [0, 1), ``columns`` of them for each sample. -> (columns, B)"""
    return torch.rand(columns, len(x), generator=generator, device=x.device, dtype=x.dtype)


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """All values moved by up to 0.5. (B, C, H, W), (1, B) -> (B, C, H, W)"""
    return x + _per_sample(u[0] - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Distances from grey scaled by 0 to 2. (B, C, H, W), (1, B) -> (B, C, H, W)"""
    grey = x.mean(1, keepdim=True)
    return grey + _per_sample(2 * u[0]) * (x - grey)


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Distances from the sample's mean scaled by 0.5 to 1.5. (B, C, H, W), (1, B) -> (B, C, H, W)"""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + _per_sample(u[0] + 0.5) * (x - mean)


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Moved by whole pixels, up to an eighth of a side and at least one; what comes in is zero.

    (B, C, H, W), (2, B) -> (B, C, H, W)
    """
    for axis, (side, share) in enumerate(zip(x.shape[2:], u, strict=True), start=2):
        reach = max(round(side * SHIFT), 1)
        moved = (share * (2 * reach + 1)).long() - reach  # (B,) from -reach to reach
        source = torch.arange(side, device=x.device) + reach - moved[:, None]  # (B, side) in the padded image
        padding = (reach, reach) if axis == 3 else (0, 0, reach, reach)
        index = source[:, None, None, :] if axis == 3 else source[:, None, :, None]
        shape = list(x.shape)
        x = F.pad(x, padding).gather(axis, index.expand(shape))
    return x


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """A rectangle of half the sides set to zero, its centre anywhere. (B, C, H, W), (2, B) -> (B, C, H, W)"""
    inside = []
    for side, share in zip(x.shape[2:], u, strict=True):
        length = max(round(side * HOLE), 1)
        first = (share * (side + 1)).long() - length // 2  # (B,) of the rectangle, which may stick out
        position = torch.arange(side, device=x.device) - first[:, None]  # (B, side)
        inside.append((position >= 0) & (position < length))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x * ~hole


class _Transform(NamedTuple):
    apply: Callable[[Tensor, Tensor], Tensor]
    numbers: int  # uniform ones that it takes for each sample


TRANSFORMS: Mapping[str, _Transform] = {
    "brightness": _Transform(brightness, 1),
    "saturation": _Transform(saturation, 1),
    "contrast": _Transform(contrast, 1),
    "translation": _Transform(translation, 2),
    "cutout": _Transform(cutout, 2),
}


class Augmentation(nn.Module):
    """The transforms of a recipe, each applied to a sample with the probability of now."""

    probability: Tensor  # ()
    signs: Tensor  # (2,) sum over the step's packs of the critic's sign on data, and their number

    def __init__(self, config: AugmentationConfig, spec: DataSpec) -> None:
        super().__init__()
        _check(config, spec)
        self.config = config
        adaptive = config.target is not None  # else the probability is the recipe's, whatever was trained before
        self.register_buffer("probability", torch.tensor(config.start), persistent=adaptive)
        self.register_buffer("signs", torch.zeros(2), persistent=adaptive)

    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        for name in self.config.transforms:
            transform = TRANSFORMS[name]
            chosen = _uniform(x, 1, generator)[0] < self.probability  # (B,)
            x = torch.where(_per_sample(chosen), transform.apply(x, _uniform(x, transform.numbers, generator)), x)
        return x

    @torch.no_grad()
    def record(self, margin: Tensor) -> None:
        """Add up a microbatch: by how much the critic takes data for real. (P,)"""
        if self.config.target is None:
            return
        self.signs += torch.stack([margin.sign().sum(), torch.full_like(margin[0], len(margin))])

    def after(self, progress: Progress, packing: int) -> None:
        """Move the probability towards the target, by the share of ``ramp_samples`` that this step's samples are."""
        if self.config.target is None:
            return
        total, packs = progress.all_reduce(self.signs.clone())
        self.signs.zero_()
        moved = (total / packs - self.config.target).sign() * packs * packing / self.config.ramp_samples
        self.probability.add_(moved).clamp_(0, 1)


def _check(config: AugmentationConfig, spec: DataSpec) -> None:
    if spec.kind != "image":
        raise ConfigError(
            f"augmentation transforms images, this data is {spec.kind} of shape {spec.shape}. Leave it out."
        )
    if "saturation" in config.transforms and spec.shape[0] == 1:
        raise ConfigError(
            "augmentation.transforms names saturation, which does nothing to images of one channel. Leave it out."
        )
