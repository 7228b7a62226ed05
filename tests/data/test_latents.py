"""A data set as a first stage encodes it."""

from dataclasses import replace

import kinfolk_toy
import pytest
import torch

from kinfolk.contract import DataSpec, Tasks
from kinfolk.data.latents import write_latents
from kinfolk.errors import ConfigError
from kinfolk.training.state import build

CODES = DataSpec(kind="tokens", shape=(2,), levels=300)
PLACES = DataSpec(kind="vector", shape=(2,))


def stage(spec, latent=CODES, **tasks):
    """A model that encodes a picture as the sums of its halves, in levels or as they are."""

    def encode(batch, seeds):
        sums = batch.x.flatten(1).unflatten(1, (2, -1)).sum(2)
        return (sums + 32).long() if latent is CODES else sums

    def tasks_of(module):
        given = {"encode": encode, "decode": lambda batch, seeds: batch.x, "latent_spec": latent, **tasks}
        return Tasks(options=kinfolk_toy.Options(), **given)

    return build(replace(kinfolk_toy.FAMILY, tasks=tasks_of), kinfolk_toy.FAMILY.config(), spec, seed=0)


def quiet(what, done, total):
    pass


def test_every_sample_is_encoded_in_its_place_with_its_class(digits, tmp_path):
    latents = write_latents(tmp_path / "codes", digits, stage(digits.spec), "codes", quiet)
    assert latents.spec == CODES.model_copy(update={"classes": 10})
    for split in ("train", "test"):
        plain, coded = digits.source(split), latents.source(split)
        assert len(plain) == len(coded)
        a, b = plain.take(0, len(plain)), coded.take(0, len(coded))
        assert torch.equal(b.label, a.label)
        assert torch.equal(b.x, (a.x.flatten(1).unflatten(1, (2, -1)).sum(2) + 32).long())


def test_the_deviation_of_continuous_latents_is_measured(digits, tmp_path):
    latents = write_latents(tmp_path / "z", digits, stage(digits.spec, PLACES), "z", quiet)
    source = latents.source("train")
    assert latents.spec.data_std == pytest.approx(float(source.take(0, len(source)).x.std(correction=0)), rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "tasks", "said"),
    [(None, {"decode": None}, "must encode and decode"), (PLACES, {}, r"shape \(2,\), the data has \(1, 8, 8\)")],
)
def test_what_is_no_first_stage_is_refused_and_leaves_nothing(digits, tmp_path, spec, tasks, said):
    with pytest.raises(ConfigError, match=said):
        write_latents(tmp_path / "z", digits, stage(spec or digits.spec, **tasks), "z", quiet)
    assert not list(tmp_path.iterdir())
