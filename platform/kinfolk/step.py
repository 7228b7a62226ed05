"""One phase's turn: gradients of its own parameters, averaged over microbatches and workers, checked, applied."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from kinfolk.contract import Batch, Loss, OptimizerConfig, Phase, Progress

_BUCKET_BYTES = 25 * 2**20  # as in torch's DistributedDataParallel


class NonFiniteError(ArithmeticError):
    """A loss or gradient was not finite; no parameter has been changed."""


@dataclass(frozen=True, slots=True)
class World:
    """The workers that train together, as far as a step needs to know them."""

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = lambda value: value  # sum over workers, in place


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that required grad when the module was built, in their own order."""
    return [value for value in module.parameters() if value.requires_grad]


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> optim.Optimizer:
    """The configured optimiser of a phase; weight decay spares vectors and scalars."""
    parameters = trainable(module)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    lr, betas, eps = config.lr, config.betas, config.eps
    match config.kind:
        case "adam":
            return optim.Adam(groups, lr, betas, eps, fused=True)
        case "adamw":
            return optim.AdamW(groups, lr, betas, eps, fused=True)
        case "radam":
            return optim.RAdam(groups, lr, betas, eps, foreach=True)
        case "rmsprop":
            return optim.RMSprop(groups, lr, alpha=betas[1], eps=eps, foreach=True)
        case "sgd":
            return optim.SGD(groups, lr, momentum=betas[0], fused=True)


def optimizer_slots(config: OptimizerConfig) -> set[str]:
    """Names of what the configured optimiser keeps of each parameter, once it has moved it."""
    probe = nn.ParameterList([torch.zeros(1, 1), torch.zeros(1)])
    for parameter in probe:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(probe, config)
    optimizer.step()
    return {name for slots in optimizer.state.values() for name in slots}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast on ``device``, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def _accumulate(
    phase: Phase, microbatches: Sequence[Batch], progress: Sequence[Progress], precision: str
) -> dict[str, Tensor]:
    """Backward of the mean loss over microbatches into the phase's own parameters; the mean logs."""
    parameters = trainable(phase.module)
    share = 1 / len(microbatches)
    means: dict[str, Tensor] = {}
    for batch, where in zip(microbatches, progress, strict=True):
        with autocast(precision, batch.x.device):
            loss: Loss = phase.loss(batch, where)
        (loss.value.float() * share).backward(inputs=parameters)
        for name, value in {"loss": loss.value.detach(), **loss.logs}.items():
            means[name] = means.get(name, 0) + value.float() * share
    return means


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if buckets[-1] and size + tensor.nbytes > _BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.nbytes
    return buckets


def average(tensors: Sequence[Tensor], world: World) -> None:
    """Replace every tensor by its mean over workers, in buckets; one worker has nothing to do."""
    if world.size == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1).float() for tensor in bucket])
        flat = world.all_reduce(flat) / world.size
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def turn(
    phase: Phase,
    optimizer: optim.Optimizer,
    microbatches: Sequence[Batch],
    progress: Sequence[Progress],
    world: World,
    *,
    precision: str = "float32",
    lr_scale: float = 1.0,
) -> dict[str, Tensor]:
    """One update of ``phase``; logs are means over microbatches and workers, in float32.

    The finite check sees averaged values, so all workers come to the same answer.

    Raises:
        NonFiniteError: the loss or a gradient is NaN or infinite; parameters and optimiser are untouched.
    """
    optimizer.zero_grad(set_to_none=True)
    logs = _accumulate(phase, microbatches, progress, precision)
    gradients = [value.grad for value in trainable(phase.module) if value.grad is not None]
    average([*gradients, *logs.values()], world)
    norm = torch.nn.utils.get_total_norm(gradients)
    if not (norm.isfinite() and logs["loss"].isfinite()):
        raise NonFiniteError(f"{phase.name}: loss {float(logs['loss']):g}, gradient norm {float(norm):g}")
    if phase.optimizer.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trainable(phase.module), phase.optimizer.clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = phase.optimizer.lr_at(progress[0].samples_seen) * lr_scale
    optimizer.step()
    if phase.after is not None:
        with torch.no_grad():
            phase.after(progress[0])
    return {**logs, "gradient_norm": norm}
