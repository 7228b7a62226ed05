import asyncio
import io
import json
import random
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

import kinfolk
from kinfolk.contract import DataSpec
from kinfolk.sampling import make_request, sample
from kinfolk.serving.access import Access, Gate, holders
from kinfolk.serving.directory import build_app

PATH = "/v1/models/walk/sample"


@pytest.fixture
def ask(make_host, walk):
    """One exchange with an app that serves the watched family."""

    def exchange(method, path=PATH, *, token=None, model=None, limits=None, before=None, **request):
        async def scenario():
            host = make_host(model or walk, **(limits or {}))
            app = build_app([host], holders(token))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await before(host) if before else None
                response = await client.request(method, path, **request)
            await host.current.batcher.close()
            return response

        return asyncio.run(scenario())

    return exchange


def test_samples_over_http_are_those_of_the_sampler(ask, walk):
    answer = ask("POST", json={"n": 5, "seed": 7, "label": 2, "steps": 4}, headers={"Accept": "application/x-npy"})
    expected = walk.spec.to_uint8(sample(walk, 5, 7, 2, {"steps": 4})).numpy()
    assert answer.status_code == 200
    assert answer.headers["Kinfolk-Seed"] == "7"
    assert answer.headers["Kinfolk-Version"] == "3"
    assert np.array_equal(np.load(io.BytesIO(answer.content), allow_pickle=False), expected)


def test_a_seed_that_was_drawn_is_told_and_gives_the_same_again(ask):
    first = ask("POST", headers={"Accept": "application/json"}).json()
    again = ask("POST", json={"seed": first["seed"]}, headers={"Accept": "application/json"}).json()
    other = ask("POST", headers={"Accept": "application/json"}).json()
    assert first["samples"] == again["samples"]
    assert other["seed"] != first["seed"]


def test_a_picture_is_the_default_where_samples_can_be_drawn(ask, make_walk):
    vectors = make_walk(DataSpec(kind="vector", shape=(3,), classes=10))
    assert ask("POST", json={"n": 4}).headers["content-type"] == "image/png"
    assert ask("POST", model=vectors, json={"n": 4}).headers["content-type"] == "application/json"
    assert ask("POST", model=vectors, headers={"Accept": "image/png"}).status_code == 406


