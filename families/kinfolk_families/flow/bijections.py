"""Invertible maps with a known volume: the parts every flow is made of.

Shapes: B batch, C channels (the features of a vector), ``*`` nothing or H, W. ``log_det`` is log |det dz/dx| in nats
and in float64, (B,), or () where it is the same for all rows. ``context`` is what conditional parts are told, or None.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_STD = 1e-6  # ActNorm's scale stays finite on a constant channel

AllReduce = Callable[[Tensor], Tensor]  # sum over workers


class Bijection(nn.Module):
    """An invertible map of samples."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z and log |det dz/dx|. (B, C, *) -> (B, C, *), (B,) or ()"""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The x that is mapped to z. (B, C, *) -> (B, C, *)"""
        raise NotImplementedError

    def initialise(self, x: Tensor, context: Tensor | None, all_reduce: AllReduce) -> Tensor:  # noqa: ARG002
        """Set what follows from the first batch, this worker's share of which is x. -> z"""
        return self(x, context)[0]


class Sequence(Bijection):
    """One map after the other."""

    def __init__(self, parts: Iterable[Bijection]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z of the last map and the sum of all log-dets."""
        total = zero(x)
        for part in self.parts:
            x, log_det = part(x, context)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The inverses, last map first."""
        for part in reversed(self.parts):
            assert isinstance(part, Bijection)
            z = part.inverse(z, context)
        return z

    def initialise(self, x: Tensor, context: Tensor | None, all_reduce: AllReduce) -> Tensor:
        """Each map from what the initialised ones before it make of the batch."""
        for part in self.parts:
            assert isinstance(part, Bijection)
            x = part.initialise(x, context, all_reduce)
        return x


class Squeeze(Bijection):
    """Blocks of ``side`` x ``side`` pixels as channels.

    Row i, column j of a block of channel c becomes channel (c * side + i) * side + j.
    Source: Dinh et al., 2017 (RealNVP), section 3.6, https://arxiv.org/abs/1605.08803.
    """

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(B, C, H, W) -> (B, C side^2, H/side, W/side), ()"""
        return F.pixel_unshuffle(x, self.side), zero(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, C side^2, H/side, W/side) -> (B, C, H, W)"""
        return F.pixel_shuffle(z, self.side)


class Flatten(Bijection):
    """A sample of ``shape`` as a vector."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(B, *shape) -> (B, D), ()"""
        return x.flatten(1), zero(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(B, D) -> (B, *shape)"""
        return z.unflatten(1, self.shape)


class ActNorm(Bijection):
    """Each channel shifted and scaled; to mean 0 and standard deviation 1 on the first batch.

    Source: Kingma and Dhariwal, 2018 (Glow), section 3.1, https://arxiv.org/abs/1807.03039.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(x + shift) * exp(log_scale)"""
        scale = self.log_scale.exp()
        z = (x + per_channel(self.shift, x)) * per_channel(scale, x)
        return z, positions(x) * self.log_scale.sum(dtype=torch.float64)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """z * exp(-log_scale) - shift"""
        return z * per_channel((-self.log_scale).exp(), z) - per_channel(self.shift, z)

    def initialise(self, x: Tensor, context: Tensor | None, all_reduce: AllReduce) -> Tensor:
        """Shift and scale by the statistics of the whole first batch."""
        mean, std = channel_statistics(x, all_reduce)
        self.shift.copy_(-mean)
        self.log_scale.copy_(-std.clamp(min=SMALLEST_STD).log())
        return self(x, context)[0]


class InvertibleLinear(Bijection):
    """Channels mixed by a square matrix, a 1x1 convolution on images: W = P L (U + diag(sign * exp(log_scale))).

    P and the signs stay as they were built; ``factors`` holds L below its diagonal of ones, log_scale on the diagonal
    and U above it. W starts as a random rotation. Source: Kingma and Dhariwal, 2018 (Glow), eq. 10 and 11,
    https://arxiv.org/abs/1807.03039.
    """

    order: Tensor  # (C,) int64: row i of P M is row order[i] of M
    sign: Tensor  # (C,)

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = nn.init.orthogonal_(torch.empty(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        factors = lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag()
        self.factors = nn.Parameter(factors.float())
        self.register_buffer("order", permutation.argmax(1))
        self.register_buffer("sign", diagonal.sign().float())

    def triangles(self) -> tuple[Tensor, Tensor]:
        """L and U + diag(sign * exp(log_scale)). -> (C, C), (C, C)"""
        lower = self.factors.tril(-1) + torch.eye(len(self.sign), dtype=self.sign.dtype, device=self.sign.device)
        return lower, self.factors.triu(1) + (self.sign * self.factors.diagonal().exp()).diag()

    def weight(self) -> Tensor:
        """W. -> (C, C)"""
        lower, upper = self.triangles()
        return (lower @ upper)[self.order]

    def log_det(self) -> Tensor:
        """log |det W|. -> () float64"""
        return self.factors.diagonal().sum(dtype=torch.float64)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """W x at every position"""
        with full_precision(x):
            return mix_channels(self.weight(), x), positions(x) * self.log_det()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """W^-1 z at every position, W^-1 found in float64"""
        lower, upper = (triangle.double() for triangle in self.triangles())
        permutation = torch.eye(len(lower), dtype=torch.float64, device=z.device)[self.order]  # P
        half = torch.linalg.solve_triangular(lower, permutation.T, upper=False, unitriangular=True)
        return mix_channels(torch.linalg.solve_triangular(upper, half, upper=True).to(z.dtype), z)


class NormalisedLinear(Bijection):
    """ActNorm and an invertible linear map after it, as one convolution: W (scale (x + shift))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.linear = ActNorm(channels), InvertibleLinear(channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(B, C, *) -> (B, C, *), ()"""
        log_det = self.linear.log_det() + self.norm.log_scale.sum(dtype=torch.float64)
        with full_precision(x):
            weight = self.linear.weight() * self.norm.log_scale.exp()
            return mix_channels(weight, x, weight @ self.norm.shift), positions(x) * log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, *) -> (B, C, *)"""
        return self.norm.inverse(self.linear.inverse(z, context), context)

    def initialise(self, x: Tensor, context: Tensor | None, all_reduce: AllReduce) -> Tensor:
        """Shift and scale by the statistics of the whole first batch."""
        self.norm.initialise(x, context, all_reduce)
        return self(x, context)[0]


def zero(x: Tensor) -> Tensor:
    """The log-det of a map that changes no volume. -> ()"""
    return x.new_zeros((), dtype=torch.float64)


def positions(x: Tensor) -> int:
    """Pixels of an image, 1 for a vector. (B, C, *)"""
    return x[0, 0].numel()


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) or (B, C) -> the same with as many trailing ones as ``like`` (B, C, *) has positions' dimensions."""
    return values.reshape(*values.shape, *[1] * (like.ndim - 2))


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No bfloat16 where it would break an inverse, whatever autocast is around."""
    return torch.autocast(x.device.type, enabled=False)


def mix_channels(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight`` times the channels at every position. (E, C), (B, C, *), (E,) -> (B, E, *)"""
    return F.linear(x, weight, bias) if x.ndim == 2 else F.conv2d(channels_last(x), weight[:, :, None, None], bias)


def channels_last(x: Tensor) -> Tensor:
    """The same images with each pixel's channels together in memory: few channels convolve 2 to 30 times faster."""
    return x.contiguous(memory_format=torch.channels_last)


def channel_statistics(x: Tensor, all_reduce: AllReduce) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over rows, positions and workers. (B, C, *) -> (C,), (C,) float64"""
    values = x.double().transpose(0, 1).flatten(1)  # (C, values of this worker)
    count = torch.full_like(values[:, 0], values.shape[1])
    total, squares, count = all_reduce(torch.stack([values.sum(1), values.square().sum(1), count]))
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0).sqrt()
