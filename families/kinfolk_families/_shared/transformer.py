"""Patch transformer: images as tokens of patches, blocks that a condition may modulate.

Source: Peebles & Xie, 2023 (DiT), https://arxiv.org/abs/2212.09748; Dosovitskiy et al., 2021 (ViT),
https://arxiv.org/abs/2010.11929. Shapes: B batch, T tokens, D width, P patch size.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kinfolk_families._shared.dropout import Dropout

NARROW, FEW = 8, 256  # widest head, and most tokens, for which plain products are mostly faster on a CPU
WEIGHTS_BYTES = 4 * 2**20  # of the weights of one part, which stay in the cache and in memory that is used again


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, (H/P)*(W/P), C*P*P)"""
    return F.unfold(x, patch, stride=patch).transpose(1, 2)


def unpatchify(tokens: Tensor, shape: tuple[int, int, int], patch: int) -> Tensor:
    """(B, (H/P)*(W/P), C*P*P) -> (B, C, H, W), the inverse of ``patchify``; ``shape`` is (C, H, W)."""
    return F.fold(tokens.transpose(1, 2), shape[1:], patch, stride=patch)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention; torch's kernel is made for wide heads, so on a CPU narrow ones go by plain products.

    (B, heads, K, T) each -> (B, heads, K, T)
    """
    _, heads, K, T = q.shape
    if K > NARROW or T > FEW or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
    rows = max(WEIGHTS_BYTES // (q.element_size() * heads * T * T), 1)
    return torch.cat([_by_products(*part) for part in zip(q.split(rows), k.split(rows), v.split(rows), strict=True)])


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, K, T) each -> (B, heads, K, T)"""
    heads, K = q.shape[1], q.shape[2]
    q, k, v = (each.flatten(0, 1) for each in (q * K**-0.5, k, v))  # (B*heads, K, T)
    weights = torch.bmm(q.mT, k).softmax(dim=2)  # (B*heads, T, T)
    return torch.bmm(v, weights.mT).unflatten(0, (-1, heads))


class Attention(nn.Module):
    """Multi-head self-attention over tokens. (B, T, D) -> (B, T, D)"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        B, T, D = tokens.shape
        q, k, v = self.qkv(tokens).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 4, 1)
        mixed = attend(q, k, v)  # (B, heads, D/heads, T)
        return self.out(mixed.flatten(1, 2).mT)


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on a normalised and, given a condition, modulated residual branch.

    With a condition of width E, each branch is shifted, scaled and gated by it; gates start at zero, so the block
    starts as the identity (adaLN-Zero of DiT). Without one it is the pre-norm block of ViT. Dropout is of what each
    branch adds (Vaswani et al., 2017, section 5.4, https://arxiv.org/abs/1706.03762).
    """

    def __init__(self, width: int, heads: int, condition: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        plain = condition is None
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=plain)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=plain)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.dropout = Dropout(dropout)
        self.modulation = None if condition is None else nn.Linear(condition, 6 * width)
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """(B, T, D), condition (B, E) where it was built for one -> (B, T, D); ``generator`` is of dropout"""
        assert (condition is None) == (self.modulation is None), "a block is told a condition if it was built for one"
        if self.modulation is None or condition is None:
            tokens = tokens + self.dropout(self.attention(self.norm_attention(tokens)), generator)
            return tokens + self.dropout(self.mlp(self.norm_mlp(tokens)), generator)
        modulation = self.modulation(F.silu(condition))[:, None]  # (B, 1, 6D)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        mixed = self.attention(self.norm_attention(tokens) * (1 + scale_a) + shift_a)
        tokens = tokens + gate_a * self.dropout(mixed, generator)
        mapped = self.mlp(self.norm_mlp(tokens) * (1 + scale_m) + shift_m)
        return tokens + gate_m * self.dropout(mapped, generator)


class Positions(nn.Module):
    """A learned vector for each token position, added. (B, T, D) -> (B, T, D)"""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        return tokens + self.table
