"""Both clients against the real app on a loopback port, and against scripted servers that lose and refuse requests."""

import asyncio
import inspect
import io
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from kinfolk import sampling
from kinfolk.abilities import abilities
from kinfolk.client import (
    AsyncClient,
    Client,
    ClientError,
    FaultError,
    NoAnswerError,
    OverloadedError,
    Preview,
    RefusedError,
    Retries,
)
from kinfolk.client.answers import images_of
from kinfolk.client.calls import Call
from kinfolk.client.memory import Memory
from kinfolk.client.retries import retry_after_s
from kinfolk.contract import DataSpec
from kinfolk.errors import ConfigError

PIXELS = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) * 10
COLOUR = DataSpec(kind="image", shape=(3, 2, 5), levels=256)
PLANE = DataSpec(kind="vector", shape=(2,))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=[Client, AsyncClient])
def use(request):
    """Do something with a client of either kind: ``use(address, lambda client: ...)``; streams come as lists."""

    def waiting(address, what, **options):
        with Client(address, **options) as client:
            got = what(client)
            return list(got) if inspect.isgenerator(got) else got

    def awaited(address, what, **options):
        async def scenario():
            async with AsyncClient(address, **options) as client:
                got = what(client)
                return [each async for each in got] if inspect.isasyncgen(got) else await got

        return asyncio.run(scenario())

    return waiting if request.param is Client else awaited


@pytest.fixture
def ask(use, serve, walk):
    """One task of the watched family: ``ask(lambda model: ...)``."""
    address = serve(walk)
    return lambda what, **options: use(address, lambda client: what(client.model("walk")), **options)


