"""Class labels of sampled rows and of first stages, and where a module's tensors live."""

import torch
from torch import Tensor, nn

from kinfolk.contract import ConfigError, Model, RequestError, SampleRequest
from kinfolk.rng import row_integers


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters are."""
    return next(module.parameters()).device


def row_labels(request: SampleRequest, classes: int, unknown: bool = False) -> Tensor:
    """The class of each row: as asked, or drawn uniformly from the row's own seed. -> (N,) int64 on the CPU

    Between two seeds it is the class of the nearer one. A row that is made from a given sample is of that one's class:
    told, or ``classes`` where there is an unknown one.

    Raises:
        RequestError: a sample is given without its class, and the model cannot do without.
    """
    if request.label is not None:
        return request.label
    if request.x is None:
        return row_integers(_nearer(request), classes)
    if not unknown:
        raise RequestError("label", f"A sample is given without its class: give labels, 0 to {classes - 1}.")
    return torch.full_like(request.seeds, classes)


def _nearer(request: SampleRequest) -> Tensor:
    """The seed that each row has most of. -> (N,) int64"""
    if request.seed_to is None or request.weight is None:
        return request.seeds
    return torch.where(request.weight < 0.5, request.seeds, request.seed_to)


def check_told(first_stage: Model, conditional: bool) -> None:
    """Refuse a first stage that is told the class under a model that knows none to tell it.

    Raises:
        ConfigError: says so.
    """
    if "label" in first_stage.tasks.conditions and not conditional:
        raise ConfigError("The first stage wants labels to decode. Set model.conditional=true, or use another.")
