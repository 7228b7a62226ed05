"""PixelCNN++: gated residual blocks that go down in resolution and up again, each level joined to itself across.

Source: Salimans et al., 2017, https://arxiv.org/abs/1701.05517, and nn.py and model.py of its code, openai/pixel-cnn.
Shapes: A pictures, lines or pixels at once, G channels of a picture, C channels of the network, D outputs at a pixel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk.contract import DataSpec
from kinfolk_families._shared.dropout import dropped
from kinfolk_families.autoregressive.config import PixelCnnPpConfig
from kinfolk_families.autoregressive.convolution import CausalConv, Pointwise, Scan, Upsample
from kinfolk_families.autoregressive.pixelcnn import ClassBias, PixelNetwork


def concat_elu(x: Tensor) -> Tensor:
    """elu of x and of -x (PixelCNN++, nn.py). (A, C, H, W) -> (A, 2C, H, W)"""
    return F.elu(torch.cat([x, -x], dim=1))


class GatedBlock(nn.Module):
    """Two convolutions on a gated residual branch that is told something else between them (PixelCNN++, nn.py)."""

    def __init__(self, channels: int, told: int, right: int, halvings: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.first = CausalConv(2 * channels, channels, 1, 1, right, halvings=halvings)
        self.told = Pointwise(2 * told, channels) if told else None
        self.second = CausalConv(2 * channels, 2 * channels, 1, 1, right, halvings=halvings)
        self.class_bias = ClassBias(classes, 2 * channels)
        self.dropout = dropout
        with torch.no_grad():
            self.second.weight *= 0.1  # init_scale of PixelCNN++, nn.py, gated_resnet: blocks start small

    def forward(self, x: Tensor, told: Sequence[Tensor], scan: Scan) -> Tensor:
        """(A, C, H, W), maps of as many channels in all as it was built for -> (A, C, H, W)"""
        h = scan.conv(self.first, concat_elu(x))
        if self.told is not None:
            h = h + self.told(concat_elu(torch.cat(list(told), dim=1)))
        h = dropped(concat_elu(h), self.dropout, scan.generator)
        signal, gate = self.class_bias(scan.conv(self.second, h), scan.label).chunk(2, dim=1)
        return x + signal * gate.sigmoid()


class Resolution(nn.Module):
    """Blocks of one stack at one resolution on the way down and up, and all lower resolutions between them.

    A block on the way up is told what its counterpart on the way down made; a horizontal block is told besides what
    the vertical block of the same key made.
    """

    def __init__(self, config: PixelCnnPpConfig, vertical: bool, classes: int, halvings: int = 0) -> None:
        super().__init__()
        self.halvings, self.is_vertical = halvings, vertical
        channels, right = config.channels[halvings], 1 if vertical else 0

        def blocks(told: int) -> nn.ModuleList:
            made = (GatedBlock(channels, told, right, halvings, config.dropout, classes) for _ in range(config.blocks))
            return nn.ModuleList(made)

        self.before = blocks(0 if vertical else channels)
        self.after = blocks(channels if vertical else 2 * channels)
        self.inner = None
        if halvings + 1 < len(config.channels):
            below = config.channels[halvings + 1]
            self.coarsen = CausalConv(channels, below, 1, 1, right, stride=2, halvings=halvings)
            self.inner = Resolution(config, vertical, classes, halvings + 1)
            self.refine = Upsample(below, channels, halvings)

    def forward(self, x: Tensor, scan: Scan) -> Tensor:
        """(A, C, H, W) -> (A, C, H, W)"""
        made: list[Tensor] = []
        for index, block in enumerate(self.before):
            x = self._block(block, f"before.{self.halvings}.{index}", x, [], scan)
            made.append(x)
        if self.inner is not None:
            coarse, below = scan.halve(self.coarsen, x)
            if below is not None:
                coarse = self.inner(coarse, below)
            x = x + scan.double(self.refine, coarse, below)
        for index, block in enumerate(self.after):
            x = self._block(block, f"after.{self.halvings}.{index}", x, [made.pop()], scan)
        return x

    def _block(self, block: nn.Module, key: str, x: Tensor, told: list[Tensor], scan: Scan) -> Tensor:
        if self.is_vertical:
            x = block(x, told, scan)
            scan.tell(key, x)
            return x
        return block(x, [scan.told(key), *told], scan)


class PixelCnnPp(PixelNetwork):
    """Both stacks as U-Nets of gated residual blocks."""

    def __init__(self, config: PixelCnnPpConfig, spec: DataSpec, classes: int, outputs: int) -> None:
        super().__init__(spec)
        width = config.channels[0]
        self.first_down = CausalConv(self.inputs, width, 1, 1, 1)
        self.first_above = CausalConv(self.inputs, width, 0, 1, 1)
        self.first_left = CausalConv(self.inputs, width, 1, 0)
        self.down, self.right = Resolution(config, True, classes), Resolution(config, False, classes)
        self.links = {"above": (width, 0)} | {
            f"{way}.{halvings}.{index}": (channels, halvings)
            for halvings, channels in enumerate(config.channels)
            for way in ("before", "after")
            for index in range(config.blocks)
        }
        self.head = Pointwise(width, outputs)
        self.finish()

    def vertical(self, x: Tensor, scan: Scan) -> None:
        """(A, G + 1, H, W)"""
        scan.tell("above", scan.conv(self.first_above, x))
        self.down(scan.conv(self.first_down, x), scan)

    def horizontal(self, x: Tensor, scan: Scan) -> Tensor:
        """(A, G + 1, H, W) -> (A, D, H, W)"""
        return self.head(F.elu(self.right(scan.told("above") + scan.conv(self.first_left, x), scan)))