@pytest.fixture
def scripted(use):
    """Ask a server that does what a script says, one entry a request; returns (outcome, requests, seconds slept)."""

    def run(script, what=lambda client: client.model("walk").sample(), **options):
        seen, slept, steps = [], [], iter(script)

        def handle(request):
            seen.append(request)
            step = next(steps)
            if isinstance(step, Exception):
                raise step
            return httpx.Response(step.status_code, headers=step.headers, content=step.content)

        async def dozed(seconds):
            slept.append(seconds)

        def sleep(seconds):
            coroutine = dozed(seconds)
            with pytest.raises(StopIteration):
                coroutine.send(None)

        awaits = "awaited" in use.__name__
        options = {"randbelow": lambda below: below // 2, "sleep": dozed if awaits else sleep} | options
        try:
            outcome = use("http://fake", what, transport=httpx.MockTransport(handle), **options)
        except ClientError as error:
            outcome = error
        return outcome, seen, slept

    return run


def facts(**changed):
    told = {"model": "walk", "version": "3", "family": "walk", "task": "sample", "seed": 1, "calls": 1}
    return {**told, "evaluations": 1, "queued-ms": 0.5, "computed-ms": 1.5, **changed}


def answer(array=PIXELS[None], status=200, **headers):
    out = io.BytesIO()
    np.save(out, array)
    named = {f"Kinfolk-{name}": str(value) for name, value in facts().items()}
    return httpx.Response(status, content=out.getvalue(), headers=named | headers)


def refusal(status, field=None, **headers):
    return httpx.Response(status, json={"error": {"field": field, "message": f"told {status}"}}, headers=headers)


def overloaded(wait="2", status=503):
    return refusal(status, **{"Retry-After": wait})


def picture(pixels=PIXELS):
    return Image.fromarray(pixels[0])


def png(pixels=PIXELS):
    out = io.BytesIO()
    picture(pixels).save(out, "PNG")
    return out.getvalue()


def test_the_client_needs_neither_torch_nor_ray():
    code = "import sys, json, kinfolk.client; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert {"kinfolk", "httpx"} <= loaded
    assert not loaded & {"torch", "ray", "mlflow", "fastapi", "pydantic", "matplotlib"}


def test_samples_are_those_of_the_sampler_with_what_they_took(ask, walk):
    result = ask(lambda model: model.sample(n=5, seed=7, label=2, steps=4, cost=2))
    expected = walk.spec.to_uint8(sampling.sample(walk, 5, 7, 2, {"steps": 4, "cost": 2})).numpy()
    assert np.array_equal(result.array, expected)
    assert np.array_equal([np.asarray(image) for image in result.images], expected[:, 0])
    assert (result.model, result.version, result.family, result.task) == ("walk", "3", "walk", "sample")
    assert (result.seed, result.calls, result.evaluations, result.unit) == (7, 4, 40, "")
    assert result.queued_ms >= 0
    assert result.computed_ms > 0


def test_a_seed_that_the_client_drew_gives_the_same_again(ask):
    first = ask(lambda model: model.sample(n=2))
    again = ask(lambda model: model.sample(n=2, seed=first.seed))
    other = ask(lambda model: model.sample(n=2))
    assert np.array_equal(first.array, again.array)
    assert first.seed != other.seed
    assert ask(lambda model: model.sample(seeds=[first.seed + 1])).images == again.images[1:]


def test_a_sample_may_be_a_picture_an_array_a_path_or_bytes(ask, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png())
    np.save(tmp_path / "x.npy", PIXELS)
    one = [picture(), PIXELS, PIXELS[None], PIXELS.tolist(), path, str(path), png(), tmp_path / "x.npy"]
    for x in one:
        assert np.array_equal(ask(lambda model, x=x: model.reconstruct(x)).array, PIXELS[None])
    three = np.stack([PIXELS, PIXELS + 1, PIXELS + 2])
    for several in (three, three.tolist(), list(three), [picture(PIXELS), PIXELS + 1, png(PIXELS + 2)]):
        assert np.array_equal(ask(lambda model, x=several: model.reconstruct(x)).array, three)


MASK = np.zeros((1, 4, 4), dtype=bool)
MASK[..., :2] = True


@pytest.mark.parametrize("mask", [MASK, MASK.astype(np.uint8) * 255, picture(MASK.astype(np.uint8) * 255)])
def test_what_is_given_stays_and_options_travel_beside_files(ask, walk, mask):
    result = ask(lambda model: model.inpaint(picture(), mask, n=3, seed=5, resample=2, pace="uneven", label=[1, 2, 3]))
    x, given = (torch.from_numpy(each).float() for each in (PIXELS[None] / 127.5 - 1, MASK))
    options = {"resample": 2, "pace": "uneven"}
    for row in range(3):
        request = sampling.make_request(walk, 1, 5 + row, row + 1, options, task="inpaint")
        drawn = sampling.draw(walk.tasks, sampling.completing(request, walk.spec, x, given), "inpaint")
        assert np.array_equal(result.array[row], walk.spec.to_uint8(drawn)[0].numpy())


def test_every_task_gives_what_the_model_does(ask, walk):
    x = PIXELS / 127.5 - 1
    way = ask(lambda model: model.interpolate(3, 9, 4))
    request = sampling.interpolating(sampling.make_request(walk, 4, 3, task="interpolate"), 9)
    assert np.array_equal(way.array, walk.spec.to_uint8(sampling.draw(walk.tasks, request, "interpolate")).numpy())
    latent = ask(lambda model: model.encode(PIXELS))
    assert latent.array == pytest.approx(x.reshape(1, 16)[:, :2], abs=1e-6)
    assert latent.array.dtype == np.float32
    back = ask(lambda model: model.decode(latent.array))
    assert back.array == pytest.approx(np.full((1, 1, 4, 4), (latent.array.mean() + 1) * 127.5), abs=0.51)
    likely = ask(lambda model: model.log_prob([PIXELS, PIXELS]))
    assert likely.array == pytest.approx([-np.square(x).sum()] * 2, rel=1e-5)
    assert likely.unit == "nats, exact of density"
    strange = ask(lambda model: model.anomaly_score(PIXELS, label=3))
    assert strange.array == pytest.approx([3 + x.mean()], abs=1e-5)
    clean = ask(lambda model: model.denoise(PIXELS, noise_level=2.0))
    assert clean.array == pytest.approx((x[None] / 5 + 1) * 127.5, abs=0.51)
    assert np.array_equal(ask(lambda model: model.run("reconstruct", x=PIXELS)).array, PIXELS[None])


def test_what_the_model_cannot_do_is_refused_with_what_it_can(ask):
    for what in (lambda model: model.classify(PIXELS), lambda model: model.complete(PIXELS), lambda m: m.run("dream")):
        with pytest.raises(RefusedError, match="Its tasks: sample") as caught:
            ask(what)
        assert (caught.value.status, caught.value.field) == (404, "task")


def test_tasks_on_what_is_given_answer_alike_without_a_seed(ask):
    assert [ask(lambda model: model.reconstruct(PIXELS)).seed for _ in range(2)] == [0, 0]
    assert ask(lambda model: model.encode(PIXELS, seed=4)).seed == 4


def test_pictures_are_what_the_array_holds_and_nothing_else_is_one():
    for channels in (1, 3):
        array = np.arange(2 * channels * 10, dtype=np.uint8).reshape(2, channels, 2, 5)
        for row, image in zip(array, images_of(array), strict=True):
            pixels = np.asarray(image)
            assert np.array_equal(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1), row)
    for array in (np.zeros((2, 1, 2, 5), np.float32), np.zeros((2, 5), np.uint8), np.zeros((1, 2, 2, 5), np.uint8)):
        with pytest.raises(ClientError, match=r"use .array"):
            images_of(array)


