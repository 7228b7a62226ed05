"""The playground as a user has it: a real browser clicks through it, against a real server of small models."""

import ast
import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from devtools import chromium, find_chromium
from fastapi.routing import APIRoute
from PIL import Image

from kinfolk.cluster import free_port
from kinfolk.data import catalogue
from kinfolk.serving.access import holders
from kinfolk.serving.app import describe, endpoint_app
from kinfolk.serving.config import ServedModel
from kinfolk.serving.directory import build_app, directory_app
from kinfolk.serving.host import ModelHost
from kinfolk_pipelines.families import untrained
from kinfolk_pipelines.settings import Settings

pytestmark = pytest.mark.skipif(
    find_chromium() is None and not os.environ.get("CI"), reason="no chromium here (make browser), and CI is not set"
)
RECIPES = ("dcgan", "edm", "conditional-vae", "features")
SIZE = 8


@contextlib.contextmanager
def serving(hosts, token=None):
    """The address of the models behind a real server."""
    try:
        with listening(build_app(hosts, holders(token))) as address:
            yield address
    finally:
        for host in hosts:
            asyncio.run(host.close())


@contextlib.contextmanager
def listening(app):
    """The address of an app behind a real server."""
    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def hosts():
    spec, folder = catalogue.entry("digits").spec, Settings().recipe_folder / "digits"
    models = {name: untrained(folder / f"{name}.yaml", spec) for name in RECIPES}
    return [ModelHost(ServedModel(name=f"digits-{name}"), model, "7") for name, model in models.items()]


@pytest.fixture(scope="module")
def server(hosts):
    with serving(hosts) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        yield page


@pytest.fixture
def open_page(browser):
    """Opens a place of a server; afterwards nothing went wrong in the page and no other host was asked."""
    opened = []

    def open_(address, place="", models=None):
        browser.errors.clear()
        browser.requests.clear()
        browser.emulate(1280, 900)
        browser.open("about:blank")
        browser.open(f"{address}/{place}")
        opened.append(address)
        listed = len(RECIPES) if models is None else models
        browser.wait(f"document.querySelectorAll('.model').length === {listed}")
        return browser

    yield open_
    assert browser.errors == []
    asked = {
        request["url"] for request in browser.requests if not request["url"].startswith(("about:", "blob:", "data:"))
    }
    assert {url for url in asked if not url.startswith(tuple(opened))} == set()
    browser.open("about:blank")


def ready(page, model, task):
    """The panel of a task is there."""
    panel = f"[data-model={model}][data-task={task}]"
    page.wait(f"document.querySelector('{panel}')")
    return panel


def answered(page, count=1):
    busy = "[...document.querySelectorAll('.status')].some((each) => each.checkVisibility())"
    page.wait(f"document.querySelectorAll('.facts').length === {count} && !{busy}")


def post(address, model, task, body, accept="image/png"):
    answer = httpx.post(f"{address}/v1/models/{model}/{task}", json=body, headers={"Accept": accept}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def sent(page, task):
    """The last body that the page posted to a task."""
    asked = [each for each in page.requests if each["method"] == "POST" and f"/{task}" in each["url"]]
    return json.loads(asked[-1]["postData"])


def array(address, model, task, body):
    """What the endpoint gives, as grey levels. -> (N, 8, 8)"""
    answer = post(address, model, task, body, "application/x-npy")
    return np.load(io.BytesIO(answer.content))[:, 0]


def pixels(page, selector):
    """Grey levels of the canvases that are on screen. -> (N, 8, 8)"""
    told = page.evaluate(
        f"[...document.querySelectorAll('{selector}')].map((each) => "
        "[...each.getContext('2d').getImageData(0, 0, each.width, each.height).data])"
    )
    colours = np.array(told, dtype=int).reshape(-1, SIZE, SIZE, 4)
    assert (colours[..., 3] == 255).all()
    assert (colours[..., :1] == colours[..., :3]).all()
    return colours[..., 0]


def picture(base64_text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(base64_text))).convert("RGB")).astype(int)


