"""OpenAI's own Python client against OpenAI's images API as a model answers it."""

import base64
import io

import httpx
import openai
import pytest
from PIL import Image


@pytest.fixture
def client(serve, walk):
    """The client of a served model, told to try nothing again."""
    with openai.OpenAI(base_url=f"{serve(walk, token='secret')}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_it_draws_the_pictures_that_the_model_gives(client):
    answer = client.images.generate(
        model="walk", prompt="a handwritten 1", n=2, response_format="b64_json", extra_body={"seed": 5, "steps": 4}
    )
    drawn = [base64.b64decode(each.b64_json) for each in answer.data]
    for seed, each in zip((5, 6), drawn, strict=True):
        settings = {"seed": seed, "label": 1, "steps": 4}
        address = f"{client.base_url}models/walk/sample"
        given = httpx.post(address, json=settings, headers={"Authorization": "Bearer secret"})
        assert each == given.content
        assert Image.open(io.BytesIO(each)).format == "PNG"


def test_it_knows_what_it_was_refused_for(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(model="wlak", prompt="1")
    assert "Did you mean 'walk'?" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(model="walk", prompt="a cat")
    assert refused.value.param == "prompt"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").images.generate(model="walk", prompt="1")
