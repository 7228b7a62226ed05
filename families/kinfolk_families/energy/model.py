"""Energy networks and their sums. Shapes: B batch, K energies of a model, 1 unless it is conditional."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError, DataSpec, Model
from kinfolk_families.energy.config import (
    ComposedConfig,
    ConvConfig,
    EnergyConfig,
    MlpConfig,
    NetworkConfig,
    TransformerConfig,
)
from kinfolk_families.energy.langevin import ReplayBuffer
from kinfolk_families.energy.transformer import EnergyTransformer

POWER_ITERATIONS = 20  # on weights that are new or averaged; in training one a step keeps up with them


class SpectralNorm(nn.Module):
    """A linear map divided by its largest singular value; a convolution's is that of its (out, in * k * k) matrix.

    The singular vectors are buffers that only ``iterate`` and ``derive`` move, so a pass changes nothing.
    Source: Miyato et al., 2018, https://arxiv.org/abs/1802.05957.
    """

    left: Tensor  # (out,)
    right: Tensor  # (in * k * k,)

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        rows, columns = layer.weight.flatten(1).shape
        self.register_buffer("left", nn.init.normal_(torch.empty(rows)))
        self.register_buffer("right", torch.zeros(columns))
        self.derive()

    def forward(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, *)"""
        weight, bias = self.layer.weight / self.singular_value(), self.layer.bias
        assert bias is not None
        return torch.func.functional_call(self.layer, {"weight": weight, "bias": bias}, x)

    def singular_value(self) -> Tensor:
        """The largest one, as far as the iteration has found it. -> ()"""
        return self.left @ self.layer.weight.flatten(1) @ self.right

    def derive(self) -> None:
        """The singular vectors of weights that were put in place of others."""
        for _ in range(POWER_ITERATIONS):
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """One power iteration."""
        matrix = self.layer.weight.flatten(1)
        self.right.copy_(nn.functional.normalize(self.left @ matrix, dim=0))
        self.left.copy_(nn.functional.normalize(matrix @ self.right, dim=0))


def make_network(config: ConvConfig | MlpConfig, spec: DataSpec, outputs: int, spectral: bool) -> nn.Sequential:
    """Layers with SiLU between them, smooth so that the energy has a smooth gradient. (B, *) -> (B, K)

    Raises:
        ConfigError: convolutions for data that is not images, or that cannot be halved.
    """
    if isinstance(config, MlpConfig):
        layers = [nn.Flatten(), *_perceptron([spec.dims, *[config.width] * config.depth, outputs])]
    elif spec.kind == "image" and not (spec.shape[1] % 2 or spec.shape[2] % 2):
        layers = _convolutions(config, spec, outputs)
    else:
        raise ConfigError(
            f"network.kind=conv reads images of even height and width, the data is {spec.kind} of shape {spec.shape}. "
            "Use kind: mlp."
        )
    linear = (nn.Linear, nn.Conv2d)
    return nn.Sequential(*(SpectralNorm(one) if spectral and isinstance(one, linear) else one for one in layers))


