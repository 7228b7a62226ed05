"""Ways and sums in a model's latent space, through its own ``encode`` and ``decode``.

Shapes: B batch, W weights, ``*`` the data shape. Seeds are those of the rows: encoding may be random.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kinfolk.contract import Batch, ConfigError, Model, RequestError, RowTask
from kinfolk.rng import slerp

Path = Literal["spherical", "linear"]


def _codec(model: Model) -> tuple[RowTask, RowTask]:
    """Encoder and decoder of a continuous latent."""
    tasks, name = model.tasks, model.family.name
    if tasks.encode is None or tasks.decode is None or tasks.latent_spec is None:
        lacking = "encode" if tasks.encode is None else "decode"
        raise ConfigError(f"This {name} model cannot {lacking}. Use a model that encodes and decodes.")
    if tasks.latent_spec.kind == "tokens":
        raise ConfigError(
            f"This {name} model's latents are tokens of {tasks.latent_spec.levels} levels: there is nothing between "
            "them, and they do not add. Use a model with continuous latents."
        )
    return tasks.encode, tasks.decode


def _check_rows(seeds: Tensor, **batches: Batch) -> None:
    for field, batch in batches.items():
        if len(batch) != len(seeds):
            raise RequestError(field, f"{field} has {len(batch)} samples, seeds {len(seeds)}: give one seed for each.")


def between(a: Tensor, b: Tensor, weight: float, path: Path) -> Tensor:
    """The latents ``weight`` of the way from ``a`` to ``b``, along an arc or a chord. (B, *), (B, *) -> (B, *)

    Raises:
        RequestError: the weight is outside [0, 1], or the path is neither.
    """
    if not 0 <= weight <= 1:
        raise RequestError("weight", f"weight={weight}: use a number from 0, the first sample, to 1, the second.")
    if path == "linear":
        return torch.lerp(a, b, weight)
    if path == "spherical":
        return slerp(a, b, torch.full((len(a),), weight, dtype=torch.float64, device=a.device))
    raise RequestError("path", f"path={path!r}: use 'spherical' or 'linear'.")


@torch.no_grad()
def interpolate(model: Model, a: Batch, b: Batch, seeds: Tensor, weights: Tensor, path: Path = "spherical") -> Tensor:
    """Samples on the way from those of ``a`` to those of ``b``; a class is that of the nearer end. -> (W, B, *shape)

    At weight 0 and 1 they are the reconstructions of ``a`` and ``b``. ``seeds`` (B,), ``weights`` (W,) in [0, 1].

    Raises:
        ConfigError: the model has no continuous latents to go through.
        RequestError: a weight, the path or the number of samples cannot be used.
    """
    encode, decode = _codec(model)
    _check_rows(seeds, a=a, b=b)
    z_a, z_b = encode(a, seeds), encode(b, seeds)
    ways = [(weight, between(z_a, z_b, weight, path)) for weight in weights.tolist()]
    return torch.stack([decode(replace(a if weight < 0.5 else b, x=z), seeds) for weight, z in ways])


@torch.no_grad()
def arithmetic(model: Model, a: Batch, b: Batch, c: Batch, seeds: Tensor) -> Tensor:
    """What sets ``a`` apart from ``b``, given to ``c``: the samples of z_a - z_b + z_c, of c's class. -> (B, *shape)

    Raises:
        ConfigError: the model has no continuous latents to add.
        RequestError: the batches are not of one size.

    Source: Radford et al., 2016 (DCGAN), section 6.3.2, https://arxiv.org/abs/1511.06434.
    """
    encode, decode = _codec(model)
    _check_rows(seeds, a=a, b=b, c=c)
    return decode(replace(c, x=encode(a, seeds) - encode(b, seeds) + encode(c, seeds)), seeds)
