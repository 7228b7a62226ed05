"""Encoders and decoders. An encoder reads a sample and its condition, a decoder a code that holds both.

Features and codes are vectors, or maps over the grid that the network ends in. Shapes: B batch, K classes (0 where
there is no condition), F features an encoder returns, Z latent, ``g`` the grid: (h, w) or nothing, P numbers a decoder
returns for each element, D width.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec
from kinfolk_families._shared.transformer import Block, Positions, patchify, unpatchify
from kinfolk_families.autoencoder.config import ConvConfig, MlpConfig, TransformerConfig

NetworkConfig = ConvConfig | TransformerConfig | MlpConfig


def beside(x: Tensor, condition: Tensor) -> Tensor:
    """``x`` with its condition as further channels, the same at every place. (B, C, *), (B, K) -> (B, C+K, *)"""
    if not condition.shape[1]:
        return x
    planes = condition.view(*condition.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return torch.cat([x, planes], 1)


def perceptron(sizes: list[int]) -> nn.Sequential:
    """Linear layers from ``sizes[0]`` to ``sizes[-1]`` features with SiLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class MlpEncoder(nn.Module):
    """The flattened sample beside its condition. (B, *), (B, K) -> (B, F)"""

    def __init__(self, config: MlpConfig, spec: DataSpec, classes: int, features: int) -> None:
        super().__init__()
        self.layers = perceptron([spec.dims + classes, *[config.width] * config.depth, features])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, *), (B, K) -> (B, F)"""
        return self.layers(beside(x.flatten(1), condition))


class ConvEncoder(nn.Module):
    """Strided convolutions; the condition enters as constant planes. (B, C, H, W), (B, K) -> (B, F, g)"""

    def __init__(self, config: ConvConfig, spec: DataSpec, classes: int, features: int, on_grid: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(spec.shape[0] + classes, config.width, 3, padding=1), nn.SiLU()]
        for scale in range(config.halvings):
            inputs = config.width << scale
            layers += [nn.Conv2d(inputs, 2 * inputs, 4, stride=2, padding=1), nn.SiLU()]
        channels, places = config.width << config.halvings, math.prod(grid_of(config, spec))
        if on_grid:
            layers += [nn.Conv2d(channels, features, 1)]
        else:
            layers += [nn.Flatten(), nn.Linear(channels * places, features)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W), (B, K) -> (B, F, g)"""
        return self.layers(beside(x, condition))