def test_models_are_listed_with_their_state_and_what_they_can_do(open_page, server):
    page = open_page(server)
    listed = page.text(".models")
    for name, family in zip(RECIPES, ("gan", "diffusion", "autoencoder", "classifier"), strict=True):
        assert f"digits-{name}" in listed
        assert f"{family} · version 7" in listed
    assert listed.count("ready") == len(RECIPES)
    told = httpx.get(f"{server}/v1/models").json()["models"]
    for model in told:
        page.click(".model", model["name"])
        page.wait(f"document.querySelector('[data-model={model['name']}]')")
        tabs = set(page.text("#tabs").replace("\n", ",").split(","))
        assert {task.replace("_", " ") for task in model["tasks"]} <= tabs


def test_controls_are_those_of_the_schema(open_page, server):
    page = open_page(server, "#try/digits-edm/sample")
    panel = ready(page, "digits-edm", "sample")
    schema = httpx.get(f"{server}/v1/models/digits-edm/openapi.json").json()
    body = schema["paths"]["/sample"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    names = page.evaluate(f"[...document.querySelectorAll('{panel} [data-setting]')].map((e) => e.dataset.setting)")
    assert sorted(names) == sorted(body)

    def control(name, attribute):
        return page.evaluate(
            f"document.querySelector('[data-setting={name}] :is(input[type=number], select)').{attribute}"
        )

    for name in ("steps", "guidance", "eta", "churn_noise"):
        assert float(control(name, "value")) == body[name]["default"]
        assert float(control(name, "min")) == body[name]["minimum"]
        assert float(control(name, "max")) == body[name]["maximum"]
    assert (
        page.evaluate("[...document.querySelectorAll('[data-setting=solver] option')].map((e) => e.value)")
        == (body["solver"]["enum"])
    )
    assert page.text("[data-setting=label] .classes").split() == ["any", *"0123456789"]
    assert page.evaluate("document.querySelector('[data-setting=clamp] input').type") == "checkbox"
    inputs = "[...document.querySelectorAll('#work :is(input, select, canvas):not(button *)')]"
    assert page.evaluate(f"{inputs}.filter((each) => !each.labels?.length && !each.ariaLabel).length") == 0


def test_a_grid_appears_step_by_step_and_is_that_of_the_endpoint(open_page, server, tmp_path):
    page = open_page(server, "#try/digits-edm/sample")
    panel = ready(page, "digits-edm", "sample")
    page.click(f"{panel} summary", "More settings")
    page.fill("[data-setting=steps] input", "60")
    page.fill("[data-setting=n] input", "12")
    page.fill("[data-setting=seed] input", "5")
    page.click(f"{panel} .class", "3")
    page.click(f"{panel} .main")
    page.wait("document.querySelectorAll('.tile').length === 12 && !document.querySelector('.facts')")
    assert 0 < page.evaluate("document.querySelector('.status progress').value") < 119
    assert "of 119" in page.text(".status")
    answered(page)
    assert not page.evaluate("document.querySelector('.status').checkVisibility()")
    body = {"n": 12, "seed": 5, "label": 3, "steps": 60}
    assert sent(page, "sample") == body
    assert np.array_equal(pixels(page, ".tile canvas"), array(server, "digits-edm", "sample", body))
    assert "119 calls" in page.text(".facts")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click(".facts button", "Download all")
    expected = post(server, "digits-edm", "sample", body).content
    file = tmp_path / "digits-edm-sample.png"
    deadline = time.monotonic() + 20
    while not file.exists() or len(file.read_bytes()) < len(expected):  # it is there before it is whole
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert file.read_bytes() == expected


def test_a_request_can_be_cancelled(open_page, server, hosts):
    page = open_page(server, "#try/digits-edm/sample")
    panel = ready(page, "digits-edm", "sample")
    page.click(f"{panel} summary", "More settings")
    page.fill("[data-setting=steps] input", "900")
    page.click(f"{panel} .main")
    page.wait("document.querySelector('.tile')")
    page.click(".status button", "Cancel")
    page.wait("document.querySelector('.output').innerText.includes('Cancelled')")
    batcher = hosts[1].current.batcher
    deadline = time.monotonic() + 20
    while batcher.requests:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_picture_is_enlarged_told_by_its_seed_and_left_by_keyboard(open_page, server):
    page = open_page(server, "#try/digits-dcgan/sample")
    panel = ready(page, "digits-dcgan", "sample")
    page.fill("[data-setting=seed] input", "40")
    page.key("Enter")
    answered(page)
    page.evaluate(f"document.querySelectorAll('{panel} .tile')[2].focus()")
    page.key("Enter")
    page.wait("document.querySelector('dialog').open")
    assert page.text("dialog .caption") == "seed 42"
    page.key("ArrowRight")
    assert page.text("dialog .caption") == "seed 43"
    alone = array(server, "digits-dcgan", "sample", {"seed": 43})
    assert np.array_equal(pixels(page, "dialog canvas"), alone)
    page.key("Escape")
    page.wait("!document.querySelector('dialog').open")


def test_tabs_are_walked_by_arrows_and_seeds_are_thrown(open_page, server):
    page = open_page(server, "#try/digits-dcgan/sample")
    ready(page, "digits-dcgan", "sample")
    page.evaluate("document.querySelector('#tabs [aria-selected=true]').focus()")
    page.key("ArrowRight")
    ready(page, "digits-dcgan", "interpolate")
    assert page.evaluate("document.activeElement.innerText") == "interpolate"
    page.click("[data-setting=seed_to] .die")
    assert page.evaluate("document.querySelector('[data-setting=seed_to] input').value") != "1"


def test_the_way_between_two_seeds_is_under_a_slider(open_page, server):
    page = open_page(server, "#try/digits-dcgan/interpolate")
    panel = ready(page, "digits-dcgan", "interpolate")
    page.fill("[data-setting=n] input", "5")
    page.fill("[data-setting=seed] input", "3")
    page.fill("[data-setting=seed_to] input", "9")
    page.click(f"{panel} .main")
    answered(page)
    way = array(server, "digits-dcgan", "interpolate", {"n": 5, "seed": 3, "seed_to": 9})
    assert np.array_equal(pixels(page, ".strip canvas"), way)
    assert np.array_equal(pixels(page, ".frame"), way[:1])
    page.evaluate("document.querySelector('.way > input').focus()")
    page.key("ArrowRight")
    page.key("ArrowRight")
    assert np.array_equal(pixels(page, ".frame"), way[2:3])
    assert page.text(".way .caption") == "3 of 5, from seed 3 to 9"


@pytest.fixture
def photo(tmp_path):
    """A wide picture in colour, half of it red, half see-through."""
    image = np.zeros((32, 64, 4), dtype=np.uint8)
    image[:, :32] = (255, 0, 0, 255)
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    return path


RED = 76  # as grey
SCALED = np.zeros((SIZE, SIZE), dtype=int)
SCALED[2:6, :4] = RED


def test_a_picture_of_any_size_is_scaled_scored_and_reconstructed(open_page, server, photo):
    page = open_page(server, "#try/digits-conditional-vae/picture")
    panel = ready(page, "digits-conditional-vae", "picture")
    page.upload(f"{panel} input[type=file]", photo)
    page.wait("document.querySelector('.pad canvas').getContext('2d').getImageData(0, 3, 1, 1).data[0] > 0")
    page.click(f"{panel} .class", "3")
    page.click(f"{panel} .main")
    page.wait("document.querySelector('[data-about=anomaly_score] .figure')")
    page.wait("document.querySelector('[data-about=reconstruct] .tile') && !document.querySelector('[aria-busy]')")
    body = sent(page, "anomaly_score")
    assert np.array_equal(picture(body["x"]), np.repeat(SCALED[..., None], 3, axis=2))
    score = post(server, "digits-conditional-vae", "anomaly_score", body, "application/json").json()["values"][0]
    assert float(page.text("[data-about=anomaly_score] strong")) == pytest.approx(score, rel=1e-5)
    logs = post(server, "digits-conditional-vae", "log_prob", body, "application/json").json()
    assert float(page.text("[data-about=log_prob] strong")) == pytest.approx(logs["values"][0], rel=1e-5)
    assert "nats, lower bound" in page.text("[data-about=log_prob]")
    again = array(server, "digits-conditional-vae", "reconstruct", sent(page, "reconstruct"))
    assert np.array_equal(pixels(page, "[data-about=reconstruct] canvas"), again)
    page.click(".pad .switch", "Invert")
    page.click(f"{panel} .main")
    page.wait("!document.querySelector('[aria-busy]')")
    assert np.array_equal(picture(sent(page, "anomaly_score")["x"])[..., 0], 255 - SCALED)


def test_what_is_no_picture_is_said_so(open_page, server, tmp_path):
    page = open_page(server, "#try/digits-conditional-vae/picture")
    ready(page, "digits-conditional-vae", "picture")
    (tmp_path / "notes.png").write_text("no picture")
    page.upload(".pad input[type=file]", tmp_path / "notes.png")
    page.wait("document.querySelector('.pad').innerText.includes('notes.png is no picture')")


def test_a_picture_is_drawn_by_hand_and_by_keyboard_and_classified(open_page, server):
    page = open_page(server, "#try/digits-features/classify")
    panel = ready(page, "digits-features", "classify")
    page.click(f"{panel} .pad button", "Clear")
    box = page.evaluate(
        "(({left, top, width}) => [left, top, width])(document.querySelector('.pad canvas').getBoundingClientRect())"
    )
    left, top, width = box
    page.drag([(left + width * share, top + width * 0.0625) for share in (0.05, 0.5, 0.95)])
    seen = pixels(page, ".pad canvas")[0]
    assert (seen[0] > 100).all()
    assert (seen[3:] == 0).all()
    page.evaluate("document.querySelector('.pad canvas').focus()")
    page.key(" ")
    assert pixels(page, ".pad canvas")[0][4, 4] == 255
    page.click(f"{panel} .main")
    answered(page)
    body = sent(page, "classify")
    assert np.array_equal(picture(body["x"])[..., 0], pixels(page, ".pad canvas")[0])
    logits = np.array(post(server, "digits-features", "classify", body, "application/json").json()["values"][0])
    first = page.text(".bars tr").split()
    assert int(first[1]) == logits.argmax()
    assert float(first[2]) == pytest.approx(100 * np.exp(logits.max()) / np.exp(logits).sum(), abs=0.051)


def test_the_rest_of_a_picture_is_completed(open_page, server, photo):
    page = open_page(server, "#try/digits-edm/inpaint")
    panel = ready(page, "digits-edm", "inpaint")
    page.upload(f"{panel} input[type=file]", photo)
    page.wait("document.querySelector('.pad canvas').getContext('2d').getImageData(0, 3, 1, 1).data[0] > 0")
    page.click(".mask button", "left")
    page.click(f"{panel} summary", "More settings")
    page.fill("[data-setting=steps] input", "4")
    page.fill("[data-setting=resample] input", "1")
    page.click(f"{panel} .main")
    answered(page)
    body = sent(page, "inpaint")
    mask = picture(body["mask"])[..., 0]
    assert (mask[:, :4] == 255).all()
    assert (mask[:, 4:] == 0).all()
    whole = array(server, "digits-edm", "inpaint", body)
    assert np.array_equal(pixels(page, ".tile canvas"), whole)
    page.click(".mask button", "everything")
    page.evaluate("document.querySelector('.mask canvas').focus()")
    page.key(" ")
    page.click(f"{panel} .main")
    answered(page)
    assert (picture(sent(page, "inpaint")["mask"])[..., 0] == 0).sum() in range(1, 10)


def test_a_sample_becomes_the_picture_that_tasks_are_given(open_page, server):
    page = open_page(server, "#try/digits-edm/sample")
    panel = ready(page, "digits-edm", "sample")
    page.fill("[data-setting=n] input", "1")
    page.click(f"{panel} .main")
    answered(page)
    drawn = pixels(page, ".tile canvas")
    page.click(".tile")
    page.click("dialog .use")
    ready(page, "digits-edm", "picture")
    assert np.array_equal(pixels(page, ".pad canvas"), drawn)


def test_latents_go_out_and_come_back(open_page, server):
    page = open_page(server, "#try/digits-conditional-vae/encode")
    panel = ready(page, "digits-conditional-vae", "encode")
    page.click(f"{panel} .class", "3")
    page.click(f"{panel} .main")
    answered(page)
    latent = json.loads(page.text(".rows"))
    page.click("#tabs button", "decode")
    panel = ready(page, "digits-conditional-vae", "decode")
    page.click(f"{panel} .class", "3")
    assert json.loads(page.evaluate("document.querySelector('textarea').value")) == [latent]
    page.click(f"{panel} .main")
    answered(page)
    again = array(server, "digits-conditional-vae", "decode", sent(page, "decode"))
    assert np.array_equal(pixels(page, ".tile canvas"), again)
    page.fill("textarea", "[1, 2")
    page.click(f"{panel} .main")
    page.wait("document.querySelector('.given .error').checkVisibility()")
    assert "base64" in page.text(".given .error")
    forget_refusal(page, 422)


def test_two_models_are_compared_on_the_same_seeds(open_page, server):
    page = open_page(server, "#compare")
    page.wait("document.querySelectorAll('.side').length === 2")
    page.choose(".side select", "/v1/models/digits-conditional-vae")
    page.choose(".side:last-child select", "/v1/models/digits-dcgan")
    page.wait("document.querySelector('.side:last-child [data-setting=truncation]')")
    page.fill(".shared [data-setting=n] input", "4")
    page.fill(".shared [data-setting=seed] input", "11")
    page.click(".side:last-child summary", "More settings")
    page.fill(".side:last-child [data-setting=truncation] input[type=number]", "0.5")
    page.click(".compare .main", "Draw both")
    answered(page, 2)
    common = {"n": 4, "seed": 11}
    a, b = (pixels(page, f".side:nth-child({k}) .tile canvas") for k in (1, 2))
    assert np.array_equal(a, array(server, "digits-conditional-vae", "sample", common))
    assert np.array_equal(b, array(server, "digits-dcgan", "sample", {**common, "truncation": 0.5}))


@pytest.mark.skipif(shutil.which("curl") is None and not os.environ.get("CI"), reason="no curl here, and CI is not set")
def test_the_line_of_curl_gets_what_is_on_screen(open_page, server, tmp_path):
    page = open_page(server, "#try/digits-dcgan/sample")
    panel = ready(page, "digits-dcgan", "sample")
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.fill("[data-setting=seed] input", "")
    page.click(f"{panel} .class", "7")
    page.click(f"{panel} .main")
    answered(page)
    page.click(".code button", "Copy")
    page.wait("document.querySelector('.code').innerText.includes('Copied')")
    line = page.evaluate("navigator.clipboard.readText()")
    assert line == page.text(".code pre").strip()
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=60)
    (file,) = tmp_path.iterdir()
    seed = int(page.text(".facts").split("seed ")[1].split()[0])
    body = {"n": 16, "seed": seed, "label": 7}
    assert file.read_bytes() == post(server, "digits-dcgan", "sample", body).content
    assert np.array_equal(pixels(page, ".tile canvas"), array(server, "digits-dcgan", "sample", body))


