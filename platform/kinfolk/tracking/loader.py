"""What MLflow calls to load a registered version: the bundle's own loader behind pyfunc's ``predict``. No pickle.

Loads with ``mlflow.pyfunc.load_model`` wherever kinfolk and the model's family are installed.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinfolk.bundle import load_bundle
from kinfolk.contract import Model, SampleRequest
from kinfolk.errors import RequestError
from kinfolk.sampling import make_request, row_seeds, run

_MAX_ROWS = 256  # sampled together; chunking does not change a picture
_SEED_LIMIT = 2**62


class Sampler:
    """A model as pyfunc sees it: seeds in, samples out."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """Samples for the rows of a table with column ``seed`` and, for a conditional model, ``label``.

        ``params``: ``n`` samples a row (the i-th has seed + i), ``options`` as a JSON object. (rows) -> (rows * n, *)

        Raises:
            RequestError: a column, label or option the model cannot use.
        """
        n, options = _parameters(params or {})
        if "sample" not in self.model.tasks.starts:
            raise RequestError("task", f"This {self.model.family.name} cannot sample.")
        seeds = torch.cat([row_seeds(seed, n) for seed in _seeds(model_input, n)])
        labels = _labels(model_input)
        whole = make_request(self.model, len(seeds), 0, labels and [k for k in labels for _ in range(n)], options)
        firsts = range(0, len(seeds), _MAX_ROWS)
        parts = [self._sample(replace(whole, seeds=seeds), slice(first, first + _MAX_ROWS)) for first in firsts]
        samples: NDArray[np.float32] = torch.cat(parts).numpy()
        return samples

    def _sample(self, whole: SampleRequest, rows: slice) -> Tensor:
        label = None if whole.label is None else whole.label[rows]
        return run(self.model.tasks, replace(whole, seeds=whole.seeds[rows], label=label))


def _load_pyfunc(data_path: str, model_config: Mapping[str, Any] | None = None) -> Sampler:  # noqa: ARG001
    return Sampler(load_bundle(Path(data_path)))


def _parameters(params: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    n = int(params.get("n", 1))
    if n < 1:
        raise RequestError("n", f"n={n}: ask for at least 1 sample a row.")
    text = params.get("options", "{}")
    try:
        options = json.loads(text)
    except ValueError as error:
        raise RequestError("options", f"options is no JSON: {error}. Example: {{}}.") from None
    if not isinstance(options, dict):
        raise RequestError("options", f'options is {text[:80]}; use a JSON object, for example {{"steps": 20}}.')
    return n, options


def _column(model_input: Any, name: str) -> list[int]:
    values = np.asarray(model_input[name]).reshape(-1)
    if values.dtype.kind not in "iu":
        raise RequestError(name, f"column {name} holds {values.dtype}; use integers in every row.")
    return [int(value) for value in values]


def _seeds(model_input: Any, n: int) -> list[int]:
    if "seed" not in model_input:
        raise RequestError("seed", "The table has no column seed: give one integer for each row.")
    seeds = _column(model_input, "seed")
    if not seeds:
        raise RequestError("seed", "The table has no rows: give at least one seed.")
    if bad := [seed for seed in seeds if not 0 <= seed <= _SEED_LIMIT - n]:
        raise RequestError("seed", f"seed={bad[0]}: use an integer from 0 to 2^62 - n.")
    return seeds


def _labels(model_input: Any) -> list[int] | None:
    return _column(model_input, "label") if "label" in model_input else None
