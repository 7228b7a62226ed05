"""A causal transformer over tokens, with the keys and values of past positions kept in the rows.

Sources: Chen et al., 2020, Generative Pretraining from Pixels (ImageGPT); Radford et al., 2019 (GPT-2).
Shapes: B batch, R rows being sampled, T tokens, V vocabulary, D width, h heads, O outputs at a position.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kinfolk_families._shared.transformer import Attention, Block, Positions
from kinfolk_families.autoregressive.config import TransformerConfig
from kinfolk_families.autoregressive.convolution import Cache
from kinfolk_families.autoregressive.tokens import Tokeniser

INIT_STD = 0.02  # GPT-2, of every weight


class CausalAttention(Attention):
    """Self-attention in which a token sees itself and those before it."""

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> queries, keys and values (B, h, T, D/h)"""
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        mixed = F.scaled_dot_product_attention(*self._heads(tokens), is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def step(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One token of each row; puts its key and value into the cache. (R, 1, D), (R,), (R, h, T, D/h) twice"""
        q, k, v = self._heads(token)  # (R, h, 1, D/h)
        rows, until = torch.arange(len(token), device=token.device), int(position.max()) + 1
        keys[rows, :, position], values[rows, :, position] = k[:, :, 0], v[:, :, 0]
        seen = torch.arange(until, device=token.device) <= position[:, None]  # (R, until)
        mixed = F.scaled_dot_product_attention(
            q, keys[:, :, :until], values[:, :, :until], attn_mask=seen[:, None, None]
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class CausalBlock(Block):
    """A pre-norm block whose attention is causal."""

    attention: CausalAttention

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.attention = CausalAttention(width, heads)

    def step(self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One token of each row. (R, 1, D) -> (R, 1, D)"""
        token = token + self.attention.step(self.norm_attention(token), position, keys, values)
        return token + self.mlp(self.norm_mlp(token))


class CausalTransformer(nn.Module):
    """Position t reads the tokens before t: the input is moved by one, and begins with the class."""

    def __init__(self, config: TransformerConfig, tokeniser: Tokeniser, classes: int, outputs: int) -> None:
        super().__init__()
        self.config, self.length, self.begin = config, tokeniser.length, tokeniser.vocabulary
        self.embed = nn.Embedding(self.begin + max(classes, 1), config.width)  # V tokens, then how a sample begins
        self.positions = Positions(self.length, config.width)
        self.blocks = nn.ModuleList(CausalBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, outputs)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                weight.data /= math.sqrt(2 * config.depth)  # GPT-2: residual branches add up to unit scale

    def _begun(self, tokens: Tensor, label: Tensor | None) -> Tensor:
        """(B, T), (B,) -> (B, 1): the token before the first"""
        return self.begin + (torch.zeros_like(tokens[:, :1]) if label is None else label[:, None])

    def forward(self, tokens: Tensor, label: Tensor | None, generator: Generator | None = None) -> Tensor:  # noqa: ARG002
        """Outputs at every position, each of the tokens before it; T may be less than all. (B, T, 1) -> (B, T, O)"""
        before = torch.cat([self._begun(tokens[..., 0], label), tokens[:, :-1, 0]], dim=1)
        h = self.embed(before) + self.positions.table[:, : before.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))

    def cache(self, rows: int) -> Cache:
        """Keys and values of no token yet, for each block. -> (R, h, T, D/h) each"""
        heads = self.config.heads
        shape = (rows, heads, self.length, self.config.width // heads)
        names = [f"{kind}.{index}" for index in range(self.config.depth) for kind in ("keys", "values")]
        return {name: self.head.weight.new_zeros(shape) for name in names}

    def step(self, tokens: Tensor, position: Tensor, label: Tensor | None, cache: Cache) -> Tensor:
        """Outputs at one position of each row; changes ``cache``. (R, T, 1), (R,) -> (R, O)"""
        past = tokens[torch.arange(len(tokens), device=tokens.device), position - 1]  # (R, 1)
        before = torch.where(position[:, None] == 0, self._begun(past, label), past)
        h = self.embed(before) + self.positions.table[0, position][:, None]
        for index, block in enumerate(cast("Iterable[CausalBlock]", self.blocks)):
            h = block.step(h, position, cache[f"keys.{index}"], cache[f"values.{index}"])
        return self.head(self.norm(h)).squeeze(1)


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear | nn.Embedding):
        nn.init.normal_(layer.weight, std=INIT_STD)
    if isinstance(layer, nn.Linear):
        nn.init.zeros_(layer.bias)
