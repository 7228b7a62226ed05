"""Ways and sums in latent space, on a model whose encoder and decoder are linear and known."""

import pytest
import torch

from kinfolk.contract import Batch, Config, ConfigError, DataSpec, Family, Model, RequestError, SamplerOptions, Tasks
from kinfolk.latents import arithmetic, between, interpolate

SPEC = DataSpec(kind="vector", shape=(3,), classes=5)
SEEDS = torch.arange(4)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3, 4, 3, generator=GENERATOR)
A, B, C = (Batch(x, torch.full((4,), label)) for label, x in enumerate(X))
TURN, _ = torch.linalg.qr(torch.randn(3, 3, generator=GENERATOR))


class NoOptions(SamplerOptions):
    pass


def model_of(**tasks):
    """A model that turns samples into latents of equal length, shifted by their class, and back."""
    codec = {
        "encode": lambda batch, seeds: (batch.x - batch.label[:, None]) @ TURN,
        "decode": lambda batch, seeds: batch.x @ TURN.T + batch.label[:, None],
        "latent_spec": DataSpec(kind="vector", shape=(3,)),
    }
    given = Tasks(options=NoOptions(), **{**codec, **tasks})
    family = Family(
        name="turning",
        kinds=frozenset({"vector"}),
        config=Config,
        options=NoOptions,
        build=lambda config, spec, parents: torch.nn.Identity(),
        phases=lambda module: [],
        tasks=lambda module: given,
    )
    return Model(family, Config(), SPEC, torch.nn.Identity())


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_the_ends_of_a_way_are_the_latents_themselves(path):
    assert torch.equal(between(X[0], X[1], 0.0, path), X[0])
    assert torch.equal(between(X[0], X[1], 1.0, path), X[1])


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_the_ends_of_an_interpolation_are_the_samples_with_their_classes(path):
    way = interpolate(model_of(), A, B, SEEDS, torch.tensor([0.0, 0.3, 1.0]), path)
    torch.testing.assert_close(way[0], A.x)
    torch.testing.assert_close(way[2], B.x)


def test_a_class_on_the_way_is_that_of_the_nearer_end():
    way = interpolate(model_of(), A, B, SEEDS, torch.tensor([0.3, 0.7]), "linear")
    for x, weight, label in zip(way, (0.3, 0.7), (0, 1), strict=True):
        torch.testing.assert_close(x, (1 - weight) * (A.x - 0) + weight * (B.x - 1) + label)


def test_a_linear_way_through_a_linear_model_is_straight():
    way = interpolate(model_of(), A, Batch(B.x, A.label), SEEDS, torch.tensor([0.25]), "linear")
    torch.testing.assert_close(way[0], 0.75 * A.x + 0.25 * B.x)


def test_a_spherical_way_keeps_the_length_and_divides_the_angle():
    """A quarter of the way from (1, 0) to (0, 1) is at 22.5 degrees; lengths change evenly."""
    z = between(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]), 0.25, "spherical")
    angle = torch.tensor(torch.pi / 8)
    torch.testing.assert_close(z, 1.5 * torch.stack([angle.cos(), angle.sin()])[None])


def test_arithmetic_adds_the_difference_of_latents_and_keeps_the_class_of_the_last():
    expected = (A.x - 0) - (B.x - 1) + (C.x - 2) + 2
    torch.testing.assert_close(arithmetic(model_of(), A, B, C, SEEDS), expected)


@pytest.mark.parametrize("lacking", ["encode", "decode"])
def test_a_model_without_an_encoder_or_a_decoder_is_refused(lacking):
    model = model_of(**{lacking: None})
    with pytest.raises(ConfigError, match=f"cannot {lacking}. Use a model that encodes and decodes"):
        interpolate(model, A, B, SEEDS, torch.tensor([0.5]))


def test_tokens_are_refused_because_nothing_lies_between_them():
    model = model_of(latent_spec=DataSpec(kind="tokens", shape=(3,), levels=7))
    with pytest.raises(ConfigError, match=r"tokens of 7 levels.*Use a model with continuous latents"):
        arithmetic(model, A, B, C, SEEDS)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_weight_beyond_the_ends_is_refused(weight):
    with pytest.raises(RequestError, match=r"use a number from 0, the first sample, to 1") as error:
        interpolate(model_of(), A, B, SEEDS, torch.tensor([weight]))
    assert error.value.field == "weight"


def test_an_unknown_path_is_refused():
    with pytest.raises(RequestError, match="path='cubic': use 'spherical' or 'linear'"):
        interpolate(model_of(), A, B, SEEDS, torch.tensor([0.5]), "cubic")


def test_batches_of_another_size_than_the_seeds_are_refused():
    with pytest.raises(RequestError, match="c has 2 samples, seeds 4") as error:
        arithmetic(model_of(), A, B, Batch(C.x[:2], C.label[:2]), SEEDS)
    assert error.value.field == "c"
