"""LoRA: a frozen base whose chosen layers are each changed by a trained matrix of low rank.

A layer's weight W becomes ``W + alpha / rank * B A``. B starts at zero, so training starts from the base; only A and B
are trained and stored.
Source: Hu et al., 2022, https://arxiv.org/abs/2106.09685.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kinfolk.contract import Config, ConfigError, no_effect
from kinfolk_families.diffusion.config import AdapterConfig, DiffusionConfig

SomeConfig = TypeVar("SomeConfig", bound=Config)


class LowRank(nn.Module):
    """``alpha / rank * B A``, in the shape of a weight (out, in) or (out, in, k, k)."""

    def __init__(self, weight: Tensor, config: AdapterConfig) -> None:
        super().__init__()
        self.shape, self.scale = weight.shape, config.alpha / config.rank
        self.a = nn.Parameter(torch.empty(config.rank, weight[0].numel()))
        self.b = nn.Parameter(torch.zeros(len(weight), config.rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as torch does for the layers themselves

    def forward(self) -> Tensor:
        """-> (out, in) or (out, in, k, k)"""
        return (self.scale * self.b @ self.a).view(self.shape)


def adapted_weights(module: nn.Module, targets: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Weights of the linear and convolution layers that have a target as a word of their path, by name.

    Raises:
        ConfigError: a target is in no layer's path.
    """
    kinds = (nn.Linear, nn.Conv2d)
    paths = {f"{name}.weight": name.split(".") for name, layer in module.named_modules() if isinstance(layer, kinds)}
    words = sorted({word for path in paths.values() for word in path if not word.isdigit()})
    if strange := sorted(set(targets) - set(words)):
        raise ConfigError(f"adapter.targets: no layer's path holds {strange[0]!r}. Use some of {', '.join(words)}.")
    return {name: module.get_parameter(name) for name, path in paths.items() if set(targets) & set(path)}


def laid_over(base: SomeConfig, own: Mapping[str, Any], where: str) -> SomeConfig:
    """``base`` with the settings of ``own``; what these leave without effect goes back to its default.

    Raises:
        ConfigError: one of them is unknown, beyond its limits or without effect itself.
    """
    kind = type(base)
    if strange := sorted(own.keys() - kind.model_fields.keys()):
        raise ConfigError(f"{where}.{strange[0]} is no setting. Use some of {', '.join(kind.model_fields)}.")
    values = {**base.model_dump(), **own}
    idle = kind.model_construct(**values).idle().keys() - own.keys()
    try:
        laid = kind.model_validate({name: value for name, value in values.items() if name not in idle})
    except ValidationError as error:
        raise ConfigError(f"{where}: {said(error)}.") from None
    for name, purpose in laid.in_vain().items():
        raise ConfigError(f"{where}: {no_effect(f'{name}={own[name]}', purpose)}.")
    return laid


def said(error: ValidationError) -> str:
    """What is wrong, without what pydantic says about itself."""
    lines = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False))
    return "; ".join(line.removeprefix(": ").removeprefix("Value error, ") for line in lines)


def inherited(config: DiffusionConfig, adapter: AdapterConfig, base: DiffusionConfig) -> DiffusionConfig:
    """The base's settings with the adapter's over them, and an optimiser of its own.

    Raises:
        ConfigError: what the adapter sets does not fit the base.
    """
    if adapter.label_dropout and not base.label_dropout:
        raise ConfigError(
            f"adapter.label_dropout={adapter.label_dropout}: the base always knew the class, and its embedding of an "
            "unknown one is not adapted. Leave it out."
        )
    own = {
        "label_dropout": base.label_dropout if adapter.label_dropout is None else adapter.label_dropout,
        "sampler": laid_over(base.sampler, adapter.sampler, "adapter.sampler"),
        "likelihood": laid_over(base.likelihood, adapter.likelihood, "adapter.likelihood"),
        "optimizer": config.optimizer,
    }
    try:
        return DiffusionConfig.model_validate({**dict(base), **own})
    except ValidationError as error:
        raise ConfigError(f"The adapter does not fit its base: {said(error)}.") from None