def called(code, monkeypatch):
    """What a piece of Python asks the client for."""
    calls = []

    class Model:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, task):
            return lambda **settings: calls.append((self.name, task, settings))

    class Client:
        def __init__(self, address, token=None):
            calls.append((address, token))

        def model(self, name):
            return Model(name)

    module = types.ModuleType("kinfolk.client")
    module.Client = Client
    monkeypatch.setitem(sys.modules, "kinfolk.client", module)
    exec(compile(ast.parse(code), "snippet", "exec"), {})
    return calls


def test_the_call_in_python_asks_for_what_is_on_screen(open_page, server, monkeypatch):
    page = open_page(server, "#try/digits-edm/inpaint")
    panel = ready(page, "digits-edm", "inpaint")
    page.click(f"{panel} summary", "More settings")
    page.fill("[data-setting=steps] input", "3")
    page.click("[data-setting=clamp] input")
    page.click(f"{panel} .main")
    answered(page)
    page.click(".code .class", "Python")
    address, (model, task, settings) = called(page.text(".code pre"), monkeypatch)
    body = sent(page, "inpaint")
    assert address == (server, None)
    assert (model, task) == ("digits-edm", "inpaint")
    files = {name: base64.b64encode(settings[name]).decode() for name in ("x", "mask")}
    assert {**settings, **files} == body
    assert settings["clamp"] is True


