"""How far a picture moves when its style does, and a penalty that makes it as far everywhere.

Source: Karras et al., 2020, https://arxiv.org/abs/1912.04958, Sec. 3.2 and Appendix B. Shapes: B batch, L layers,
W dimensions of a style.
"""

import torch
from torch import Generator, Tensor, nn

from kinfolk.contract import Progress
from kinfolk_families.gan.config import PathLengthConfig


def path_lengths(pictures: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """|J^T y| for pictures y of ``noise`` over the root of their pixels; root mean square over layers.

    (B, C, H, W), (B, L, W), (B, C, H, W) -> (B,)
    """
    pixels = pictures.shape[-2] * pictures.shape[-1]
    (grad,) = torch.autograd.grad((pictures * noise).sum() * pixels**-0.5, styles, create_graph=True)  # (B, L, W)
    return grad.square().sum(2).mean(1).sqrt()


class PathLength(nn.Module):
    """The penalty, and the running mean of lengths that it measures from."""

    mean: Tensor  # ()
    length_sum: Tensor  # (2,) lengths of this step so far, and their number

    def __init__(self, config: PathLengthConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("length_sum", torch.zeros(2))

    def forward(self, pictures: Tensor, styles: Tensor, draws: Generator) -> tuple[Tensor, Tensor]:
        """The penalty with its factor, and the mean length. (B, C, H, W), (B, L, W) -> (), ()"""
        noise = torch.randn(pictures.shape, generator=draws, device=pictures.device, dtype=pictures.dtype)
        lengths = path_lengths(pictures, styles, noise)
        with torch.no_grad():
            self.length_sum += torch.stack([lengths.sum(), torch.full_like(lengths[0], len(lengths))])
        factor = self.config.weight * self.config.every_steps
        return factor * (lengths - self.mean).square().mean(), lengths.mean()

    def after(self, progress: Progress) -> None:
        """Move the mean towards this turn's, if lengths were taken in it."""
        total, count = progress.all_reduce(self.length_sum.clone())
        self.length_sum.zero_()
        if count:
            self.mean.lerp_(total / count, self.config.decay)
