from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kinfolk.contract import Model
from kinfolk.errors import RequestError
from kinfolk.sampling import sample
from kinfolk.tracking.connection import connect
from kinfolk.tracking.lineage import Lineage
from kinfolk.tracking.loader import Sampler
from kinfolk.tracking.registry import register


@pytest.fixture
def pyfunc(uri: str, bundle: Path, run_id: str, lineage: Lineage, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As anybody would load it, with MLflow forbidden to unpickle."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    register(uri, bundle, "vae", run_id, lineage)
    return mlflow.pyfunc.load_model(connect(uri).get_model_version_download_uri("vae", "1"))


def test_pyfunc_draws_what_the_model_draws(pyfunc: Any, model: Model) -> None:
    drawn = pyfunc.predict(pd.DataFrame({"seed": np.arange(7, 12)}))
    assert np.array_equal(drawn, sample(model, 5, seed=7).numpy())
    table = pd.DataFrame({"seed": [7, 8], "label": [3, 3]})
    drawn = pyfunc.predict(table, params={"options": '{"steps": 4}'})
    assert np.array_equal(drawn, sample(model, 2, seed=7, label=3, options={"steps": 4}).numpy())
    assert drawn.dtype == np.float32


def test_n_samples_of_a_row_have_consecutive_seeds(model: Model) -> None:
    table = {"seed": np.array([5, 40]), "label": np.array([1, 2])}
    drawn = torch.from_numpy(Sampler(model).predict(table, {"n": 3}))
    assert torch.equal(drawn[:3], sample(model, 3, seed=5, label=1))
    assert torch.equal(drawn[3:], sample(model, 3, seed=40, label=2))


def test_chunks_do_not_change_a_picture(model: Model) -> None:
    drawn = Sampler(model).predict({"seed": np.array([0])}, {"n": 300})
    assert np.array_equal(drawn, sample(model, 300, max_rows=64).numpy())


@pytest.mark.parametrize(
    ("table", "params", "field"),
    [
        ({"label": [1]}, {}, "seed"),
        ({"seed": [1.5]}, {}, "seed"),
        ({"seed": [-1]}, {}, "seed"),
        ({"seed": [2**62]}, {}, "seed"),
        ({"seed": np.array([], dtype=np.int64)}, {}, "seed"),
        ({"seed": [1], "label": [10]}, {}, "label"),
        ({"seed": [1, 2], "label": [1.0, np.nan]}, {}, "label"),
        ({"seed": [1]}, {"n": 0}, "n"),
        ({"seed": [1]}, {"options": "{"}, "options"),
        ({"seed": [1]}, {"options": "[1]"}, "options"),
        ({"seed": [1]}, {"options": '{"stepps": 2}'}, "stepps"),
        ({"seed": [1]}, {"options": '{"steps": 99}'}, "steps"),
    ],
)
def test_what_cannot_be_drawn_names_its_field(
    model: Model, table: dict[str, Any], params: dict[str, Any], field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        Sampler(model).predict({key: np.asarray(value) for key, value in table.items()}, params)
    assert caught.value.field == field
