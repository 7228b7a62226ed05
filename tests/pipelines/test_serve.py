"""Serving as the command line does it: whose address, which registry, whose token, and the way down."""

import io
import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

import kinfolk.serving.launch
from kinfolk.serving.config import ServedModel, ServeFile
from kinfolk_pipelines import demo, serve
from kinfolk_pipelines.demo import _draw_over_http, _promote_all, _serve_file, wait
from kinfolk_pipelines.serve import serve_file, serve_until_interrupted, start_serving
from kinfolk_pipelines.settings import Settings

FILE = ServeFile(port=8123, models=[ServedModel(name="a"), ServedModel(name="b", route="way")])


@pytest.fixture
def played(monkeypatch):
    """What Ray and Serve were asked, in order."""
    done = []
    monkeypatch.setattr(serve, "haproxy_environment", lambda: {"PROXY": "1"})
    monkeypatch.setattr(serve, "check_port", lambda *asked: done.append(("port", *asked)))
    monkeypatch.setattr(serve, "connect", lambda *asked, **more: done.append(("connect", *asked, more)))
    monkeypatch.setattr(kinfolk.serving.launch, "serve_models", lambda *asked: done.append(("serve", *asked)))
    monkeypatch.setattr(kinfolk.serving.launch, "stop_serving", lambda: done.append(("stop",)))
    return done


def test_the_command_line_lies_over_the_serve_file(tmp_path):
    (tmp_path / "serve.yaml").write_text("host: 127.0.0.2\nport: 9000\nmodels: [{name: a}]\n")
    for given, wanted in {
        (None, None): ("127.0.0.2", 9000),
        ("0.0.0.0", None): ("0.0.0.0", 9000),
        (None, 81): ("127.0.0.2", 81),
    }.items():
        found = serve_file(tmp_path / "serve.yaml", *given)
        assert (found.host, found.port) == wanted
        assert found.models[0].name == "a"


def test_models_of_the_settings_registry_are_served_behind_the_token(played, tmp_path):
    other = {"name": "b", "token": "other", "requests_per_s": 2}
    settings = Settings(state=tmp_path, tracking_uri="http://mlflow", api_token="secret", api_tokens=[other], cpus=3)
    addresses = start_serving(settings, FILE)
    assert addresses == [f"http://127.0.0.1:8123/v1/models/{path}/sample" for path in ("a", "way")]
    port, connect, (_, file, registry, access) = played
    assert port == ("port", "127.0.0.1", 8123)
    assert connect[1:3] == (None, tmp_path)
    assert connect[3]["cpus"] == 3
    assert connect[3]["environment"] == {"PROXY": "1"}
    assert file == FILE
    assert [holder.token.get_secret_value() for holder in access] == ["secret", "other"]
    assert [holder.requests_per_s for holder in access] == [None, 2]
    assert registry == kinfolk.serving.launch.Registry("http://mlflow", str(settings.cache))


def test_without_a_token_endpoints_ask_for_none(played, tmp_path):
    start_serving(Settings(state=tmp_path), FILE)
    assert played[-1][-1] == ()


def test_the_port_of_a_cluster_elsewhere_is_not_tried_here(played, tmp_path):
    start_serving(Settings(state=tmp_path, ray_address="10.0.0.5:6379"), FILE)
    assert [kind for kind, *_ in played] == ["connect", "serve"]
    assert played[0][1] == "10.0.0.5:6379"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_everything_down(played, tmp_path, monkeypatch, number):
    class Interrupted(threading.Event):
        def wait(self):
            assert signal.getsignal(number) is not before[number]  # or the signal would end the tests
            signal.raise_signal(number)
            return super().wait(10)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(serve, "threading", SimpleNamespace(Event=Interrupted))
    said = []
    try:
        serve_until_interrupted(Settings(state=tmp_path), FILE, said.append)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert played[-1] == ("stop",)
    assert said[:2] == [
        "POST http://127.0.0.1:8123/v1/models/a/sample",
        "POST http://127.0.0.1:8123/v1/models/way/sample",
    ]
    assert "http://127.0.0.1:8123/v1/models\nplayground http://127.0.0.1:8123/\n" in said[2]


def compared(name, number=2):
    version = SimpleNamespace(name=name, number=number, reference=f"{name}/{number}")
    return SimpleNamespace(trained=SimpleNamespace(version=version))


def test_the_demo_promotes_and_serves_what_it_trained(monkeypatch, tmp_path):
    promoted, text = [], io.StringIO()

    def promote(tracking, name, number, rule):
        promoted.append((tracking, name, number, rule.metric, rule.better))
        return SimpleNamespace(decision=SimpleNamespace(promote=name == "a", reason="because"))

    monkeypatch.setattr(demo, "promote", promote)
    three = [compared("a"), compared("b"), compared("c")]
    _promote_all(Settings(tracking_uri="uri"), three, Console(file=text))
    assert promoted == [("uri", name, 2, "fd_local", "lower") for name in "abc"]
    assert text.getvalue().splitlines()[:2] == ["a/2: promoted, because", "b/2: not promoted, because"]
    models = _serve_file(three).models
    assert [(model.name, model.alias) for model in models] == [(name, "champion") for name in "abc"]
    assert sum(model.num_cpus for model in models) == pytest.approx(1)


class Endpoint(BaseHTTPRequestHandler):
    """Answers with a picture of 2 x 1 pixels and keeps what was asked."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        picture = io.BytesIO()
        (image := Image.new("L", (2, 1))).putpixel((1, 0), 200)
        image.save(picture, "PNG")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(picture.getvalue())

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("token", "header"), [("secret", "Bearer secret"), (None, None)])
def test_the_demo_asks_for_every_class_as_a_user_would(tmp_path, token, header):
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        server.asked = []
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v1/models/a/sample"
        _draw_over_http(Settings(api_token=token), address, tmp_path / "new" / "x.png")
    ((path, authorization, body),) = server.asked
    assert (path, authorization) == ("/v1/models/a/sample", header)
    assert sorted(body["label"]) == [index // 10 for index in range(100)]
    picture = Image.open(tmp_path / "new" / "x.png")
    assert picture.size == (12, 6)
    assert [picture.getpixel((x, 0)) for x in (0, 5, 6, 11)] == [0, 0, 200, 200]


def test_the_demo_stays_up_until_interrupted_or_mlflow_ends():
    alive = [None, None, 0]
    left = SimpleNamespace(mlflow=SimpleNamespace(process=SimpleNamespace(poll=lambda: alive.pop(0))))
    slept = []
    wait(left, Console(quiet=True), slept.append)
    assert slept == [1, 1]

    def interrupted(_):
        raise KeyboardInterrupt

    text = io.StringIO()
    alive[:] = [None]
    wait(left, Console(file=text), interrupted)
    assert "Stopping" in text.getvalue()
