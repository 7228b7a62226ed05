"""Layers with equalised learning rates: weights of unit variance, scaled where they are used.

Adam moves every weight by about the same amount, so that scaled weights learn in step. Source: Karras et al., 2018,
https://arxiv.org/abs/1710.10196, Sec. 4.1. Shapes: B batch, E inputs, D outputs, C channels, H W pixels.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from kinfolk_families.gan.convolution import LEAK

EPSILON = 1e-8  # under the root of a mean square (Karras et al., 2018, Sec. 4.2)


def activated(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the mean square of normal numbers. (*) -> (*)"""
    return F.leaky_relu(x, LEAK) * math.sqrt(2 / (1 + LEAK**2))


def pixel_normalised(x: Tensor) -> Tensor:
    """Mean square 1 over channels, at every position. (B, C, *) -> (B, C, *)"""
    return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


class EqualLinear(nn.Linear):
    """A linear layer that learns ``lr`` times as fast as the optimiser would have it. (B, E) -> (B, D)"""

    def __init__(self, inputs: int, outputs: int, lr: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(inputs, outputs)
        self.lr, self.scale = lr, lr * inputs**-0.5
        nn.init.normal_(self.weight, std=1 / lr)
        nn.init.constant_(self.bias, shift / lr)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, D)"""
        return F.linear(x, self.weight * self.scale, self.bias * self.lr)


class EqualConv(nn.Conv2d):
    """A convolution that keeps the size. (B, C, H, W) -> (B, C', H, W)"""

    def __init__(self, channels_in: int, channels: int, kernel: int) -> None:
        super().__init__(channels_in, channels, kernel, padding=kernel // 2)
        self.scale = (channels_in * kernel**2) ** -0.5
        nn.init.normal_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)"""
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)
