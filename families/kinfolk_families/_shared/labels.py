"""Class labels of sampled rows, and where a module's tensors live."""

import torch
from torch import Tensor, nn

from kinfolk.contract import SampleRequest
from kinfolk.rng import row_integers


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters are."""
    return next(module.parameters()).device


def row_labels(request: SampleRequest, classes: int) -> Tensor:
    """The class of each row: as asked, or drawn uniformly from the row's own seed. -> (N,) int64 on the CPU"""
    return row_integers(request.seeds, classes) if request.label is None else request.label
