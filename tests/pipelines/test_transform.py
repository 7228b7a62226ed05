"""What a model makes of test pictures: each task's rows can be worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kinfolk.contract import Config, DataSpec, Family, Model, RequestError, SamplerOptions, SamplerState, Tasks
from kinfolk.data.source import TensorSource
from kinfolk.errors import ConfigError
from kinfolk_pipelines import transform
from kinfolk_pipelines.transform import Asked, made, write_transformed

SPEC = DataSpec(kind="image", shape=(1, 2, 2), levels=17, classes=3)
LATENT = DataSpec(kind="vector", shape=(4,))


class Options(SamplerOptions):
    noise_level: float = 0.0


def no_task(module):
    return Tasks(options=SamplerOptions())


def every_task(module):
    """Latents are the pixels, halved; what is denoised tells the class it was told; a draw tells its noise level."""

    def start(request):
        return SamplerState.start(request.x + request.options.noise_level + request.label.view(-1, 1, 1, 1), request, 1)

    return Tasks(
        options=Options(),
        starts={"denoise": start},
        advance=lambda state: state.step(state.x),
        render=lambda state: state.x,
        conditions=frozenset({"label"}),
        encode=lambda batch, seeds: batch.x.flatten(1) / 2,
        decode=lambda batch, seeds: 2 * batch.x.view(-1, *SPEC.shape),
        reconstruct=lambda batch, seeds: batch.x + seeds.view(-1, 1, 1, 1),
        denoise=lambda x, sigma, label: x + label.view(-1, 1, 1, 1) + sigma.view(-1, 1, 1, 1),
        latent_spec=LATENT,
    )


def model_of(tasks=every_task):
    family = Family("stub", frozenset({"image"}), Config, Options, lambda *_: nn.Identity(), lambda _: [], tasks)
    return Model(family, Config(), SPEC, nn.Identity())


@pytest.fixture
def source():
    x = torch.randint(0, 17, (12, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TensorSource(SPEC, x, torch.arange(12) % 3)


def test_a_picture_and_its_reconstruction(source):
    rows = made(model_of(), source, Asked(n=3, seed=5))
    x = source.take(0, 3).x
    assert torch.equal(rows, torch.stack([x, x + torch.tensor([5.0, 6, 7]).view(3, 1, 1, 1)], dim=1))


def test_noise_and_what_was_under_it(source):
    clean, noisy, estimate, draw = made(model_of(), source, Asked("denoise", n=4, noise=0.25)).unbind(1)
    label = source.take(0, 4).label.view(4, 1, 1, 1)
    assert torch.equal(clean, source.take(0, 4).x)
    assert (noisy - clean).std() == pytest.approx(0.25, abs=0.12)
    assert torch.allclose(estimate, noisy + label + 0.25)
    assert torch.allclose(draw, noisy + label + 0.25)
    left_out, half = (made(model_of(), source, Asked("denoise", n=4, noise=noise)) for noise in (None, 0.5))
    assert torch.equal(left_out, half)
    again = made(model_of(), source, Asked("denoise", n=1, seed=1, noise=0.25))[:, 1]
    assert torch.allclose(again[0] - clean[0], noisy[1] - clean[1])  # row i of seed s has the noise of seed s + i


def test_a_model_that_is_told_nothing_and_draws_nothing_shows_three(source):
    tasks = Tasks(options=SamplerOptions(), denoise=lambda x, sigma, label: x if label is None else 1 / 0)
    assert made(model_of(lambda _: tasks), source, Asked("denoise", n=2)).shape == (2, 3, 1, 2, 2)


def test_ways_lead_from_the_first_pictures_to_the_next(source):
    rows = made(model_of(), source, Asked("interpolate", n=2, path="linear"))
    assert torch.allclose(rows[:, 0], source.take(0, 2).x)
    assert torch.allclose(rows[:, -1], source.take(2, 4).x)
    assert torch.allclose(rows[:, 3], torch.lerp(rows[:, 0], rows[:, -1], 3 / 7))
    arc = made(model_of(), source, Asked("interpolate", n=2))
    assert torch.allclose(arc[:, -1], rows[:, -1], atol=1e-6)
    assert not torch.allclose(arc[:, 3], rows[:, 3], atol=1e-3)


def test_sums_of_three_pictures(source):
    a, b, c, found = made(model_of(), source, Asked("arithmetic", n=4)).unbind(1)
    assert torch.equal(torch.cat([a, b, c]), source.take(0, 12).x)
    assert torch.allclose(found, a - b + c)


@pytest.mark.parametrize(
    ("asked", "tasks", "said"),
    [
        (Asked("reconstrct"), every_task, "Did you mean 'reconstruct'"),
        (Asked("arithmetic", n=5), every_task, "needs 15 test samples, the data has 12"),
        *((Asked("denoise", n=1, noise=noise), every_task, "above 0") for noise in (0.0, -1.0, math.inf, math.nan)),
        (Asked("interpolate", n=1, path="arc"), every_task, "use 'spherical' or 'linear'"),
        (Asked(n=1, noise=0.5), every_task, "--noise 0.5 would have no effect: it is for --task denoise. Leave it out"),
        (Asked("denoise", n=1, path="spherical"), every_task, "--path spherical .* it is for --task interpolate"),
        *(
            (Asked(n=1, seed=seed), every_task, f"seed={seed}: use an integer from 0")
            for seed in (-1, 2**62, 2**63 - 1)
        ),
        *((Asked(task, n=1), no_task, "This stub model cannot") for task in transform.TASKS),
    ],
)
def test_what_cannot_be_made_is_refused(source, asked, tasks, said):
    with pytest.raises((ConfigError, RequestError), match=said):
        made(model_of(tasks), source, asked)


def test_a_row_of_the_file_is_a_row(source, tmp_path, monkeypatch):
    version = SimpleNamespace(reference="stub/1", lineage=SimpleNamespace(data="digits"))
    data = SimpleNamespace(prepared=SimpleNamespace(source=lambda split: {"test": source}[split]))
    monkeypatch.setattr(transform, "load_model", lambda *_: SimpleNamespace(model=model_of(), version=version))
    monkeypatch.setattr(transform, "open_dataset", lambda _, name: {"digits": data}[name])
    asked = Asked("interpolate", n=3, path="linear")
    assert write_transformed(None, "stub", tmp_path / "new" / "x.npy", asked) == "stub/1"
    assert np.array_equal(np.load(tmp_path / "new" / "x.npy"), made(model_of(), source, asked).numpy())
    write_transformed(None, "stub", tmp_path / "x.png", asked)
    width, height = Image.open(tmp_path / "x.png").size
    scale = math.floor(640 / (2 * 3))
    assert (width, height) == (scale * (8 * 4 - 2), scale * (3 * 4 - 2))
    with pytest.raises(ConfigError, match=r"use \.png"):
        write_transformed(None, "stub", tmp_path / "x.gif", asked)
