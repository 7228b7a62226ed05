"""Self-attention over the positions of a feature map.

Source: Zhang et al., 2019 (SAGAN), https://arxiv.org/abs/1805.08318, Sec. 3. B batch, C channels, H W pixels, N = H*W.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError

NARROWER = 8  # query and key have C / 8 channels (SAGAN, Sec. 3)


class SelfAttention(nn.Module):
    """x + gain * mixture of all positions, gain being 0 at first. (B, C, H, W) -> (B, C, H, W)"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // NARROWER, 1)
        self.query, self.key = (nn.Conv2d(channels, narrow, 1, bias=False) for _ in range(2))
        self.value, self.output = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)"""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        shares = (query.transpose(1, 2) @ key).softmax(2)  # (B, N, N): row n, how much of each position n takes
        mixed = (value @ shares.transpose(1, 2)).view_as(x)
        return x + self.gain * self.output(mixed)


def attention_level(attention: int | None, sizes: Sequence[tuple[int, int]], finest: int) -> int | None:
    """The finest of ``sizes``, from index ``finest`` on, whose shorter side is at most ``attention`` pixels.

    Raises:
        ConfigError: all of them are larger.
    """
    if attention is None:
        return None
    for level, size in enumerate(sizes[finest:], start=finest):
        if min(size) <= attention:
            return level
    raise ConfigError(
        f"attention={attention} is less than the sides of the coarsest features, {sizes[-1][0]} x {sizes[-1][1]}. "
        f"Use at least {min(sizes[-1])}, or a smaller base."
    )
