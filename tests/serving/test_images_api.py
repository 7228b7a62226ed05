import asyncio
import base64
import time

import httpx
import pytest

from kinfolk.contract import DataSpec, RequestError
from kinfolk.serving.directory import build_app
from kinfolk.serving.images_api import parse, settings_for


@pytest.fixture
def ask(make_host, walk):
    """One exchange with OpenAI's images API of an app that serves the watched family."""

    def exchange(body, model=None, path="/v1/images/generations", headers=None):
        async def scenario():
            host = make_host(model or walk)
            transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                kept = await client.post(path, json=body, headers=headers)
            await host.close()
            return kept

        return asyncio.run(scenario())

    return exchange


def pictures(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]


def test_its_schema_says_what_a_request_holds(make_host, walk):
    async def told():
        host = make_host(walk)
        transport = httpx.ASGITransport(build_app([host]))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            schema = (await client.get("/openapi.json")).json()
        await host.close()
        return schema["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]["application/json"]["schema"]

    schema = asyncio.run(told())
    assert schema["required"] == ["prompt"]
    assert {"model", "n", "size", "response_format"} <= set(schema["properties"])


def test_a_class_is_drawn_by_its_number_each_sample_a_picture_of_its_own(ask):
    drawn = pictures(ask({"model": "walk", "prompt": "a handwritten 1", "n": 2, "seed": 5, "steps": 4}))
    for seed, each in zip((5, 6), drawn, strict=True):
        body = {"seed": seed, "label": 1, "steps": 4}
        assert each == ask(body, path="/v1/models/walk/sample").content
    assert drawn[0] != drawn[1]


def test_an_empty_prompt_is_any_class_and_one_model_need_not_be_named(ask):
    (drawn,) = pictures(ask({"prompt": "", "seed": 5}))
    assert drawn == ask({"seed": 5}, path="/v1/models/walk/sample").content
    url = ask({"prompt": "", "seed": 5, "response_format": "url"}).json()["data"][0]["url"]
    assert url.removeprefix("data:image/png;base64,") == base64.b64encode(drawn).decode()


MISTAKES = [
    ({"prompt": "a dog"}, 400, "prompt"),
    ({"prompt": "3 or 4"}, 400, "prompt"),
    ({"prompt": "11"}, 400, "prompt"),
    ({"prompt": "9" * 5000}, 400, "prompt"),
    ({"prompt": 3}, 400, "prompt"),
    ({}, 400, "prompt"),
    ({"prompt": "3", "model": "wlak"}, 404, "model"),
    ({"prompt": "3", "n": 11}, 400, "n"),
    ({"prompt": "3", "n": "2"}, 400, "n"),
    ({"prompt": "3", "size": "1024x1024"}, 400, "size"),
    ({"prompt": "3", "stream": True}, 400, "stream"),
    ({"prompt": "3", "output_format": "webp"}, 400, "output_format"),
    ({"prompt": "3", "stesp": 4}, 400, "stesp"),
    ({"prompt": "3", "steps": -1}, 400, "steps"),
    ([], 400, "body"),
]


@pytest.mark.parametrize(("body", "status", "param"), MISTAKES)
def test_a_mistake_is_told_as_that_api_tells_it(ask, body, status, param):
    answer = ask(body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_a_fault_of_the_model_is_the_servers(ask):
    answer = ask({"prompt": "3", "poison": True})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")


def test_a_model_without_classes_or_pictures_says_so(ask, make_walk):
    vectors = make_walk(DataSpec(kind="vector", shape=(3,), classes=10))
    assert ask({"prompt": "3"}, model=vectors).json()["error"]["param"] == "model"


def test_a_model_of_two_channels_draws_no_pictures():
    with pytest.raises(RequestError, match="not pictures") as refused:
        settings_for(parse({"prompt": "1"}), frozenset({"label"}), DataSpec(kind="image", shape=(2, 8, 8), classes=3))
    assert refused.value.field == "model"


def test_a_caller_says_how_long_it_waits(ask, walk):
    walk.module.watch.on_call = lambda: time.sleep(0.1)
    body = {"prompt": "", "steps": 60}
    late = ask(body, headers={"Kinfolk-Timeout": "0.3"})
    assert (late.status_code, late.json()["error"]["type"]) == (504, "server_error")
    wrong = ask(body, headers={"Kinfolk-Timeout": "soon"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "Kinfolk-Timeout")