@pytest.mark.parametrize("spec", [None, COLOUR, PLANE])
@pytest.mark.parametrize("n", [1, 7])
def test_samples_are_seen_on_their_way_and_end_as_those_without(use, serve, make_walk, spec, n):
    address = serve(make_walk(spec) if spec else make_walk())
    settings = {"n": n, "seed": 3, "steps": 20}
    *previews, last = use(address, lambda client: client.model("walk").stream(previews=4, **settings))
    whole = use(address, lambda client: client.model("walk").sample(**settings))
    early = use(address, lambda client: client.model("walk").sample(**settings | {"steps": 8}))
    assert [(type(each), each.call, each.calls) for each in previews] == [
        (Preview, call, 20) for call in (4, 8, 12, 16)
    ]
    for seen, expected in ((last, whole), (previews[1], early)):
        assert seen.array.dtype == expected.array.dtype
        assert np.array_equal(seen.array, expected.array)
    assert (last.seed, last.evaluations, last.version) == (3, 20 * n, "3")
    assert spec is PLANE or previews[0].images[0].size == whole.images[0].size


def test_who_leaves_a_stream_frees_what_is_computed(serve, walk):
    walk.module.watch.on_call = lambda: time.sleep(0.002)
    address = serve(walk)

    def freed():
        until = time.monotonic() + 5
        with Client(address) as other:
            while other.describe("walk").requests and time.monotonic() < until:
                time.sleep(0.01)
        return len(walk.module.watch.calls) < 900  # those of a whole stream

    with Client(address) as client:
        with closing(client.model("walk").stream(previews=100, steps=900)) as stream:
            next(stream)
        assert freed()  # while the client lives on

    async def leave():
        async with AsyncClient(address) as client:
            async with aclosing(client.model("walk").stream(previews=100, steps=900)) as stream:
                await anext(stream)
            return await asyncio.to_thread(freed)

    assert asyncio.run(leave())


def test_what_goes_wrong_on_the_way_ends_the_stream(ask):
    with pytest.raises(FaultError, match="log has the cause"):
        ask(lambda model: model.stream(poison=True))
    with pytest.raises(RefusedError) as caught:
        ask(lambda model: model.stream(steps=0))
    assert (caught.value.status, caught.value.field) == (422, "steps")


def test_models_are_listed_with_what_they_can_do(use, serve, walk):
    address = serve(walk)
    (listed,) = use(address, lambda client: client.models())
    alone = use(address, lambda client: client.model("walk").describe())
    assert listed == alone
    assert (listed.name, listed.route, listed.state, listed.version, listed.family) == (
        "walk",
        "walk",
        "ready",
        "3",
        "walk",
    )
    for name, ability in abilities(walk).items():
        task = listed.tasks[name]
        assert (task.needs, task.unit, task.address) == (ability.needs, ability.unit, f"/v1/models/walk/{name}")
        for told, spec in ((task.takes, ability.takes), (task.gives, ability.gives)):
            assert (told is None) == (spec is None)
            assert spec is None or (told.kind, told.shape, told.levels) == (spec.kind, spec.shape, spec.levels)


def test_a_model_asleep_and_what_a_newer_server_tells_are_records_too(scripted):
    told = {"name": "a", "address": "/v1/models/b", "state": "asleep", "colour": "blue"}
    (record,), _, _ = scripted(
        [httpx.Response(200, json={"models": [told]})],
        lambda client: client.models(),
    )
    assert (record.state, record.route, record.version, record.tasks) == ("asleep", "b", None, {})


MISTAKES = [
    (lambda model: model.sample(n=0), 422, "n"),
    (lambda model: model.sample(stesp=3), 422, "stesp"),
    (lambda model: model.sample(seeds=[1], n=1), 422, "n"),
    (lambda model: model.reconstruct(b"GIF89a"), 422, "x"),
    (lambda model: model.reconstruct(None), 422, "x"),
    (lambda model: model.reconstruct(np.zeros((2, 2), dtype=np.uint8)), 422, "x"),
    (lambda model: model.inpaint(PIXELS, PIXELS), 422, "mask"),
    (lambda model: model.sample(label=list(range(10**6))), 413, "body"),
    (lambda model: model.sample(scale=float("nan")), None, "scale"),
    (lambda model: model.sample(label=object()), None, "label"),
    (lambda model: model.reconstruct(object()), None, "x"),
    (lambda model: model.reconstruct([[1, 2], [3]]), None, "x"),
    (lambda model: model.reconstruct(Image.new("CMYK", (4, 4))), None, "x"),
]


