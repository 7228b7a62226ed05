"""Class labels of sampled rows and of first stages, and where a module's tensors live."""

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError, Model, SampleRequest
from kinfolk.rng import row_integers


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters are."""
    return next(module.parameters()).device


def row_labels(request: SampleRequest, classes: int) -> Tensor:
    """The class of each row: as asked, or drawn uniformly from the row's own seed. -> (N,) int64 on the CPU"""
    return row_integers(request.seeds, classes) if request.label is None else request.label


def check_told(first_stage: Model, conditional: bool) -> None:
    """Refuse a first stage that is told the class under a model that knows none to tell it.

    Raises:
        ConfigError: says so.
    """
    if "label" in first_stage.tasks.conditions and not conditional:
        raise ConfigError("The first stage wants labels to decode. Set model.conditional=true, or use another.")
