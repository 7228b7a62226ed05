"""A family nobody here knows: found by its entry point, trained, registered, measured and served, with no edit."""

import asyncio
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from rich.console import Console

from kinfolk import sampling
from kinfolk_pipelines.evaluate import evaluate
from kinfolk_pipelines.models import load_model
from kinfolk_pipelines.plan import plan
from kinfolk_pipelines.promotion import promote_version
from kinfolk_pipelines.settings import Settings
from kinfolk_pipelines.train import train

ROOT = Path(__file__).parents[2]
RECIPE = """
family: gaussian
data: ring
training: {samples: 64, batch_size: 32}
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "recipes" / "ring").mkdir(parents=True)
    (tmp_path / "recipes" / "ring" / "blob.yaml").write_text(RECIPE)
    return Settings(state=tmp_path / "state", data=tmp_path / "data", recipes=tmp_path / "recipes")


async def post(app, path, **more):
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, **more)


def served(model, version, body):
    from kinfolk.serving.app import endpoint_app
    from kinfolk.serving.config import ServedModel
    from kinfolk.serving.host import ModelHost

    async def ask():
        host = ModelHost(ServedModel(name="ring-blob"), model, version)
        answer = await post(endpoint_app(host), "/sample", json=body, headers={"Accept": "application/x-npy"})
        await host.close()
        return answer

    return asyncio.run(ask())


def test_the_whole_line_for_a_family_from_outside(settings, toy, ray_cluster, tmp_path):
    planned = plan(settings, "ring/blob")
    trained = train(settings, planned, Console(quiet=True), workers=2)
    assert trained.version.lineage.family == "gaussian"
    assert trained.version.lineage.data_digest == planned.data.digest
    again = train(settings, plan(settings, "ring/blob"), Console(quiet=True), workers=1)
    assert again.reused
    assert again.version.reference == trained.version.reference

    loaded = load_model(settings, "ring-blob/latest")
    assert loaded.version.reference == trained.version.reference
    measured = evaluate(settings, "ring-blob", samples=100)
    assert "log_prob_density_nats" in measured.figures.metrics
    assert measured.figures.metrics["nfe"] == 4
    assert not promote_version(settings, "ring-blob", "latest").decision.promote  # it has no fd_local
    assert promote_version(settings, "ring-blob", "latest", "the only one").decision.promote
    assert load_model(settings, "ring-blob@champion").version.number == 1

    answer = served(loaded.model, "1", {"n": 3, "seed": 7, "temperature": 0.5})
    assert answer.status_code == 200, answer.text
    (tmp_path / "x.npy").write_bytes(answer.content)
    over_http = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert torch.allclose(over_http, sampling.sample(loaded.model, 3, 7, options={"temperature": 0.5}), atol=1e-6)
    assert served(loaded.model, "1", {"n": 3, "guidance": 2}).status_code == 422


def test_no_platform_line_names_a_family():
    names = "autoencoder|diffusion|gan|gaussian|kinfolk_families"
    done = subprocess.run(
        ["grep", "-rnwE", "--include=*.py", names, "platform"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