def test_a_mistake_is_refused_and_its_field_named(ask):
    for what, status, field in MISTAKES:
        with pytest.raises(RefusedError) as caught:
            ask(what)
        assert (caught.value.status, caught.value.field) == (status, field), inspect.getsource(what)
        assert caught.value.message == str(caught.value) != ""


def test_a_token_opens_what_is_closed_without(use, serve, walk):
    address = serve(walk, token="open")
    assert use(address, lambda client: client.model("walk").sample(seed=1), token="open").seed == 1
    for token in (None, "other"):
        with pytest.raises(RefusedError, match="bearer token") as caught:
            use(address, lambda client: client.models(), token=token)
        assert caught.value.status == 401


def test_a_name_cannot_lead_elsewhere(scripted):
    _, (request,), _ = scripted([answer()], lambda client: client.model("a/../b?c").run("d/e#f"))
    assert request.url.raw_path == b"/v1/models/a%2F..%2Fb%3Fc/d%2Fe%23f"


def test_numbers_of_numpy_are_numbers_and_none_is_left_out(scripted):
    settings = {"label": np.array([1, 2]), "steps": np.int64(3), "scale": np.float64(0.5), "seed": 4, "n": None}
    _, (request,), _ = scripted([answer()], lambda client: client.model("walk").sample(**settings))
    assert json.loads(request.content) == {"label": [1, 2], "steps": 3, "scale": 0.5, "seed": 4}


LOST = [
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("slow"),
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("Server disconnected without sending a response."),
]


@pytest.mark.parametrize(
    "lost",
    [overloaded(), overloaded(status=429), *LOST],
    ids=lambda lost: str(getattr(lost, "status_code", type(lost).__name__)),
)
@pytest.mark.parametrize("what", [lambda model: model.sample(n=2), lambda model: model.inpaint(PIXELS, MASK)])
def test_what_was_not_answered_is_asked_again_for_the_same_samples(scripted, lost, what):
    result, requests, slept = scripted([lost, lost, answer()], lambda client: what(client.model("walk")))
    assert np.array_equal(result.array, PIXELS[None])
    parts = [request.content.replace(request.headers["content-type"][-32:].encode(), b"") for request in requests]
    assert parts[0] == parts[1] == parts[2]  # but for the boundaries of forms
    assert str(2**31).encode() in parts[0]  # the seed
    assert len(slept) == 2


def test_a_stream_that_was_not_opened_is_asked_for_again(scripted):
    sent = json.dumps({**facts(queued_ms=1, computed_ms=1), "shape": [1, 2], "dtype": "float32", "samples": [[1, 2]]})
    stream = httpx.Response(200, text=f"event: done\ndata: {sent}\n\n")
    (result,), requests, slept = scripted(
        [overloaded("7"), LOST[0], stream], lambda client: client.model("walk").stream()
    )
    assert result.array.tolist() == [[1, 2]]
    assert len({request.content for request in requests}) == 1
    assert 7 <= slept[0] < 7.25
    assert 0 <= slept[1] < 0.5


@pytest.mark.parametrize(
    ("got", "kind"),
    [
        *((refusal(status, "n"), RefusedError) for status in (400, 401, 404, 406, 413, 415, 422, 429)),
        *((refusal(status), FaultError) for status in (500, 502, 504)),
        (httpx.Response(307, headers={"Location": "/"}), FaultError),
        (httpx.ReadTimeout("slow"), NoAnswerError),
        (httpx.Response(200, text="<html>"), FaultError),
        (httpx.Response(200, text="<html>", headers={f"Kinfolk-{k}": str(v) for k, v in facts().items()}), FaultError),
        (answer(**{"Kinfolk-Seed": "many"}), FaultError),
        (httpx.Response(502, text="<html>bad gateway"), FaultError),
    ],
)
def test_what_was_answered_is_not_asked_again(scripted, got, kind):
    error, requests, slept = scripted([got])
    assert type(error) is kind
    assert error.status == getattr(got, "status_code", None)
    assert error.field == ("n" if kind is RefusedError else "")
    assert (len(requests), slept) == (1, [])


@pytest.mark.parametrize("status", [503, 429])
def test_patience_ends_with_who_turns_a_request_away(scripted, status):
    error, requests, slept = scripted([overloaded(str(k), status) for k in range(9)], retries=3)
    assert isinstance(error, OverloadedError)
    assert (error.status, error.retry_after_s, error.message) == (status, 3, f"told {status}")
    assert len(requests) == 4
    assert slept == [0.125, 1.25, 2.5]
    error, requests, slept = scripted([overloaded("61", status)])
    assert (type(error), error.retry_after_s, len(requests), slept) == (OverloadedError, 61, 1, [])


