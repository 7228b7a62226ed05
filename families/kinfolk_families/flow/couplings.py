"""Affine couplings: some channels pass, the others are shifted and scaled by what a network makes of them.

The priors of what leaves a flow, given what stays or the class, are maps of the same kind.

Shapes: B batch, C channels, E context, ``*`` nothing or H, W.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kinfolk_families._shared.networks import zeroed
from kinfolk_families.flow.bijections import AllReduce, Bijection, Flatten, channels_last, per_channel, positions

Network = Callable[[int, int], nn.Module]  # (channels in, channels out) -> the network of a coupling


def halves(channels: int) -> Tensor:
    """The first half of the channels. -> (C,) bool"""
    return torch.arange(channels) < channels // 2


def every_other(channels: int) -> Tensor:
    """Even elements of a vector. -> (C,) bool"""
    return torch.arange(channels) % 2 == 0


def checkerboard(channels: int) -> Tensor:
    """Pixels whose row and column add to an even number, after a squeeze by 2. -> (C,) bool

    Channels 0 to 3 of a block are its pixels (0, 0), (0, 1), (1, 0), (1, 1), so a checkerboard of the image is a choice
    of channels, and networks run at half the height and width. Source: Dinh et al., 2017 (RealNVP), Figure 3.
    """
    place = torch.arange(channels) % 4
    return (place == 0) | (place == 3)


class CouplingNetwork(nn.Module):
    """Layers that see the channels that stay and, beside them, the context."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """(B, C, *), (B, E) or (B, E, *) -> (B, outputs, *)"""
        if context is not None:
            planes = per_channel(context, kept) if context.ndim == 2 else context
            kept = torch.cat([kept, planes.expand(-1, -1, *kept.shape[2:])], 1)
        return self.layers(kept if kept.ndim == 2 else channels_last(kept))


def deep_network(image: bool, width: int) -> Network:
    """Two hidden layers and an output that starts at zero; convolutions of 3, 1 and 3 pixels on images.

    Source: Kingma and Dhariwal, 2018 (Glow), Appendix B, https://arxiv.org/abs/1807.03039.
    """

    def make(inputs: int, outputs: int) -> CouplingNetwork:
        first, second = _layer(image, inputs, width, 3), _layer(image, width, width, 1)
        last = zeroed(_layer(image, width, outputs, 3))
        return CouplingNetwork(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), last)

    return make


def linear_network(image: bool) -> Network:
    """One layer that starts at zero."""
    return lambda inputs, outputs: CouplingNetwork(zeroed(_layer(image, inputs, outputs, 3)))


def _layer(image: bool, inputs: int, outputs: int, pixels: int) -> nn.Linear | nn.Conv2d:
    return nn.Conv2d(inputs, outputs, pixels, padding=pixels // 2) if image else nn.Linear(inputs, outputs)


class AffineCoupling(Bijection):
    """Channels under ``mask`` stay; the others become (x + shift) * exp(log_scale), which depend on those that stay.

    log_scale = bound * tanh(raw / bound) lies within the bound, so that no inverse runs away.
    Source: Dinh et al., 2017 (RealNVP), section 3.2 and 3.4, https://arxiv.org/abs/1605.08803.
    """

    def __init__(self, mask: Tensor, network: Network, context: int, bound: float) -> None:
        super().__init__()
        self.kept, self.moved, self.bound = int(mask.sum()), int((~mask).sum()), bound
        self.network = network(self.kept + context, 2 * self.moved)
        order = torch.cat([mask.nonzero(), (~mask).nonzero()]).flatten()  # (C,) those that stay first
        self.in_order = bool((order == torch.arange(len(order))).all())
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, *) -> (B, C, *), (B,)"""
        kept, moved = self._parts(x)
        shift, log_scale = self._move(kept, context)
        return self._whole(kept, (moved + shift) * log_scale.exp()), log_scale.flatten(1).sum(1, dtype=torch.float64)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, *) -> (B, C, *)"""
        kept, moved = self._parts(z)
        shift, log_scale = self._move(kept, context)
        return self._whole(kept, moved * (-log_scale).exp() - shift)

    def _move(self, kept: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, raw = self.network(kept, context).to(kept.dtype).chunk(2, dim=1)
        return shift, self.bound * torch.tanh(raw / self.bound)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ordered = x if self.in_order else x.index_select(1, self.get_buffer("order"))
        kept, moved = ordered.split([self.kept, self.moved], dim=1)
        return kept, moved

    def _whole(self, kept: Tensor, moved: Tensor) -> Tensor:
        ordered = torch.cat([kept, moved], 1)
        return ordered if self.in_order else ordered.index_select(1, self.get_buffer("back"))


class ClassPrior(Bijection):
    """A Gaussian of each class made standard normal: z = (x - mean) / std, per channel.

    ``context`` is the class, one-hot; all classes start standard normal.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(classes, channels))
        self.log_std = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, *), (B, K) -> (B, C, *), (B,)"""
        mean, log_std = self._of(context)
        z = (x - per_channel(mean, x)) * per_channel((-log_std).exp(), x)
        return z, -positions(x) * log_std.double().sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, *), (B, K) -> (B, C, *)"""
        mean, log_std = self._of(context)
        return z * per_channel(log_std.exp(), z) + per_channel(mean, z)

    def _of(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        assert context is not None
        label = context.argmax(1)
        return self.mean[label], self.log_std[label]


class MultiScale(Bijection):
    """``steps``, then the channels a coupling moves leave as noise, and those it keeps go on into ``inner``.

    The coupling, a single layer, is the learned Gaussian prior of what leaves, given what stays, made standard normal.
    Source: Kingma and Dhariwal, 2018 (Glow), published code, split2d_prior; Dinh et al., 2017 (RealNVP), section 3.6.
    """

    def __init__(self, steps: Bijection, prior: AffineCoupling, shape: tuple[int, ...], inner: Bijection) -> None:
        super().__init__()
        self.steps, self.prior, self.inner = steps, prior, inner
        self.leaving = Flatten((prior.moved, *shape[1:]))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, D), (B,)"""
        h, steps_log_det = self.steps(x, context)
        h, prior_log_det = self.prior(h, context)
        kept, leaving = h.split([self.prior.kept, self.prior.moved], dim=1)
        z, inner_log_det = self.inner(kept, context)
        return torch.cat([z, leaving.flatten(1)], 1), steps_log_det + prior_log_det + inner_log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, D) -> (B, C, H, W)"""
        leaving = self.leaving.inverse(z[:, -math.prod(self.leaving.shape) :])
        kept = self.inner.inverse(z[:, : -math.prod(self.leaving.shape)], context)
        return self.steps.inverse(self.prior.inverse(torch.cat([kept, leaving], 1), context), context)

    def initialise(self, x: Tensor, context: Tensor | None, all_reduce: AllReduce) -> Tensor:
        """The steps, then the inner levels from what stays. -> (B, D)"""
        h = self.prior.initialise(self.steps.initialise(x, context, all_reduce), context, all_reduce)
        kept, leaving = h.split([self.prior.kept, self.prior.moved], dim=1)
        return torch.cat([self.inner.initialise(kept, context, all_reduce), leaving.flatten(1)], 1)
