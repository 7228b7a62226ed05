"""StyleGAN2: noise becomes a style, and the style scales the channels of every convolution.

Plain convolutions throughout, no operators of its own; sizes may be odd. Source: Karras et al., 2020,
https://arxiv.org/abs/1912.04958, Sec. 2 to 4; Karras et al., 2019, https://arxiv.org/abs/1812.04948 (mapping, mixing,
truncation). Shapes: B batch, E input width, W dimensions of a style, L layers, C channels, H W pixels, D features.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kinfolk.contract import Progress
from kinfolk_families.gan.equalised import EqualConv, EqualLinear, activated, pixel_normalised
from kinfolk_families.gan.network_config import StyleCritic, StyleGenerator
from kinfolk_families.gan.resampling import doubling, halving

EPSILON = 1e-8  # under the root of demodulation (Karras et al., 2020, eq. 3)
MEAN_DECAY = 0.995  # of the mean style, a step (Karras et al., 2019, in their code)
SKIP = 2**-0.5  # of the sum of a block and its skip (Karras et al., 2020, Fig. 7)


def demodulation(weight: Tensor, scale: Tensor) -> Tensor:
    """Factor of each output channel that gives its kernel norm 1, once its inputs are scaled.

    (C', C, k, k), (B, C) -> (B, C'). Source: Karras et al., 2020, eq. 3.
    """
    return (scale.square() @ weight.square().sum((2, 3)).T + EPSILON).rsqrt()


class ModulatedConv(nn.Module):
    """A convolution whose input channels a style scales; demodulated, its output keeps the variance.

    Scaling input and output is the same as scaling the kernel, and needs none for each sample.
    """

    def __init__(self, style: int, channels_in: int, channels: int, kernel: int, *, demodulate: bool = True) -> None:
        super().__init__()
        self.demodulate, self.scale = demodulate, (channels_in * kernel**2) ** -0.5
        self.affine = EqualLinear(style, channels_in, shift=1.0)
        self.weight = nn.Parameter(torch.randn(channels, channels_in, kernel, kernel))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(B, C, H, W), (B, W) -> (B, C', H, W)"""
        scale, weight = self.affine(style), self.weight * self.scale  # (B, C), (C', C, k, k)
        y = F.conv2d(x * scale[:, :, None, None], weight, padding=weight.shape[-1] // 2)
        return y * demodulation(weight, scale)[:, :, None, None] if self.demodulate else y


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU; at double the size if one is given."""

    constant: Tensor  # (1, H, W) noise outside training, so that a picture depends on its own seed alone

    def __init__(
        self, style: int, channels_in: int, channels: int, size: tuple[int, int], *, doubled: bool = False
    ) -> None:
        super().__init__()
        self.up = doubling(size) if doubled else nn.Identity()
        self.convolution = ModulatedConv(style, channels_in, channels, 3)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("constant", torch.randn(1, *size))

    def forward(self, x: Tensor, style: Tensor, draws: Generator | None) -> Tensor:
        """(B, C, H, W), (B, W) -> (B, C', H', W')"""
        h = self.convolution(self.up(x), style)
        noise = self.constant
        if draws is not None:
            shape = (len(x), *noise.shape)
            noise = torch.randn(shape, generator=draws, device=noise.device, dtype=noise.dtype)
        return activated(h + self.strength * noise + self.bias)


class ToImage(nn.Module):
    """Features to an image through a modulated 1x1 convolution without demodulation."""

    def __init__(self, style: int, channels_in: int, channels: int) -> None:
        super().__init__()
        self.convolution = ModulatedConv(style, channels_in, channels, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(B, C, H, W), (B, W) -> (B, channels, H, W)"""
        return self.convolution(x, style) + self.bias


class Mapping(nn.Sequential):
    """Noise of unit length to a style. (B, E) -> (B, W)"""

    def __init__(self, config: StyleGenerator, inputs: int) -> None:
        widths = [inputs, *[config.style] * config.mapping_depth]
        super().__init__(*(EqualLinear(before, after, lr=config.mapping_lr) for before, after in pairwise(widths)))

    def forward(self, code: Tensor) -> Tensor:
        """(B, E) -> (B, W)"""
        h = pixel_normalised(code)
        for layer in self:
            h = activated(layer(h))
        return h


class StyledGenerator(nn.Module):
    """A learned picture, styled layer by layer; each resolution adds its part to the image (skip generator)."""

    mean_style: Tensor  # (W,) of training, what truncation goes towards
    style_sum: Tensor  # (W + 1,) styles of this step so far, and their number

    def __init__(self, config: StyleGenerator, inputs: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = config.resolutions(*shape[1:])
        channels, width = config.channels(len(sizes)), config.style
        self.config, self.mapping = config, Mapping(config, inputs)
        self.picture = nn.Parameter(torch.randn(channels[-1], *sizes[-1]))
        self.layers = nn.ModuleList([StyledLayer(width, channels[-1], channels[-1], sizes[-1])])
        self.images = nn.ModuleList([ToImage(width, channels[-1], shape[0])])
        self.enlarge = nn.ModuleList()
        for level in reversed(range(len(sizes) - 1)):
            before, after, size = channels[level + 1], channels[level], sizes[level]
            self.layers.append(StyledLayer(width, before, after, size, doubled=True))
            self.layers.append(StyledLayer(width, after, after, size))
            self.images.append(ToImage(width, after, shape[0]))
            self.enlarge.append(doubling(size))
        self.register_buffer("mean_style", torch.zeros(width))
        self.register_buffer("style_sum", torch.zeros(width + 1))

    def styles(self, code: Tensor) -> Tensor:
        """One style for all layers. (B, E) -> (B, L, W)"""
        return self.mapping(code)[:, None].expand(-1, len(self.layers), -1)

    def truncated(self, styles: Tensor, truncation: Tensor) -> Tensor:
        """Styles at ``truncation`` times their distance from the mean style. (B, L, W), (B,) -> (B, L, W)"""
        return torch.lerp(self.mean_style, styles, truncation.view(-1, 1, 1).to(styles.dtype))

    def mixed(self, styles: Tensor, others: Tensor, draws: Generator) -> Tensor:
        """``others`` from some layer on, not the first, in the share ``mixing`` of samples. -> (B, L, W)

        Source: Karras et al., 2019, Sec. 3.1.
        """
        B, L, _ = styles.shape
        share, place = torch.rand(2, B, generator=draws, device=styles.device)
        change = torch.where(share < self.config.mixing, 1 + (place * (L - 1)).long(), L)  # (B,)
        late = torch.arange(L, device=styles.device) >= change[:, None]  # (B, L)
        return torch.where(late[..., None], others, styles)

    def forward(self, styles: Tensor, draws: Generator | None = None) -> Tensor:
        """Pictures of styles, with fresh noise from ``draws`` or else the constant one. (B, L, W) -> (B, C, H, W)"""
        h = self.layers[0](self.picture.expand(len(styles), -1, -1, -1), styles[:, 0], draws)
        image = self.images[0](h, styles[:, 0])
        for level, enlarge in enumerate(self.enlarge, start=1):
            for index in (2 * level - 1, 2 * level):
                h = self.layers[index](h, styles[:, index], draws)
            image = enlarge(image) + self.images[level](h, styles[:, 2 * level])
        return image

    @torch.no_grad()
    def record(self, styles: Tensor) -> None:
        """Add up the first layer's styles of a microbatch. (B, L, W)"""
        self.style_sum += torch.cat([styles[:, 0].sum(0), styles.new_tensor([len(styles)])])

    def after(self, progress: Progress) -> None:
        """Move the mean style towards this step's."""
        total = progress.all_reduce(self.style_sum.clone())
        self.style_sum.zero_()
        self.mean_style.lerp_(total[:-1] / total[-1], 1 - MEAN_DECAY)


class StyledBlock(nn.Module):
    """Two convolutions and half the size, beside a skip. (B, C, H, W) -> (B, C', ceil(H/2), ceil(W/2))"""

    def __init__(self, channels_in: int, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.down = halving(size)
        self.first, self.second = EqualConv(channels_in, channels_in, 3), EqualConv(channels_in, channels, 3)
        self.skip = EqualConv(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H/2), ceil(W/2))"""
        h = activated(self.second(self.down(activated(self.first(x)))))
        return (h + self.skip(self.down(x))) * SKIP


class StyledCritic(nn.Module):
    """Residual blocks to the coarsest resolution, one more convolution, flattened. (B, C, H, W) -> (B, D)"""

    def __init__(self, config: StyleCritic, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sizes = config.resolutions(*shape[1:])
        channels = config.channels(len(sizes))
        self.entry = EqualConv(shape[0], channels[0], 1)
        self.blocks = nn.Sequential(
            *(StyledBlock(*pair, size) for pair, size in zip(pairwise(channels), sizes[:-1], strict=True))
        )
        self.exit = EqualConv(channels[-1], channels[-1], 3)
        self.features = channels[-1] * sizes[-1][0] * sizes[-1][1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)"""
        return activated(self.exit(self.blocks(activated(self.entry(x))))).flatten(1)
