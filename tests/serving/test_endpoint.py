import asyncio
import base64
import io
import json
import time

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import ClientDisconnect

from kinfolk.abilities import abilities
from kinfolk.sampling import completing, draw, interpolating, make_request
from kinfolk.serving.directory import build_app

NPY = {"Accept": "application/x-npy"}
JSON = {"Accept": "application/json"}
PIXELS = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) * 10


@pytest.fixture
def served(make_host, walk):
    """Many exchanges with one app that serves the watched family: a function from a client to what is to be kept."""

    def run(scenario, model=None, **limits):
        async def everything():
            host = make_host(model or walk, **limits)
            transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models/walk") as client:
                kept = await scenario(client)
            await host.close()
            return kept

        return asyncio.run(everything())

    return run


@pytest.fixture
def ask(served):
    """One exchange."""

    def exchange(task, *, model=None, limits=None, **request):
        return served(lambda client: client.post(task, **request), model, **(limits or {}))

    return exchange


def array(answer):
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def picture(pixels=PIXELS):
    out = io.BytesIO()
    Image.fromarray(pixels[0]).save(out, "PNG")
    return out.getvalue()


def test_every_task_of_the_model_has_an_address_and_no_other(served, walk):
    async def scenario(client):
        told = (await client.get("")).json()["tasks"]
        schema = (await client.get("/openapi.json")).json()["paths"]
        return told, schema, await client.post("/upscale")

    told, schema, other = served(scenario)
    assert set(told) == set(abilities(walk))
    assert {f"/{name}" for name in told} <= set(schema)
    assert other.status_code == 404
    assert "Did you mean" in other.json()["error"]["message"] or "sample" in other.json()["error"]["message"]


def test_what_is_on_the_way_between_seeds_and_what_is_completed_is_that_of_the_sampler(ask, walk):
    way = array(ask("/interpolate", json={"seed": 3, "seed_to": 9, "n": 4}, headers=NPY))
    expected = draw(walk.tasks, interpolating(make_request(walk, 4, 3, task="interpolate"), 9), "interpolate")
    assert np.array_equal(way, walk.spec.to_uint8(expected).numpy())
    mask = np.zeros((1, 4, 4), dtype=np.uint8)
    mask[..., :2] = 255
    body = {"x": PIXELS.tolist(), "mask": mask.tolist(), "n": 3, "seed": 5, "resample": 2}
    whole = array(ask("/inpaint", json=body, headers=NPY))
    x = torch.from_numpy(PIXELS).float().expand(3, 1, 4, 4) / 127.5 - 1
    request = make_request(walk, 3, 5, options={"resample": 2}, task="inpaint")
    expected = draw(walk.tasks, completing(request, walk.spec, x, torch.from_numpy(mask) / 255), "inpaint")
    assert np.array_equal(whole, walk.spec.to_uint8(expected).numpy())


def test_a_way_has_eight_samples_where_their_number_is_left_out(ask):
    assert len(array(ask("/interpolate", json={"seed": 1, "seed_to": 2}, headers=NPY))) == 8


def test_a_file_comes_as_a_body_in_a_form_in_base64_and_as_numbers(served):
    async def scenario(client):
        raw = await client.post("/reconstruct", content=picture(), headers={"Content-Type": "image/png", **NPY})
        form = await client.post("/reconstruct", files={"x": picture()}, data={"seed": "4"}, headers=NPY)
        text = base64.b64encode(picture()).decode()
        coded = await client.post("/reconstruct", json={"x": text}, headers=NPY)
        several = await client.post("/reconstruct", files=[("x", picture()), ("x", picture())], headers=NPY)
        return [array(each) for each in (raw, form, coded, several)]

    raw, form, coded, several = served(scenario)
    for each in (raw, form, coded):
        assert np.array_equal(each, PIXELS[None])
    assert several.shape == (2, 1, 4, 4)


def test_a_form_and_an_address_hold_settings(served):
    async def scenario(client):
        form = await client.post(
            "/inpaint", files={"x": picture(), "mask": picture(PIXELS * 0)}, data={"n": "2", "seed": 7}
        )
        query = await client.post(
            "/anomaly_score?label=3", content=picture(), headers={"Content-Type": "image/png", **JSON}
        )
        return form, query

    form, query = served(scenario)
    assert form.headers["Kinfolk-Seed"] == "7"
    pasted = served(lambda client: client.post("/sample", files={"n": (None, '2, "seed": 7')}))
    assert (pasted.status_code, pasted.json()["error"]["field"]) == (422, "n")
    assert query.json()["values"] == [pytest.approx(3 + PIXELS.mean() / 127.5 - 1, abs=1e-5)]


