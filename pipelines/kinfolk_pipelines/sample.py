"""Draw samples of a registered model to a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kinfolk import sampling
from kinfolk.config import override
from kinfolk.errors import ConfigError
from kinfolk.pictures import draw
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.settings import Settings

_PIXELS = 640  # least height of a picture for a person


def picture_scale(height: int, rows: int) -> int:
    """How often a pixel is repeated so that ``rows`` rows of pictures fill a screen."""
    return max(_PIXELS // max(height * rows, 1), 1)


def write_samples(
    settings: Settings,
    reference: str,
    out: Path,
    n: int,
    seed: int,
    label: int | None,
    sets: Sequence[str],
) -> str:
    """Write ``n`` samples as PNG, or as a NumPy array for a name that ends in ``.npy``; returns the model's reference.

    Raises:
        ConfigError: the ending is another one, or such samples cannot be drawn.
        RequestError: the model cannot do what was asked.
    """
    if out.suffix not in (".png", ".npy"):
        raise ConfigError(f"{out} ends in {out.suffix or 'nothing'!r}: use .png for a picture or .npy for numbers.")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: give the name of a file.")
    loaded = load_model(settings, reference)
    samples = sampling.sample(loaded.model, n, seed, label, override({}, sets))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, samples.numpy(), allow_pickle=False)
    else:
        spec = loaded.model.spec
        scale = picture_scale(spec.shape[-2], round(n**0.5)) if spec.kind == "image" else 1
        out.write_bytes(draw(samples, spec, scale))
    return loaded.version.reference
