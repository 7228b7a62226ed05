import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from kinfolk.abilities import Ability
from kinfolk.contract import DataSpec
from kinfolk.serving.media import EVENTS, JSON, NPY, PNG, encode, negotiate, offered

GREY = DataSpec(kind="image", shape=(1, 4, 4), levels=256)
PLANE = DataSpec(kind="vector", shape=(2,))
SPACE = DataSpec(kind="vector", shape=(3,))


@pytest.mark.parametrize(
    ("accept", "offers", "expected"),
    [
        ("", (PNG, JSON), PNG),
        ("*/*", (PNG, JSON), PNG),
        ("*/*", (JSON, NPY), JSON),
        ("application/json", (PNG, JSON), JSON),
        ("image/*", (PNG, JSON), PNG),
        ("application/*;q=0.5, image/png;q=0.4", (PNG, JSON, NPY), JSON),
        ("application/x-npy, */*;q=0.1", (PNG, JSON, NPY), NPY),
        ("image/png;q=0, */*", (PNG, JSON), JSON),
        ("Application/JSON ; charset=utf-8", (PNG, JSON), JSON),
        ("text/html", (PNG, JSON), None),
        ("image/png", (JSON, NPY), None),
        ("image/png;q=zero", (PNG,), None),
    ],
)
def test_the_client_gets_what_it_likes_best(accept, offers, expected):
    assert negotiate(accept, offers) == expected


def test_what_can_be_drawn_is_drawn_first():
    def drawn(spec, **given):
        return offered(Ability("sample", (), None, spec, **given))

    assert drawn(GREY)[0] == drawn(PLANE)[0] == PNG
    assert drawn(SPACE) == (JSON, NPY, EVENTS)
    assert drawn(DataSpec(kind="image", shape=(1, 4, 4)), rows=lambda batch, seeds: batch.x) == (JSON, NPY)
    assert drawn(None, rows=lambda batch, seeds: seeds) == (JSON, NPY)


def test_values_that_json_cannot_hold_are_null_there():
    told = json.loads(encode(torch.tensor([1.5, float("nan"), -float("inf")]), None, JSON, {}))
    assert told["values"] == [1.5, None, None]


def test_every_form_holds_the_same_pixels():
    samples = torch.linspace(-1.2, 1.2, 32).view(2, 1, 4, 4)
    expected = ((samples.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    array = np.load(io.BytesIO(encode(samples, GREY, NPY, {})), allow_pickle=False)
    told = json.loads(encode(samples, GREY, JSON, {"seed": 4}))
    grid = np.asarray(Image.open(io.BytesIO(encode(samples, GREY, PNG, {}))))
    assert array.dtype == np.uint8
    assert np.array_equal(array, expected)
    assert np.array_equal(told["samples"], expected)
    assert told["seed"] == 4
    assert told["shape"] == [2, 1, 4, 4]
    assert np.array_equal(grid[:4, :4], expected[0, 0])
    assert np.array_equal(grid[:4, -4:], expected[1, 0])


def test_vectors_stay_float32_and_tokens_int64():
    assert np.load(io.BytesIO(encode(torch.randn(3, 2).double(), PLANE, NPY, {}))).dtype == np.float32
    tokens = DataSpec(kind="tokens", shape=(5,), levels=7)
    assert np.load(io.BytesIO(encode(torch.arange(5).view(1, 5), tokens, NPY, {}))).dtype == np.int64