def forget_refusal(page, status):
    """The browser logs every refusal; one was asked for."""
    page.evaluate("1")  # all that it logged has come
    (error,) = page.errors
    assert error["source"] == "network"
    assert str(status) in error["text"]
    page.errors.clear()


@pytest.mark.parametrize(("name", "value"), [("n", "0"), ("steps", "2000"), ("guidance_low", "0.5")])
def test_an_error_is_shown_at_its_field(open_page, server, name, value):
    page = open_page(server, "#try/digits-edm/sample")
    panel = ready(page, "digits-edm", "sample")
    page.evaluate(f"document.querySelector('{panel} details').open = true")
    page.fill(f"[data-setting={name}] input[type=number]", value)
    page.evaluate(f"document.querySelector('{panel} details').open = false")
    page.click(f"{panel} .main")
    page.wait(f"document.querySelector('[data-setting={name}] .error').checkVisibility()")
    assert name in page.text(f"[data-setting={name}] .error")
    assert (
        page.evaluate(f"[...document.querySelectorAll('{panel} .error')].filter((e) => e.checkVisibility()).length")
        == 1
    )
    focused = f"document.activeElement.closest('[data-setting={name}]') && document.activeElement.ariaInvalid"
    assert page.evaluate(focused) == "true"
    forget_refusal(page, 422)
    page.fill(f"[data-setting={name}] input[type=number]", {"n": "1", "steps": "2", "guidance_low": "0"}[name])
    page.click(f"{panel} .main")
    answered(page)
    assert not page.evaluate(f"document.querySelector('[data-setting={name}] .error').checkVisibility()")


