"""LoRA: a frozen base whose chosen layers are each changed by a trained matrix of low rank.

A layer's weight W becomes ``W + alpha / rank * B A``. B starts at zero, so training starts from the base; only A and B
are trained and stored.
Source: Hu et al., 2022, https://arxiv.org/abs/2106.09685.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError
from kinfolk_families.diffusion.config import AdapterConfig, DiffusionConfig

INHERITED = ("network", "preconditioning", "max_frequency", "conditional")  # what a base has decided
REPLACEABLE = ("sampler", "likelihood")  # what it has chosen, and an adapter may choose otherwise, field by field


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


def inherited(config: DiffusionConfig, base: DiffusionConfig) -> DiffusionConfig:
    """``config`` with what the base is, and how it is sampled, in place of what is left at its default.

    The embedding of "unknown" is not adapted, so a base that has not learnt to do without labels stays so.

    Raises:
        ConfigError: the recipe asks for something else than the base is, or the base cannot sample as asked.
    """
    default, changes = DiffusionConfig(), {}
    for name in INHERITED:
        asked, there = getattr(config, name), getattr(base, name)
        if asked not in (getattr(default, name), there):
            raise ConfigError(f"model.{name} is not the base's, which an adapter cannot change. Leave it out.")
        changes[name] = there
    for name in REPLACEABLE:
        asked, usual = getattr(config, name), dict(getattr(default, name))
        own = {key: value for key, value in dict(asked).items() if value != usual[key]}
        changes[name] = getattr(base, name).model_copy(update=own)
    if not base.label_dropout:
        changes["label_dropout"] = 0.0
    try:
        DiffusionConfig.model_validate({**dict(config), **changes, "adapter": None})
    except ValueError as error:
        raise ConfigError(f"The recipe does not fit its base: {error}") from None
    return config.model_copy(update=changes)