def _perceptron(sizes: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return layers[:-1]


def _convolutions(config: ConvConfig, spec: DataSpec, outputs: int) -> list[nn.Module]:
    """Blocks of 2x2 pixels become channels, later ones are averaged: gradients of strided convolutions are slow."""
    channels, height, width = 4 * spec.shape[0], spec.shape[1] // 2, spec.shape[2] // 2
    layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
    for halving in range(config.halvings):
        if halving:
            layers.append(nn.AvgPool2d(2, ceil_mode=True))
            height, width = (height + 1) // 2, (width + 1) // 2
        layers += [nn.Conv2d(channels, config.width << halving, 3, padding=1), nn.SiLU()]
        channels = config.width << halving
    return [*layers, nn.Flatten(), *_perceptron([channels * height * width, config.hidden, outputs])]


class EnergyModel(nn.Module):
    """``E(x, label)``, lower for likelier, with the chains that train it."""

    def __init__(
        self,
        config: EnergyConfig,
        system: NetworkConfig | ComposedConfig,
        spec: DataSpec,
        classes: int,
        learns: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.system, self.spec, self.classes = config, system, spec, classes
        self.buffer = ReplayBuffer(system.buffer, spec, classes) if learns else None

    def energies(self, x: Tensor) -> Tensor:
        """The energy with each class. (B, *) -> (B, K) float32"""
        raise NotImplementedError

    def forward(self, x: Tensor, label: Tensor | None = None, temperature: float | None = None) -> Tensor:
        """(B, *), (B,) -> (B,) float32; without a label, a conditional model's free energy over its classes.

        Its ``temperature`` is that of Langevin dynamics unless told.
        """
        energies = self.energies(x)
        if not self.classes:
            return energies[:, 0]
        if label is not None:
            return energies.gather(1, label[:, None])[:, 0]
        return free_energy(energies, self.system.langevin.temperature if temperature is None else temperature)

    def settle(self) -> None:
        """Move, once per step, what follows from the weights and not from a gradient."""


class EnergyNetwork(EnergyModel):
    """The energy is what a network returns; a conditional one returns one energy a class."""

    def __init__(self, config: EnergyConfig, system: NetworkConfig, spec: DataSpec) -> None:
        super().__init__(config, system, spec, (spec.classes or 0) if system.conditional else 0)
        self.network = make_network(system.network, spec, max(self.classes, 1), system.spectral_norm)

    def energies(self, x: Tensor) -> Tensor:
        """What the network returns. (B, *) -> (B, K) float32"""
        return self.network(x).float()

    def settle(self) -> None:
        """One power iteration of each normalised layer."""
        for module in self.network.modules():
            if isinstance(module, SpectralNorm):
                module.iterate()


def free_energy(energies: Tensor, temperature: float) -> Tensor:
    """-T log sum_y exp(-E(x, y) / T), at temperature 0 the lowest energy. (B, K) -> (B,)

    Source: Grathwohl et al., 2020, eq. 6, https://arxiv.org/abs/1912.03263, where T is 1.
    """
    if not temperature:
        return energies.amin(1)
    return -temperature * (-energies / temperature).logsumexp(1)


def composed(energies: Mapping[str, Tensor], weights: Mapping[str, Tensor | float]) -> Tensor:
    """The weighted sum of energies, whose density is the product of theirs, each to the power of its weight.

    An energy that knows no classes, (B, 1), counts with each. -> (B, K)
    Source: Hinton, 2002; Du et al., 2020, eq. 6, https://arxiv.org/abs/2004.06030.
    """
    weighted = [weights[role] * energy for role, energy in energies.items()]
    return torch.stack(torch.broadcast_tensors(*weighted)).sum(0)


class ComposedEnergy(EnergyModel):
    """The weighted sum of its parents' energies, class by class where they know classes."""

    def __init__(
        self, config: EnergyConfig, system: ComposedConfig, spec: DataSpec, parents: Mapping[str, Model]
    ) -> None:
        self.parents = {role: parents[role] for role in sorted(parents)}
        classes = max(_energy_of(parent).classes for parent in self.parents.values())
        super().__init__(config, system, spec, classes, learns=system.learn_weights)
        self.learns = system.learn_weights
        weight = torch.tensor([system.weights[role] for role in sorted(system.weights)])
        self.weight = nn.Parameter(weight.log() if self.learns else weight, requires_grad=self.learns)

    def weights(self) -> dict[str, Tensor]:
        """The weight of each role, () each; what is learned is its logarithm, so that it stays positive."""
        values = self.weight.exp() if self.learns else self.weight
        return dict(zip(self.parents, values, strict=True))

    def energies(self, x: Tensor) -> Tensor:
        """The sum of the parents' energies with each class. (B, *) -> (B, K) float32"""
        return composed({role: _energy_of(parent).energies(x) for role, parent in self.parents.items()}, self.weights())


def _energy_of(parent: Model) -> EnergyModel:
    assert isinstance(parent.module, EnergyModel)  # build has seen to it
    return parent.module


def _check_parents(system: ComposedConfig, spec: DataSpec, parents: Mapping[str, Model]) -> None:
    """Refuse parents that have no energy of such data, and weights without a parent or parents without a weight."""
    asked, found = (", ".join(sorted(roles)) or "none" for roles in (system.weights, parents))
    if asked != found:
        example = ", ".join(f"{role}: NAME@champion" for role in sorted(system.weights))
        raise ConfigError(
            f"system.weights names {asked}; parents names {found}. Name each in both, e.g. parents: {{{example}}}."
        )
    for role, parent in parents.items():
        if not isinstance(parent.module, EnergyModel):
            raise ConfigError(
                f"parents.{role} is a {parent.family.name} model without an energy of x. Use an energy network or a "
                "composition (system.kind: network or composed)."
            )
        if (parent.spec.kind, parent.spec.shape) != (spec.kind, spec.shape):
            raise ConfigError(
                f"parents.{role} learned {parent.spec.kind} data of shape {parent.spec.shape}, this is {spec.kind} "
                f"data of shape {spec.shape}. Compose models of like data."
            )
        if parent.module.classes not in (0, spec.classes):
            raise ConfigError(
                f"parents.{role} knows {parent.module.classes} classes, this data has {spec.classes or 'none'}. "
                "Compose models of the same classes, or unconditional ones."
            )


def build(config: EnergyConfig, spec: DataSpec, parents: Mapping[str, Model]) -> EnergyModel | EnergyTransformer:
    """The untrained module of a recipe for ``spec``; draws from torch's global generator.

    Raises:
        ConfigError: the recipe does not fit the data or its parents.
    """
    system = config.system
    if isinstance(system, ComposedConfig):
        _check_parents(system, spec, parents)
        return ComposedEnergy(config, system, spec, parents)
    if parents:
        raise ConfigError(
            f"system.kind={system.kind} takes no parent, got {', '.join(sorted(parents))}. Remove it from the recipe, "
            "or use system.kind: composed."
        )
    if isinstance(system, TransformerConfig):
        return EnergyTransformer(config, system, spec)
    if system.conditional and not spec.classes:
        raise ConfigError("conditional=true needs data with classes, and this has none. Set conditional: false.")
    return EnergyNetwork(config, system, spec)