def test_each_setting_is_explained(open_page, server):
    page = open_page(server, "#settings/digits-edm")
    page.wait("document.querySelector('.reference h2')?.innerText === 'digits-edm'")
    told = page.text(".reference")
    (model,) = [each for each in httpx.get(f"{server}/v1/models").json()["models"] if each["name"] == "digits-edm"]
    schema = httpx.get(f"{server}/v1/models/digits-edm/openapi.json").json()
    for task in model["tasks"]:
        assert f"POST /v1/models/digits-edm/{task}" in told
        content = schema["paths"][f"/{task}"]["post"]["requestBody"]["content"]
        for name, setting in content["application/json"]["schema"]["properties"].items():
            assert name in told
            assert setting.get("description", "") in told


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1920])
def test_nothing_is_cut_off_at_any_width(open_page, server, width):
    page = open_page(server, "#try/digits-edm/inpaint")
    page.emulate(width, 844, mobile=width < 600)
    for place, found in (
        ("try/digits-edm/inpaint", ".mask"),
        ("compare", ".sides"),
        ("settings/digits-edm", ".reference"),
    ):
        page.evaluate(f"location.hash = '{place}'")
        page.wait(f"document.querySelector('{found}')")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        inputs = "[...document.querySelectorAll('#work :is(button, select, input[type=number], canvas)')]"
        assert page.evaluate(f"{inputs}.filter((e) => e.getBoundingClientRect().right > {width}).length") == 0