def test_numbers_are_values_with_their_unit(ask, walk):
    body = {"x": [PIXELS.tolist()] * 2}
    told = ask("/log_prob", json=body, headers=JSON).json()
    x = torch.from_numpy(PIXELS).float() / 127.5 - 1
    assert told["unit"] == "nats, exact of density"
    assert told["values"] == pytest.approx([-float(x.square().sum())] * 2, rel=1e-5)
    assert array(ask("/log_prob", json=body, headers=NPY)).shape == (2,)
    assert ask("/log_prob", json=body, headers={"Accept": "image/png"}).status_code == 406


def test_latents_go_out_and_come_back(served):
    async def scenario(client):
        latent = (await client.post("/encode", json={"x": PIXELS.tolist()}, headers=JSON)).json()
        back = await client.post("/decode", json={"x": latent["samples"]}, headers=NPY)
        wrong = await client.post("/decode", json={"x": PIXELS.tolist()}, headers=NPY)
        return latent, array(back), wrong

    latent, back, wrong = served(scenario)
    assert latent["shape"] == [1, 2]
    assert back.shape == (1, 1, 4, 4)
    assert wrong.status_code == 422


def test_what_lay_under_noise_depends_on_how_much_there_was(served):
    async def scenario(client):
        levels = [0.5, 2.0]
        answers = [client.post("/denoise", json={"x": PIXELS.tolist(), "noise_level": s}, headers=NPY) for s in levels]
        refused = [client.post("/denoise", json={"x": PIXELS.tolist(), **no}) for no in ({}, {"noise_level": 0})]
        return [array(each) for each in await asyncio.gather(*answers)], await asyncio.gather(*refused)

    (little, much), refused = served(scenario)
    x = PIXELS / 127.5 - 1
    assert np.abs(little[0] - (x / 1.25 + 1) * 127.5).max() < 0.6  # rounded to levels
    assert np.abs(much[0] - (x / 5 + 1) * 127.5).max() < 0.6
    assert [(each.status_code, each.json()["error"]["field"]) for each in refused] == [(422, "noise_level")] * 2


def test_a_seed_for_each_sample(ask, walk):
    seeds = [7, 7, 2**61, 0]
    several = array(ask("/sample", json={"seeds": seeds, "label": 1}, headers=NPY))
    for seed, each in zip(seeds, several, strict=True):
        assert np.array_equal(each, array(ask("/sample", json={"seed": seed, "label": 1}, headers=NPY))[0])


MISTAKES = [
    ("/sample", {"seeds": [1], "n": 1}, "n"),
    ("/sample", {"seeds": [1], "seed": 1}, "seed"),
    ("/sample", {"seeds": []}, "seeds"),
    ("/sample", {"seeds": [2**62]}, "seeds"),
    ("/sample", {"seeds": [True]}, "seeds"),
    ("/sample", {"seeds": list(range(51))}, "seeds"),
    ("/sample", {"resample": 2}, "resample"),
    ("/sample", {"x": []}, "x"),
    ("/interpolate", {"seed": 1}, "seed_to"),
    ("/interpolate", {"seed": 1, "seed_to": 2, "n": 1}, "n"),
    ("/inpaint", {"mask": PIXELS.tolist()}, "x"),
    ("/inpaint", {"x": PIXELS.tolist()}, "mask"),
    ("/inpaint", {"x": PIXELS.tolist(), "mask": PIXELS.tolist()}, "mask"),
    ("/inpaint", {"x": [PIXELS.tolist()] * 2, "mask": [(0 * PIXELS).tolist()] * 3}, "mask"),
    ("/inpaint", {"x": [PIXELS.tolist()] * 2, "mask": (0 * PIXELS).tolist(), "n": 3}, "x"),
    ("/reconstruct", {}, "x"),
    ("/reconstruct", {"x": None}, "x"),
    ("/reconstruct", {"x": [PIXELS.tolist()] * 51}, "x"),
    ("/reconstruct", {"x": PIXELS.tolist(), "steps": 3}, "steps"),
    ("/reconstruct", {"x": PIXELS.tolist(), "n": 1}, "n"),
    ("/reconstruct", {"x": PIXELS.tolist(), "label": [1, 2]}, "label"),
]


@pytest.mark.parametrize(("task", "body", "field"), MISTAKES)
def test_a_mistake_is_refused_and_its_field_named(ask, task, body, field):
    answer = ask(task, json=body, limits={"max_n": 50})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