def test_patience_ends_with_nobody_there(scripted):
    error, requests, _ = scripted([LOST[0]] * 9, retries=2)
    assert isinstance(error, NoAnswerError)
    assert "Is the server up" in error.message
    assert len(requests) == 3


def test_waits_double_up_to_the_longest_and_never_undercut_what_the_server_asks():
    retries = Retries(times=20, first_s=0.5, longest_s=30)
    lost = httpx.ReadError("reset")
    waits = [retries.wait_s(tried, lost, 0.5, NOW) for tried in range(9)]
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 15, 15, 15]
    assert retries.wait_s(3, lost, 0.0, NOW) == 0
    assert retries.wait_s(0, overloaded("12"), 0.0, NOW) == 12
    assert retries.wait_s(2, overloaded("12"), 0.5, NOW) == 13
    assert retries.wait_s(2, overloaded("12", 429), 0.5, NOW) == 13
    assert retries.wait_s(0, refusal(503), 0.5, NOW) == 0.25
    assert retries.wait_s(0, refusal(429), 0.5, NOW) is None
    assert retries.wait_s(20, lost, 0.5, NOW) is None


def test_a_server_may_ask_for_seconds_or_name_a_time():
    named = format_datetime(NOW + timedelta(seconds=9), usegmt=True)
    past = format_datetime(NOW - timedelta(seconds=9), usegmt=True)
    told = {"12": 12, " 0 ": 0, named: 9, past: 0, "": None, "soon": None, "-3": None, "1.5": None, "١": None}
    assert {
        text: retry_after_s(httpx.Response(503, headers=[(b"Retry-After", text.encode())]), NOW) for text in told
    } == told


@pytest.fixture
def rude():
    """A server that closes its first connections unanswered and then sends what it is given; returns its address."""
    listeners = []

    def start(closes, sent):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def work():
            for each in [b""] * closes + [sent]:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(each)

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def raw(response, lacks=0):
    head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    return f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + response.content[: len(response.content) - lacks]


def test_a_connection_that_breaks_is_asked_again_only_before_an_answer(use, rude):
    def sample(client):
        return client.model("walk").sample()

    retries = Retries(first_s=0)
    assert np.array_equal(use(rude(2, raw(answer())), sample, retries=retries).array, PIXELS[None])
    with pytest.raises(NoAnswerError, match="broke off"):
        use(rude(0, raw(answer(), lacks=1)), sample, retries=retries)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    for tail in (b"Content-Length: 99\r\n\r\nevent: done\n", b"\r\nevent: done\n"):
        with pytest.raises(NoAnswerError, match="broke off"):
            use(rude(0, head + tail), lambda client: client.model("walk").stream(), retries=retries)


def test_nobody_there(use):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(NoAnswerError) as caught:
        use(address, lambda client: client.models(), retries=Retries(2, first_s=0))
    assert caught.value.status is None
    assert address in caught.value.message


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://a:b", None])
def test_an_address_that_is_none_is_refused_at_once(url):
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError, match="no address"):
            kind(url)


def test_an_answer_that_still_holds_is_not_computed_again(use, serve, walk):
    address, watch = serve(walk), walk.module.watch

    def twice(client):
        async def awaited():
            return [await client.model("walk").sample(seed=1, n=2) for _ in range(2)]

        if isinstance(client, AsyncClient):
            return awaited()
        return [client.model("walk").sample(seed=1, n=2) for _ in range(2)]

    for remember, computed in ((0, 2), (1, 1)):
        before = len(watch.calls)
        first, again = use(address, twice, remember=remember)
        assert np.array_equal(first.array, again.array)
        assert first.seed == again.seed == 1
        assert len(watch.calls) - before == 3 * computed


def test_what_was_asked_for_longest_ago_is_forgotten_first():
    memory, calls = Memory(2), [Call(str(k)) for k in range(3)]
    first, second, third = (httpx.Response(200, headers={"ETag": f'"{k}"'}) for k in range(3))
    memory.settle(calls[0], first, None)
    memory.settle(calls[1], second, None)
    assert memory.settle(calls[0], httpx.Response(304), memory.held(calls[0])) is first
    memory.settle(calls[2], third, None)
    assert [memory.held(call) for call in calls] == [first, None, third]
    memory.settle(Call("4"), httpx.Response(200), None)
    assert memory.held(Call("4")) is None
    assert memory.settle(calls[0], third, memory.held(calls[0])) is third