def test_a_busy_server_is_asked_again_when_it_says(open_page, make_host, walk):
    host = make_host(walk, max_evaluations=300, max_evaluations_queued=301)
    watch = walk.module.watch
    watch.gate.clear()
    with serving([host]) as address:
        taken = threading.Thread(target=post, args=(address, "walk", "sample", {"n": 100}))
        taken.start()
        assert watch.entered.wait(20)
        page = open_page(address, "#try/walk/sample", models=1)
        panel = ready(page, "walk", "sample")
        page.click(f"{panel} .main")
        page.wait("document.querySelector('.status').innerText.includes('busy: asking again in')")
        watch.gate.set()
        answered(page)
        taken.join(20)
    assert page.evaluate("document.querySelectorAll('.tile').length") == 16
    forget_refusal(page, 503)


def test_a_model_that_sleeps_can_be_woken(open_page, make_host, walk):
    host = make_host(walk)
    woken = threading.Event()

    async def listing():
        asleep = {"name": "walk", "address": "/v1/models/walk", "state": "asleep"}
        return [describe(host) if woken.is_set() else asleep]

    async def schema():
        woken.set()
        return openapi

    app = directory_app(listing, None)
    openapi = endpoint_app(host).openapi()
    app.router.routes.insert(0, APIRoute("/v1/models/walk/openapi.json", schema))
    with listening(app) as address:
        page = open_page(address, models=1)
        page.wait("document.querySelector('#work').innerText.includes('walk is asleep')")
        assert "not loaded" in page.text(".model")
        page.click("#work button", "Wake it")
        ready(page, "walk", "sample")
        assert "version 3" in page.text(".model")
    asyncio.run(host.close())