FORM = b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n--b--\r\n'
MISTAKES = [
    ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "body"),
    ({"json": [1]}, 400, "body"),
    ({"content": b'{"n": NaN}', "headers": {"Content-Type": "application/json"}}, 400, "body"),
    ({"content": b"\xff\x00", "headers": {"Content-Type": "application/json"}}, 400, "body"),
    ({"content": b"[" * 5000, "headers": {"Content-Type": "application/json"}}, 400, "body"),
    ({"content": b"n=1", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type"),
    ({"json": {"n": 0}}, 422, "n"),
    ({"json": {"n": 51}}, 422, "n"),
    ({"json": {"n": 10**30}}, 422, "n"),
    ({"json": {"n": "4"}}, 422, "n"),
    ({"json": {"n": True}}, 422, "n"),
    ({"json": {"n": 50, "steps": 50}}, 422, "n"),
    ({"json": {"seed": -1}}, 422, "seed"),
    ({"json": {"seed": 2**62}}, 422, "seed"),
    ({"json": {"label": 10}}, 422, "label"),
    ({"json": {"label": [0, 99], "n": 2}}, 422, "label"),
    ({"json": {"label": [0, 1], "n": 3}}, 422, "label"),
    ({"json": {"steps": 1001}}, 422, "steps"),
    ({"json": {"scale": -1}}, 422, "scale"),
    ({"json": {"pace": "odd"}}, 422, "pace"),
    ({"json": {"stesp": 3}}, 422, "stesp"),
    ({"json": {"\u202e\x00" * 60: 3}}, 422, None),
    ({"json": {"label": list(range(3000))}}, 413, "body"),
    ({"headers": {"Accept": "text/html"}}, 406, "Accept"),
    ({"headers": {"Content-Length": "9" * 5000}}, 400, "body"),
    ({"headers": {"Content-Type": "multipart/form-data; boundary=b; charset=undefined"}, "content": FORM}, 400, "body"),
    ({"headers": {"Accept": "text/event-stream"}, "params": {"previews": "9" * 5000}}, 422, "previews"),
]


@pytest.mark.parametrize(("request_", "status", "field"), MISTAKES)
def test_a_mistake_is_refused_and_its_field_named(ask, request_, status, field):
    answer = ask("POST", limits={"max_n": 50, "max_evaluations": 2000, "max_body_bytes": 6000}, **request_)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error["field"] == field or field is None
    assert len(error["message"]) < 500
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    assert str(Path(kinfolk.__file__).parent) not in answer.text


def test_an_unknown_option_is_answered_with_the_nearest(ask):
    message = ask("POST", json={"stesp": 3}).json()["error"]["message"]
    assert "Did you mean 'steps'" in message
    assert "label" in message


def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(ask):
    async def endless():
        while True:
            yield b" " * 1000

    assert ask("POST", content=endless(), limits={"max_body_bytes": 5000}).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/models/wlak/sample", 404),
        ("GET", "/v1/models/none/openapi.json", 404),
        ("GET", "/docs", 404),
        ("POST", "/v1/models/walk/none", 404),
        ("POST", "/v1/models/..%2fwalk/sample", 404),
        ("GET", "/v1/models/walk/sample", 405),
        ("GET", "/nowhere", 404),
    ],
)
def test_what_is_not_there_is_said_as_json(ask, method, path, status):
    answer = ask(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_an_unknown_model_is_answered_with_the_nearest(ask):
    assert "Did you mean 'walk'" in ask("POST", "/v1/models/wlak/sample").json()["error"]["message"]


@pytest.mark.parametrize("given", [None, "Bearer wrong", "secret", "Basic secret", "Bearer secret ", "bearer"])
def test_without_the_token_nothing_is_answered(ask, given):
    headers = {"Authorization": given} if given else {}
    for method, path in [("POST", PATH), ("GET", "/v1/models"), ("GET", "/v1/models/walk/openapi.json")]:
        answer = ask(method, path, token="secret", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models/walk/healthz", "/"])
def test_what_is_free_is_free_to_be_read_alone(ask, path):
    assert ask("GET", path, token="secret").status_code == 200
    assert ask("HEAD", path, token="secret").status_code == 200
    assert [ask(method, path, token="secret").status_code for method in ("POST", "DELETE", "PUT")] == [401] * 3


def test_with_the_token_everything_is_answered_and_health_without(ask):
    headers = {"Authorization": "Bearer secret"}
    assert ask("POST", token="secret", headers=headers).status_code == 200
    assert ask("GET", "/v1/models", token="secret", headers=headers).status_code == 200
    for path in ("/healthz", "/readyz", "/v1/models/walk/healthz", "/v1/models/walk/readyz"):
        assert ask("GET", path, token="secret").status_code == 200


def test_a_full_queue_is_answered_with_the_time_to_come_back(ask, walk):
    async def fill(host):
        walk.module.watch.gate.clear()
        fill.task = asyncio.create_task(host.current.batcher.run(make_request(walk, n=100)))
        while not host.current.batcher.requests:
            await asyncio.sleep(0.001)
        rows = host.current.batcher.limits.max_rows
        host.current.batcher._engine.speed.add(rows, rows, rows)  # an evaluation a second
        asyncio.get_running_loop().call_later(0.2, walk.module.watch.gate.set)

    answer = ask("POST", json={"n": 2}, limits={"max_evaluations": 300, "max_evaluations_queued": 301}, before=fill)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"  # of 300 and 6 evaluations 5 are above the limit


def test_what_takes_too_long_is_ended_and_its_rows_freed(ask, walk):
    async def block(host):
        walk.module.watch.gate.clear()
        asyncio.get_running_loop().call_later(0.4, walk.module.watch.gate.set)

    answer = ask("POST", json={"n": 2, "steps": 500}, limits={"request_timeout_s": 0.1}, before=block)
    assert answer.status_code == 504
    assert len(walk.module.watch.calls) <= 2


def test_a_fault_of_the_model_shows_no_trace(ask):
    answer = ask("POST", json={"poison": True})
    assert answer.status_code == 500
    assert "poisoned" not in answer.text


def test_a_fault_of_the_server_shows_no_trace(ask):
    async def break_it(host):
        host.served = None

    answer = ask("GET", "/v1/models", before=break_it)
    assert answer.status_code == 500
    assert "Traceback" not in answer.text
    assert "served" not in answer.json()["error"]["message"]


def test_no_body_whatever_is_answered_with_a_fault(make_host, walk):
    chance = random.Random(0)
    values = [0, -1, 1, 2.5, 1e308, True, None, "", "3", "\x00", [], {}, [[1]], {"a": 1}, 2**70, "\ud800"]
    keys = ["n", "seed", "label", "steps", "cost", "scale", "", "__class__", "options", "\u202e"]

    def body():
        text = json.dumps({chance.choice(keys): chance.choice(values) for _ in range(chance.randint(0, 4))}).encode()
        cut = chance.randint(0, len(text)) if chance.random() < 0.3 else len(text)
        return text[:cut] + bytes([chance.randrange(256)]) * (chance.random() < 0.1)

    async def scenario():
        host = make_host(walk, max_evaluations=2000)
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"Content-Type": "application/json"}
            codes = [(await client.post(PATH, content=body(), headers=headers)).status_code for _ in range(300)]
        await host.close()
        return codes

    codes = asyncio.run(scenario())
    assert set(codes) <= {200, 400, 422}
    assert len(set(codes)) == 3


def test_the_list_says_what_is_served_where_and_in_which_version(ask):
    (model,) = ask("GET", "/v1/models").json()["models"]
    assert model["name"] == "walk"
    assert model["tasks"]["sample"]["address"] == PATH
    assert model["state"] == "ready"
    assert model["version"] == "3"
    assert model["family"] == "walk"
    assert not model["stale"]


def test_the_schema_is_that_of_the_model(ask):
    schema = ask("GET", "/v1/models/walk/openapi.json", limits={"max_n": 9}).json()
    content = schema["paths"]["/sample"]["post"]["requestBody"]["content"]["application/json"]
    properties = content["schema"]["properties"]
    assert set(properties) == {
        "n",
        "seed",
        "seeds",
        "label",
        "steps",
        "cost",
        "scale",
        "pace",
        "poison",
        "poison_start",
    }
    assert properties["n"]["anyOf"][0]["maximum"] == 9
    assert properties["steps"]["default"] == 3
    assert properties["label"]["anyOf"][0]["exclusiveMaximum"] == 10
    assert schema["components"]["schemas"]["Pace"]["enum"] == ["even", "uneven"]
    assert properties["steps"]["maximum"] == 1000
    assert content["schema"]["additionalProperties"] is False
    assert "#/$defs" not in json.dumps(schema)


def test_who_asks_too_often_is_told_when_to_come_back_and_others_are_answered(monkeypatch, make_host, walk):
    monkeypatch.setattr("kinfolk.serving.app.Gate", partial(Gate, clock=lambda: 0.0))
    slow = Access(name="slow", token="secret-s", requests_per_s=0.1, burst=2)
    free = Access(name="free", token="secret-f")

    async def scenario():
        host = make_host(walk)
        transport = httpx.ASGITransport(build_app([host], [slow, free]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            often = [await client.post(PATH, headers={"Authorization": "Bearer secret-s"}) for _ in range(3)]
            other = await client.post(PATH, headers={"Authorization": "Bearer secret-f"})
            health = await client.get("/v1/models/walk/healthz", headers={"Authorization": "Bearer secret-s"})
        await host.close()
        return often, other, health

    often, other, health = asyncio.run(scenario())
    assert [answer.status_code for answer in often] == [200, 200, 429]
    assert often[-1].headers["Retry-After"] == "10"
    assert "0.1 times a second" in often[-1].json()["error"]["message"]
    assert (other.status_code, health.status_code) == (200, 200)


LOOK = "/v1/models/walk/-/look"
PEOPLE = [Access(name="draws", token="secret-d"), Access(name="keeps", token="secret-k", role="admin")]


@pytest.fixture
def admin(make_host, walk):
    """Requests to an app that asks for ``access``, with how often the registry was looked at meanwhile."""

    def exchange(access, *requests, follows=True):
        async def scenario():
            host, looks = make_host(walk), []

            async def look():
                looks.append(host.current.version)

            host.look = look if follows else None
            transport = httpx.ASGITransport(build_app([host], access), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                answers = [
                    await client.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
                    for method, path, token in requests
                ]
            await host.close()
            return answers, len(looks)

        return asyncio.run(scenario())

    return exchange


def test_an_admin_makes_the_replica_look_at_the_registry_and_nobody_else_does(admin):
    tokens = ("secret-k", "secret-d", "wrong", None)
    answers, looks = admin(PEOPLE, *(("POST", LOOK, token) for token in tokens))
    assert [answer.status_code for answer in answers] == [200, 403, 401, 401]
    assert answers[0].json() == {"version": "3", "trial": None, "stale": None}
    assert answers[1].json()["error"]["field"] == "Authorization"
    assert "draws has the role sample" in answers[1].json()["error"]["message"]
    assert looks == 1


def test_an_admin_samples_as_well_and_nothing_below_the_address_of_admins_is_told_to_others(admin):
    requests = [("POST", PATH, "secret-k"), ("GET", LOOK, "secret-k"), ("GET", "/v1/models/walk/-/", "secret-d")]
    answers, _ = admin(PEOPLE, *requests)
    assert [answer.status_code for answer in answers] == [200, 405, 403]


@pytest.mark.parametrize("path", [LOOK, "/v1/models/walk/-%2Flook", "/v1/models/walk/-/none", "/-/look"])
def test_a_server_without_tokens_has_no_admin(admin, path):
    (answer,), looks = admin([], ("POST", path, "secret-k"))
    assert (answer.status_code, looks) == (403, 0)
    assert "role: admin" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models/walk//-/look", 403), ("/v1/models/walk/-", 404), ("/v1/models/walk/look", 404)]
)
def test_no_other_spelling_of_the_address_looks(admin, path, status):
    (answer,), looks = admin([], ("POST", path, None))
    assert (answer.status_code, looks) == (status, 0)


def test_where_no_registry_is_followed_that_is_said(admin):
    (answer,), _ = admin(PEOPLE, ("POST", LOOK, "secret-k"), follows=False)
    assert answer.status_code == 404
    assert "follows no registry" in answer.json()["error"]["message"]


def test_a_body_that_comes_too_slowly_is_refused_and_its_connection_closed(serve, walk):
    address = httpx.URL(serve(walk, body_timeout_s=0.3))

    def answer(pauses):
        """What comes back to a client that sends a byte after each pause, of a body that is never whole."""
        began = time.monotonic()
        with socket.create_connection((address.host, address.port), timeout=5) as line:
            line.sendall(f"POST {PATH} HTTP/1.1\r\nHost: test\r\nContent-Length: 99\r\n\r\n{{".encode())
            for pause in pauses:
                time.sleep(pause)
                with suppress(OSError):
                    line.sendall(b" ")
            text = b"".join(iter(lambda: line.recv(4096), b""))  # until the server closes
        return text.decode(), time.monotonic() - began

    for pauses in ([], [0.1] * 3):
        text, took_s = answer(pauses)
        assert text.startswith("HTTP/1.1 408")
        assert '"field": "body"' in text
        assert 0.25 < took_s < 2
    assert httpx.post(address.join(PATH), json={}).status_code == 200


def test_a_body_that_comes_in_parts_in_time_is_whole(ask):
    async def parts():
        for part in (b'{"n"', b": 2", b"}"):
            await asyncio.sleep(0.02)
            yield part

    assert ask("POST", content=parts(), headers={"Content-Type": "application/json"}).status_code == 200


def test_who_waits_less_long_than_a_body_may_take_is_told_of_the_wait(ask):
    async def slow():
        await asyncio.sleep(1)
        yield b"{}"

    assert ask("POST", content=slow(), headers={"Kinfolk-Timeout": "0.1"}).status_code == 504


@pytest.mark.parametrize("path", [PATH, "/v1/images/generations"])
def test_a_body_that_does_not_come_is_refused_at_the_root_as_well(ask, monkeypatch, path):
    monkeypatch.setattr("kinfolk.serving.directory._BODY_TIMEOUT_S", 0.05)

    async def slow():
        await asyncio.sleep(1)
        yield b"{}"

    answer = ask("POST", path, content=slow(), limits={"body_timeout_s": 0.05})
    assert answer.status_code == 408