BODIES = [
    ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "body"),
    ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400, "body"),
    ({"content": picture(), "headers": {"Content-Type": "image/gif"}}, 415, "Content-Type"),
    ({"content": b"GIF89a", "headers": {"Content-Type": "image/png"}}, 422, "x"),
    ({"files": {"label": picture()}}, 422, "label"),
    ({"files": {"x": picture()}, "data": {"seed": ["1", "2"]}}, 422, "seed"),
    ({"files": {"x": picture()}, "data": {"seed": "one"}}, 422, "seed"),
    ({"files": {"x": b"x" * 9000}}, 413, "body"),
]


@pytest.mark.parametrize(("request_", "status", "field"), BODIES)
def test_a_body_that_is_not_what_it_says_is_refused(ask, request_, status, field):
    answer = ask("/reconstruct", limits={"max_body_bytes": 8000}, **request_)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


def test_an_answer_tells_what_it_took(ask):
    headers = ask("/sample", json={"n": 3, "seed": 1, "steps": 4, "cost": 2}).headers
    told = {name: headers[f"Kinfolk-{name}"] for name in ("Model", "Version", "Family", "Task", "Calls", "Evaluations")}
    assert told == {
        "Model": "walk",
        "Version": "3",
        "Family": "walk",
        "Task": "sample",
        "Calls": "4",
        "Evaluations": "24",
    }
    assert float(headers["Kinfolk-Queued-Ms"]) >= 0
    assert float(headers["Kinfolk-Computed-Ms"]) > 0


def test_the_same_request_again_is_not_computed(served, walk):
    async def scenario(client):
        first = await client.post("/sample", json={"seed": 1, "n": 2})
        calls = len(walk.module.watch.calls)
        known = {"If-None-Match": f'"other", W/{first.headers["ETag"]}'}
        again = await client.post("/sample", json={"n": 2, "seed": 1}, headers=known)
        computed = len(walk.module.watch.calls) - calls
        others = [
            await client.post("/sample", json={"seed": 2, "n": 2}, headers=known),
            await client.post("/sample", json={"seed": 1, "n": 2}, headers={**known, **NPY}),
            await client.post("/interpolate", json={"seed": 1, "n": 2, "seed_to": 3}, headers=known),
            await client.post("/sample", json={"n": 2}, headers=known),
        ]
        return first, again, computed, others

    async def two_tasks(client):
        body = {"x": PIXELS.tolist(), "seed": 1}
        return [
            (await client.post(task, json=body, headers=NPY)).headers["ETag"] for task in ("/encode", "/reconstruct")
        ]

    assert len(set(served(two_tasks))) == 2
    first, again, computed, others = served(scenario)
    assert again.status_code == 304
    assert again.headers["ETag"] == first.headers["ETag"]
    assert not again.content
    assert computed == 0
    assert [each.status_code for each in others] == [200] * 4
    assert "ETag" not in others[-1].headers


def events(text):
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_samples_are_seen_on_their_way(served, walk):
    async def scenario(client):
        body = {"seed": 3, "n": 2, "steps": 20}
        stream = await client.post("/sample?previews=4", json=body, headers={"Accept": "text/event-stream"})
        none = await client.post("/sample?previews=0", json=body, headers={"Accept": "text/event-stream"})
        return stream, none, await client.post("/sample", json=body)

    stream, none, plain = served(scenario)
    told = list(events(stream.text))
    assert [name for name, _ in told[:-1]] == ["preview"] * 4
    assert [data["call"] for _, data in told[:-1]] == [4, 8, 12, 16]
    assert {data["calls"] for _, data in told[:-1]} == {20}
    name, last = told[-1]
    assert name == "done"
    assert base64.b64decode(last["image"]) == plain.content
    assert last["evaluations"] == 40
    assert [name for name, _ in events(none.text)] == ["done"]
    half_way = draw(walk.tasks, make_request(walk, 2, 3, options={"steps": 8}))
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(told[1][1]["image"]))))
    assert np.array_equal(seen[:4, :4], walk.spec.to_uint8(half_way)[0, 0].numpy())


def test_what_goes_wrong_on_the_way_is_the_last_event(ask):
    events_wanted = {"Accept": "text/event-stream"}
    failed = list(events(ask("/sample", json={"poison": True}, headers=events_wanted).text))
    assert failed[-1][0] == "error"
    assert "log has the cause" in failed[-1][1]["error"]["message"]
    for refused, field in (({"steps": 0}, "steps"), ({"n": 0}, "n")):
        answer = ask("/sample", json=refused, headers=events_wanted)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert ask("/sample?previews=many", headers=events_wanted).status_code == 422


