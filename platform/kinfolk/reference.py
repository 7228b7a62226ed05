"""What a model draws of a few fixed seeds, kept with its weights: who loads it draws the same, or has another model.

Samples of one seed agree to rounding on any machine; where a sampler enlarges rounding, most of them still do.
"""

from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from kinfolk.bundle import REFERENCE
from kinfolk.contract import DataSpec, Model
from kinfolk.sampling import sample

_SEEDS = 4  # from 0
_AGREEING = 0.75  # least share of samples that agree
_LEVELS_OFF = 5.0  # of 255, most of a sample's mean distance
_TOKENS_OFF = 0.05  # share of a sample's tokens
_DEVIATIONS_OFF = 0.05  # of data that has no levels, in its standard deviations


def drawn(model: Model) -> Tensor | None:
    """Samples of the fixed seeds with the model's own options; None of a model that does not sample. -> (4, *)"""
    return sample(model, _SEEDS) if "sample" in model.tasks.starts else None


def reference_file(model: Model) -> bytes | None:
    """The file that is kept with the model."""
    samples = drawn(model)
    return None if samples is None else save({"samples": samples.contiguous()})


def _distances(found: Tensor, kept: Tensor, spec: DataSpec) -> Tensor:
    """How far samples are off, 1 being the most allowed. (N, *), (N, *) -> (N,)"""
    if spec.kind == "tokens":
        return (found != kept).float().flatten(1).mean(1) / _TOKENS_OFF
    unit = _LEVELS_OFF / 127.5 if spec.levels is not None else _DEVIATIONS_OFF * spec.data_std
    return (found.float() - kept.float()).abs().flatten(1).mean(1) / unit


def strangeness(model: Model, folder: Path) -> str | None:
    """In what way ``model`` draws something else than was kept in ``folder``, in words; None where it does not.

    A folder without such a file has nothing to compare with; samples must be finite all the same.
    """
    found = drawn(model)
    if found is None:
        return None
    if not bool(found.isfinite().all()):
        return "its samples are not finite"
    if not (folder / REFERENCE).is_file():
        return None
    kept = load_file(folder / REFERENCE)["samples"]
    if kept.shape != found.shape:
        return f"its samples have shape {tuple(found.shape)}, those kept with it {tuple(kept.shape)}"
    agreeing = float((_distances(found, kept, model.spec) <= 1).float().mean())
    if agreeing >= _AGREEING:
        return None
    return f"{agreeing:.0%} of its samples of fixed seeds are those that were kept with it, and {_AGREEING:.0%} must be"