def test_the_token_is_asked_for_kept_in_the_tab_and_never_copied(open_page, make_host, walk, tmp_path):
    with serving([make_host(walk)], token="s3cret") as address:
        page = open_page(address, "#try/walk/sample", models=0)
        page.wait("document.querySelector('#notice').innerText.includes('bearer token')")
        assert page.evaluate("document.querySelector('#access').classList.contains('wanted')")
        page.errors.clear()
        page.fill("#token", "s3cret")
        page.key("Enter")
        panel = ready(page, "walk", "sample")
        assert page.text("#notice") == ""
        page.click(f"{panel} .main")
        answered(page)
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        line = page.text(".code pre")
        assert "s3cret" not in page.evaluate("document.body.innerHTML")
        environment = {**os.environ, "KINFOLK_API_TOKEN": "s3cret"}
        subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=60, env=environment)
        assert Image.open(tmp_path / "walk-sample.png").size == (22, 22)
        page.evaluate("sessionStorage.clear()")


def test_the_browser_leaves_nothing():
    with chromium() as page:
        assert page.evaluate("1 + 1") == 2
        assert [each for each in running() if str(page.folder) in each[1]]
    assert not page.folder.exists()
    deadline = time.monotonic() + 10
    while left := {each for each in running() if str(page.folder) in each[1]}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def running():
    """Processes with their command lines."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.add((folder.name, (folder / "cmdline").read_text()))
    return found
