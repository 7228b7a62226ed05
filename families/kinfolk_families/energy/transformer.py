"""The Energy Transformer: tokens descend an energy, attention plus an associative memory, step by step.

Source: Hoover et al., 2023, https://arxiv.org/abs/2302.07253, section 2.
Shapes: B batch, T tokens, D width of a token, H heads, Y width of a head, M memories, P elements of a patch.
"""

import math

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec
from kinfolk_families._shared.transformer import patchify, unpatchify
from kinfolk_families.energy.config import EnergyConfig, TransformerConfig

NORM_EPS = 1e-5  # beside the variance, as in the authors' code
INIT_STD = 0.1  # of weights and memories; at few tens of dimensions the paper's 0.002 and 0.02 leave tokens unmoved


class EnergyNorm(nn.Module):
    """g = gamma (x - mean) / std + delta, with a scalar gamma > 0 and a vector delta.

    It is the gradient of a convex function of x, so its Jacobian is symmetric and positive semi-definite: a step
    against dE/dg leads downhill in x. Gamma is held as its logarithm, so that training cannot turn its sign.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_gamma = nn.Parameter(torch.zeros(()))
        self.delta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + NORM_EPS).sqrt()
        return self.log_gamma.exp() * centred / deviation + self.delta


class EnergyAttention(nn.Module):
    """E = -1/beta sum_h sum_C log sum_{B != C} exp(beta K_hB . Q_hC), beta = 1/sqrt(Y). There are no values.

    A token does not attend to itself: alone with its own key it would only grow.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.beta = heads, 1 / math.sqrt(head_width)
        self.query = nn.Parameter(INIT_STD * torch.randn(heads * head_width, width))
        self.key = nn.Parameter(INIT_STD * torch.randn(heads * head_width, width))

    def _heads(self, g: Tensor, weight: Tensor) -> Tensor:
        return (g @ weight.T).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, Y)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """beta Q_C . K_B at [C, B], -inf where B = C. (B, H, T, Y) each -> (B, H, T, T)"""
        tokens = query.shape[2]
        apart = query.new_zeros(tokens, tokens).fill_diagonal_(-math.inf)
        scores = torch.baddbmm(apart, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=self.beta)
        return scores.unflatten(0, (-1, self.heads))

    def energy(self, g: Tensor) -> Tensor:
        """(B, T, D) -> (B,)"""
        scores = self._scores(self._heads(g, self.query), self._heads(g, self.key))
        return -scores.logsumexp(-1).sum((1, 2)) / self.beta

    def gradient(self, g: Tensor) -> Tensor:
        """dE/dg: each token is drawn to the keys it asks for, and to the queries that ask for it. -> (B, T, D)"""
        query, key = self._heads(g, self.query), self._heads(g, self.key)
        share = self._scores(query, key).softmax(-1)  # (B, H, T, T), of token B in what C asks for
        asked, asking = (part.transpose(1, 2).flatten(2) for part in (share @ key, share.mT @ query))
        return -(torch.cat([asked, asking], -1) @ torch.cat([self.query, self.key]))


class HopfieldMemory(nn.Module):
    """E = -1/2 sum_C sum_m relu(xi_m . g_C)^2 over memories xi."""

    def __init__(self, width: int, memories: int) -> None:
        super().__init__()
        self.memories = nn.Parameter(INIT_STD * torch.randn(memories, width))

    def energy(self, g: Tensor) -> Tensor:
        """(B, T, D) -> (B,)"""
        return -0.5 * (g @ self.memories.T).relu().square().sum((1, 2))

    def gradient(self, g: Tensor) -> Tensor:
        """dE/dg. (B, T, D) -> (B, T, D)"""
        return -(g @ self.memories.T).relu() @ self.memories


class EnergyBlock(nn.Module):
    """Tokens that descend E(g(x)), the sum of both energies, in steps with the same weights."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.steps, self.rate = config.steps, config.rate
        self.norm = EnergyNorm(config.width)
        self.attention = EnergyAttention(config.width, config.heads, config.head_width)
        self.memory = HopfieldMemory(config.width, config.memories)

    def energy(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B,)"""
        g = self.norm(x)
        return self.attention.energy(g) + self.memory.energy(g)

    def step(self, x: Tensor) -> Tensor:
        """x - rate * dE/dg, the gradient written out, which is faster than automatic. -> (B, T, D)"""
        g = self.norm(x)
        return x - self.rate * (self.attention.gradient(g) + self.memory.gradient(g))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        for _ in range(self.steps):
            x = self.step(x)
        return x


class EnergyTransformer(nn.Module):
    """Patches as tokens, those that are hidden as one learned token, all of them completed by the descent.

    Positions start at unit size: a hidden token knows nothing else, and the first steps must not sweep it away. The
    paper's extra token for classification is left out: nothing here reads it.
    """

    def __init__(self, config: EnergyConfig, system: TransformerConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.system, self.spec = config, system, spec
        self.shape = _image_shape(system.patch, spec)
        C, H, W = self.shape
        self.tokens, elements = H * W // system.patch**2, C * system.patch**2
        self.embed = nn.Linear(elements, system.width)
        self.mask_token = nn.Parameter(torch.zeros(system.width))
        self.positions = nn.Parameter(torch.randn(self.tokens, system.width))
        self.block = EnergyBlock(system)
        self.output = nn.Sequential(nn.LayerNorm(system.width), nn.Linear(system.width, elements))

    def embedded(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Tokens of a picture before they descend. (B, C, H, W), (B, T) bool -> (B, T, D)"""
        tokens = self.embed(patchify(x, self.system.patch))
        return torch.where(hidden[:, :, None], self.mask_token, tokens) + self.positions

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Every patch as the others have it, whatever ``x`` holds where it is hidden. -> (B, C, H, W)"""
        return unpatchify(self.output(self.block(self.embedded(x, hidden))), self.shape, self.system.patch)

    def energy(self, x: Tensor) -> Tensor:
        """The energy at which a picture's tokens arrive, none hidden. (B, C, H, W) -> (B,)"""
        hidden = torch.zeros(len(x), self.tokens, dtype=torch.bool, device=x.device)
        return self.block.energy(self.block(self.embedded(x, hidden)))

    def pixels(self, patches: Tensor) -> Tensor:
        """A value for each patch as one for each pixel. (B, T) -> (B, C, H, W)"""
        C, _, _ = self.shape
        wide = patches.float()[:, :, None].expand(-1, -1, C * self.system.patch**2)
        return unpatchify(wide, self.shape, self.system.patch).to(patches.dtype)


def _image_shape(patch: int, spec: DataSpec) -> tuple[int, int, int]:
    """(C, H, W) of data that splits into patches.

    Raises:
        ConfigError: it is not images, or they do not split, or into a single patch.
    """
    if spec.kind != "image":
        raise ConfigError(f"system.kind=transformer reads images, the data is {spec.kind}. Use kind: network.")
    C, H, W = spec.shape
    shared = math.gcd(H, W)
    sizes = [size for size in range(1, shared + 1) if not shared % size and size < max(H, W)]
    if patch not in sizes:
        allowed = ", ".join(map(str, sizes)) or "another data set"
        raise ConfigError(f"patch={patch} does not divide images of {H} x {W} into several. Use {allowed}.")
    return C, H, W