class TransformerEncoder(nn.Module):
    """Blocks over patches, each of which is told the condition. (B, C, H, W), (B, K) -> (B, F, g)"""

    def __init__(self, config: TransformerConfig, spec: DataSpec, classes: int, features: int, on_grid: bool) -> None:
        super().__init__()
        self.patch = config.patch
        tokens, inputs = _token_grid(config, spec)
        self.grid = grid_of(config, spec) if on_grid else None
        self.embed = nn.Linear(inputs + classes, config.width)
        self.blocks = _blocks(config, tokens)
        self.head = nn.Linear(config.width if on_grid else tokens * config.width, features)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W), (B, K) -> (B, F, g)"""
        patches = patchify(x, self.patch)  # (B, T, C*P*P)
        told = condition[:, None].expand(-1, patches.shape[1], -1)  # (B, T, K)
        tokens = self.blocks(self.embed(torch.cat([patches, told], 2)))
        if self.grid is None:
            return self.head(tokens.flatten(1))
        return self.head(tokens).transpose(1, 2).unflatten(2, self.grid)


class TransformerDecoder(nn.Module):
    """The code spread over all tokens, or one of its places for each token, then blocks. (B, Z+K, g) -> (B, P, *)"""

    def __init__(self, config: TransformerConfig, spec: DataSpec, code: int, outputs: int, on_grid: bool) -> None:
        super().__init__()
        self.config, self.outputs, self.on_grid = config, outputs, on_grid
        channels, height, width = spec.shape
        self.planes = (outputs * channels, height, width)
        tokens, pixels = _token_grid(config, spec)
        self.spread = nn.Linear(code, config.width if on_grid else tokens * config.width)
        self.blocks = _blocks(config, tokens)
        self.head = nn.Linear(config.width, outputs * pixels)

    def forward(self, code: Tensor) -> Tensor:
        """(B, Z+K, g) -> (B, P, C, H, W)"""
        places = code.flatten(2).transpose(1, 2) if self.on_grid else code  # (B, T, Z+K)
        tokens = self.blocks(self.spread(places).view(len(code), -1, self.config.width))
        image = unpatchify(self.head(tokens), self.planes, self.config.patch)  # (B, P*C, H, W)
        return image.unflatten(1, (self.outputs, -1))


def grid_of(config: NetworkConfig, spec: DataSpec) -> tuple[int, int]:
    """Height and width of the map that the encoder ends in, for data that ``check_network`` lets pass.

    Raises:
        ConfigError: the network has no such map.
    """
    if isinstance(config, MlpConfig):
        raise ConfigError("network.kind='mlp' has no grid for a spatial or quantised latent. Use conv or transformer.")
    height, width = spec.shape[1:]
    scale = config.patch if isinstance(config, TransformerConfig) else 2**config.halvings
    return height // scale, width // scale


def _token_grid(config: TransformerConfig, spec: DataSpec) -> tuple[int, int]:
    return math.prod(grid_of(config, spec)), spec.shape[0] * config.patch**2


def _blocks(config: TransformerConfig, tokens: int) -> nn.Sequential:
    blocks = [Block(config.width, config.heads) for _ in range(config.depth)]
    return nn.Sequential(Positions(tokens, config.width), *blocks, nn.LayerNorm(config.width))


def mlp_decoder(config: MlpConfig, spec: DataSpec, code: int, outputs: int) -> nn.Sequential:
    """Fully connected layers. (B, Z+K) -> (B, P, *)"""
    sizes = [code, *[config.width] * config.depth, outputs * spec.dims]
    return nn.Sequential(perceptron(sizes), nn.Unflatten(1, (outputs, *spec.shape)))


def conv_decoder(config: ConvConfig, spec: DataSpec, code: int, outputs: int, on_grid: bool) -> nn.Sequential:
    """Transposed convolutions, the mirror image of the encoder. (B, Z+K, g) -> (B, P, C, H, W)"""
    channels = spec.shape[0]
    bottom = (config.width << config.halvings, *grid_of(config, spec))
    layers: list[nn.Module] = [nn.Conv2d(code, bottom[0], 3, padding=1), nn.SiLU()]
    if not on_grid:
        layers = [nn.Linear(code, math.prod(bottom)), nn.Unflatten(1, bottom), nn.SiLU()]
    for scale in reversed(range(config.halvings)):
        inner = config.width << scale
        layers += [nn.ConvTranspose2d(2 * inner, inner, 4, stride=2, padding=1), nn.SiLU()]
    last = nn.Conv2d(config.width, outputs * channels, 3, padding=1)
    return nn.Sequential(*layers, last, nn.Unflatten(1, (outputs, channels)))


def check_network(config: NetworkConfig, spec: DataSpec) -> None:
    """Refuse a network that cannot read the data.

    Raises:
        ConfigError: an image network for other data, or a side that does not divide.
    """
    if isinstance(config, MlpConfig):
        return
    if spec.kind != "image":
        raise ConfigError(f"network.kind={config.kind!r} reads images, the data is {spec.kind}. Use kind: mlp.")
    height, width = spec.shape[1:]
    side = math.gcd(height, width)
    if isinstance(config, TransformerConfig):
        name, value, allowed = "patch", config.patch, [n for n in range(1, side + 1) if side % n == 0]
    else:
        name, value, allowed = "halvings", config.halvings, [n for n in range(1, 1 + side) if side % 2**n == 0]
    if value not in allowed:
        choices = f"Use one of {', '.join(map(str, allowed))}" if allowed else "Use kind: transformer or mlp"
        raise ConfigError(f"network.{name}={value} does not divide images of {height}x{width}. {choices}.")


def make_encoder(
    config: NetworkConfig, spec: DataSpec, classes: int, features: int, on_grid: bool = False
) -> nn.Module:
    """The encoder of ``config``, with a map of features or a vector of them. (B, *), (B, K) -> (B, F, g)"""
    if isinstance(config, MlpConfig):
        return MlpEncoder(config, spec, classes, features)
    if isinstance(config, ConvConfig):
        return ConvEncoder(config, spec, classes, features, on_grid)
    return TransformerEncoder(config, spec, classes, features, on_grid)


def make_decoder(config: NetworkConfig, spec: DataSpec, code: int, outputs: int, on_grid: bool = False) -> nn.Module:
    """The decoder of ``config``, of codes on a map or of vectors. (B, Z+K, g) -> (B, P, *)"""
    if isinstance(config, MlpConfig):
        return mlp_decoder(config, spec, code, outputs)
    if isinstance(config, ConvConfig):
        return conv_decoder(config, spec, code, outputs, on_grid)
    return TransformerDecoder(config, spec, code, outputs, on_grid)