def test_a_reader_who_leaves_a_stream_frees_its_rows(make_host, walk):
    async def scenario():
        host = make_host(walk)
        app = build_app([host])
        left = asyncio.Event()

        async def receive():
            if not left.is_set():
                left.set()
                return {"type": "http.request", "body": b'{"steps": 900, "seed": 1}', "more_body": False}
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        path = "/v1/models/walk/sample"
        headers = [(b"accept", b"text/event-stream"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"previews=100",
        }
        await app(
            {**scope, "headers": headers, "root_path": "", "http_version": "1.1", "scheme": "http"}, receive, send
        )
        requests = host.current.batcher.requests
        await host.close()
        return requests, len(walk.module.watch.calls)

    walk.module.watch.on_call = lambda: __import__("time").sleep(0.002)
    requests, calls = asyncio.run(scenario())
    assert requests == 0
    assert calls < 200


def test_a_slow_reader_misses_previews_which_are_kept_nowhere(make_host, walk, monkeypatch):
    monkeypatch.setattr("kinfolk.serving.streaming._HELD_ELEMENTS", 1)
    sent = []

    async def scenario():
        host = make_host(walk)
        app, asked = build_app([host]), asyncio.Event()

        async def receive():
            if asked.is_set():
                await asyncio.sleep(100)
            asked.set()
            return {"type": "http.request", "body": b'{"steps": 100, "seed": 1}', "more_body": False}

        async def send(message):
            if message.get("body"):
                sent.append(message["body"].decode())
            while len(sent) == 1 and host.current.batcher.requests:  # all rows go on meanwhile
                await asyncio.sleep(0.01)

        path = "/v1/models/walk/sample"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": ""}
        headers = [(b"accept", b"text/event-stream"), (b"content-type", b"application/json")]
        more = {
            "query_string": b"previews=100",
            "http_version": "1.1",
            "scheme": "http",
            "asgi": {"spec_version": "2.4"},
        }
        await app({**scope, **more, "headers": headers}, receive, send)
        await host.close()

    walk.module.watch.on_call = lambda: time.sleep(0.005)
    asyncio.run(scenario())
    names = [each.split()[1] for each in sent]
    assert names[-1] == "done"
    assert len(names) < 10


def test_a_stream_that_cannot_begin_frees_its_rows(make_host, walk):
    async def scenario():
        host = make_host(walk)
        messages = iter([{"type": "http.request", "body": b'{"steps": 900, "seed": 1}', "more_body": False}])

        async def receive():
            return next(messages, None) or await asyncio.Event().wait()

        async def send(message):
            raise OSError("the connection is gone")

        scope = {"type": "http", "method": "POST", "path": "/v1/models/walk/sample", "root_path": "", "scheme": "http"}
        headers = [(b"accept", b"text/event-stream"), (b"content-type", b"application/json")]
        more = {"query_string": b"", "http_version": "1.1", "asgi": {"spec_version": "2.4"}}
        with pytest.raises((OSError, ClientDisconnect)):
            await build_app([host])({**scope, **more, "headers": headers}, receive, send)
        requests = host.current.batcher.requests
        await host.close()
        return requests

    walk.module.watch.on_call = lambda: time.sleep(0.002)
    assert asyncio.run(scenario()) == 0


def test_a_stream_whose_reader_has_stopped_ends_after_its_deadline(make_host, walk, monkeypatch):
    monkeypatch.setattr("kinfolk.serving.streaming._READ_S", 0.1)

    async def scenario():
        host = make_host(walk, request_timeout_s=0.2)
        asked = asyncio.Event()

        async def receive():
            if asked.is_set():
                await asyncio.sleep(100)
            asked.set()
            return {"type": "http.request", "body": b'{"steps": 900, "seed": 1}', "more_body": False}

        async def send(message):
            if message.get("body"):
                await asyncio.sleep(100)

        scope = {"type": "http", "method": "POST", "path": "/v1/models/walk/sample", "root_path": "", "scheme": "http"}
        headers = [(b"accept", b"text/event-stream"), (b"content-type", b"application/json")]
        more = {"query_string": b"previews=100", "http_version": "1.1", "asgi": {"spec_version": "2.4"}}
        await asyncio.wait_for(build_app([host])({**scope, **more, "headers": headers}, receive, send), 10)
        requests = host.current.batcher.requests
        await host.close()
        return requests

    walk.module.watch.on_call = lambda: time.sleep(0.005)
    assert asyncio.run(scenario()) == 0


def test_requests_for_the_same_task_share_a_call(served, walk):
    async def scenario(client):
        walk.module.watch.gate.clear()
        bodies = [{"x": (PIXELS + k).tolist(), "seed": k} for k in range(5)]
        tasks = [asyncio.create_task(client.post("/reconstruct", json=body, headers=NPY)) for body in bodies]
        while not walk.module.watch.batches:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        walk.module.watch.gate.set()
        return [array(each) for each in await asyncio.gather(*tasks)]

    for k, each in enumerate(served(scenario)):
        assert np.array_equal(each, PIXELS[None] + k)
    assert max(len(seeds) for seeds in walk.module.watch.batches) > 1
    assert sorted(seed for seeds in walk.module.watch.batches for seed in seeds) == [0, 1, 2, 3, 4]


def test_whoever_counts_hears_of_each_answer_and_of_no_refusal(make_host, walk):
    async def scenario():
        host = make_host(walk)
        heard = []
        host.on_answer = lambda version, task, outcome: heard.append((version.version, task, outcome.evaluations))
        transport = httpx.ASGITransport(build_app([host]), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post("/v1/models/walk/sample", json={"n": 2, "seed": 1})
            await client.post("/v1/models/walk/sample", json={"seed": 1}, headers={"Accept": "text/event-stream"})
            await client.post("/v1/models/walk/encode", json={"x": PIXELS.tolist()})
            await client.post("/v1/images/generations", json={"prompt": "3"})
            await client.post("/v1/models/walk/sample", json={"n": 0})
            await client.post("/v1/models/walk/sample", json={"poison": True})
        await host.close()
        return heard

    assert asyncio.run(scenario()) == [("3", "sample", 6), ("3", "sample", 3), ("3", "encode", 1), ("3", "sample", 3)]


@pytest.mark.parametrize(
    "given", ["0", "0.0", "-1", "nan", "inf", "1e1", "", " ", "two", "2,5", "1_0", "\u0661", "60.1"]
)
def test_a_time_that_a_caller_cannot_wait_is_refused_and_its_header_named(ask, given):
    answer = ask("/sample", json={}, headers=[("Kinfolk-Timeout", given.encode())])
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Kinfolk-Timeout")
    assert "at most 60" in answer.json()["error"]["message"]


@pytest.mark.parametrize("given", ["60", "0.5", "59.75", "007"])
def test_within_the_limit_a_caller_says_how_long_to_wait(ask, given):
    assert ask("/sample", json={}, headers={"Kinfolk-Timeout": given}).status_code == 200


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
def test_who_waits_less_long_is_answered_earlier_and_others_are_not(served, walk, accept):
    walk.module.watch.on_call = lambda: time.sleep(0.01)

    async def scenario(client):
        body, began = {"steps": 60, "seed": 1}, time.monotonic()
        hasty = {"Accept": accept, "Kinfolk-Timeout": "0.1"}
        asked = [client.post("/sample", json=body, headers=each) for each in (hasty, {"Accept": accept})]
        first = asyncio.create_task(asked[0])
        patient = asyncio.create_task(asked[1])
        answer, took_s = await first, time.monotonic() - began
        return answer, took_s, await patient

    hasty, took_s, patient = served(scenario)
    assert took_s < 0.5
    assert "Not done in time" in hasty.text
    assert hasty.status_code == (504 if accept == "image/png" else 200)
    assert patient.status_code == 200
    assert "Not done in time" not in patient.text


def test_what_cannot_be_done_in_the_time_is_refused_at_once(served, walk):
    walk.module.watch.on_call = lambda: time.sleep(0.01)

    async def scenario(client):
        await client.post("/sample", json={"steps": 20})  # so that the speed is known
        long = asyncio.create_task(client.post("/sample", json={"steps": 100}))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        headers = {"Kinfolk-Timeout": "0.3"}
        answer, took_s = await client.post("/sample", json={"steps": 100}, headers=headers), time.monotonic() - began
        await long
        return answer, took_s

    answer, took_s = served(scenario)
    assert answer.status_code == 503
    assert took_s < 0.25


def test_the_schema_tells_of_the_header(served):
    async def scenario(client):
        return (await client.get("/openapi.json")).json()["paths"]["/sample"]["post"]["parameters"]

    assert [each["name"] for each in served(scenario)] == ["Kinfolk-Timeout"]
