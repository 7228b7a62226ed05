"""One application on a real Serve: every check of HTTP against in-process sampling, in one deployment."""

import io
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from mlflow.webhooks.delivery import _generate_hmac_signature
from pydantic import SecretStr

from kinfolk.bundle import save_bundle
from kinfolk.cluster import free_port
from kinfolk.contract import DataSpec, Model
from kinfolk.errors import ConfigError
from kinfolk.rng import seeded_initialisation
from kinfolk.sampling import sample
from kinfolk.serving.access import Access, holders
from kinfolk.serving.config import Autoscaling, Rollout, ServedModel, ServeFile, Shared
from kinfolk.serving.launch import Registry, serve_models, stop_serving
from kinfolk.serving.shared import bytes_of
from kinfolk.serving.webhook import ADDRESS

SPEC = DataSpec(kind="image", shape=(1, 8, 8), levels=17)
TOKEN = {"Authorization": "Bearer secret"}
NPY = {"Accept": "application/x-npy", **TOKEN}


def _model(family, seed):
    config = family.config()
    with seeded_initialisation(seed):
        return Model(family, config, SPEC, family.build(config, SPEC, {}).eval())


@pytest.fixture(scope="module")
def served(ray_cluster, toy_folder, tmp_path_factory):
    """The toy family behind HTTP: the client, its model, and the bundle folder it is served from."""
    import sys

    import kinfolk_toy

    sys.path.insert(0, str(toy_folder))
    bundle = tmp_path_factory.mktemp("served") / "bundle"
    save_bundle(model := _model(kinfolk_toy.FAMILY, 0), bundle)
    port = free_port()
    entry = ServedModel(
        name="toy", bundle=bundle, num_cpus=0.5, alias_poll_s=0.5, drain_timeout_s=5, rollout=Rollout(trial_s=1)
    )
    two = Autoscaling(min_replicas=2, max_replicas=2)
    told = entry.model_copy(update={"name": "told", "alias_poll_s": 600.0, "autoscaling": two})  # look when told to
    registry = Registry("unused", str(bundle.parent), secret=SecretStr("between them"))
    turns = [ServedModel(name=name, bundle=bundle, shared=True) for name in ("left", "right")]
    one = Shared(memory_mb=1.5 * bytes_of(model) / 1e6, num_cpus=0.5, drain_timeout_s=5)
    file = ServeFile(port=port, models=[entry, told, *turns], shared=one)
    serve_models(file, registry, access=[*holders("secret"), Access(name="keeps", token="admin", role="admin")])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client, model, bundle
    stop_serving()
    sys.path.remove(str(toy_folder))


def test_pixels_over_http_are_those_of_the_sampler(served):
    client, model, _ = served
    answer = client.post("/v1/models/toy/sample", json={"n": 40, "seed": 3, "temperature": 0.5}, headers=NPY)
    assert answer.status_code == 200
    expected = SPEC.to_uint8(sample(model, 40, 3, options={"temperature": 0.5})).numpy().astype(int)
    assert np.abs(np.load(io.BytesIO(answer.content)).astype(int) - expected).max() <= 1


def test_the_root_lists_models_and_routes_by_the_longest_path(served):
    client, _, _ = served
    model, *_ = client.get("/v1/models", headers=TOKEN).json()["models"]
    assert (model["name"], model["state"], model["address"]) == ("toy", "ready", "/v1/models/toy")
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/v1/models/toy/readyz").json() == {"status": "ready"}
    assert client.get("/v1/models/toy", headers=TOKEN).json()["family"] == "gaussian"
    page = client.get("/")  # without the token
    assert "playground/main.js" in page.text
    assert client.get("/playground/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert "/sample" in client.get("/v1/models/toy/openapi.json", headers=TOKEN).json()["paths"]
    unknown = client.post("/v1/models/toi/sample", headers=TOKEN)
    assert unknown.status_code == 404
    assert "Did you mean 'toy'" in unknown.json()["error"]["message"]


def test_models_that_share_a_replica_take_turns_at_their_own_addresses(served):
    client, _, _ = served
    for name in ("left", "right", "left"):
        answer = client.post(f"/v1/models/{name}/sample", json={"seed": 3}, headers=NPY)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Kinfolk-Model"] == name
        time.sleep(1.1)  # a list is answered again for a second
        listed = {each["name"]: each["state"] for each in client.get("/v1/models", headers=TOKEN).json()["models"]}
        assert (listed["left"], listed["right"])[:: 1 if name == "left" else -1] == ("ready", "unloaded")
    assert client.get("/v1/models/right", headers=TOKEN).json()["state"] == "unloaded"
    assert client.get("/v1/models/right/readyz").status_code == 200
    assert client.get("/v1/models/right/readyz", headers=TOKEN).json() == {"status": "unloaded"}
    drawn = client.post("/v1/images/generations", json={"model": "right", "prompt": "1"}, headers=TOKEN)
    assert "told nothing" in drawn.json()["error"]["message"]


def test_refusals_reach_the_client_as_they_are(served):
    client, _, _ = served
    path = "/v1/models/toy/sample"
    assert client.post(path).status_code == 401
    assert client.post(path, headers=TOKEN, json={"steps": 99}).json()["error"]["field"] == "steps"
    assert client.post(path, headers=TOKEN, json={"n": 10**9}).status_code == 422
    assert client.post(path, headers=TOKEN | {"Content-Type": "application/json"}, content=b"{").status_code == 400
    assert client.post(path, headers=TOKEN, content=b" " * 2_000_000).status_code == 413


def test_prometheus_finds_what_the_replica_tells(served):
    client, _, _ = served
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = r'kinfolk_answers_total\{[^}]*model="toy"[^}]*task="sample"[^}]*\} (\d+)'
    deadline = time.monotonic() + 40  # it is told every few seconds
    while time.monotonic() < deadline:
        assert client.post("/v1/models/toy/sample", json={"seed": 3}, headers=NPY).status_code == 200
        told = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        if found := re.search(wanted, told):
            break
        time.sleep(0.5)
    assert found
    assert float(found[1]) >= 1
    for name in (
        "rows_in_flight",
        "evaluations_queued",
        "evaluations_per_second",
        "batch_fill",
        "queue_seconds_bucket",
    ):
        assert re.search(rf'kinfolk_{name}\{{[^}}]*model="toy"', told), name


def test_only_the_loopback_interface_is_listened_on(served):
    client, _, _ = served
    port = client.base_url.port
    sockets = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    places = [line.split()[3] for line in sockets.splitlines()]
    assert [place for place in places if place.endswith(f":{port}")] == [f"127.0.0.1:{port}"]


def test_a_second_service_on_one_ray_is_refused(served):
    file = ServeFile(port=free_port(), models=[ServedModel(name="toy", bundle=served[2])])
    with pytest.raises(ConfigError, match="serves models already"):
        serve_models(file)


def test_a_new_version_is_taken_up_without_a_failed_request(served, toy_folder):
    client, old, bundle = served
    new = _model(old.family, 1)
    shutil.copytree(bundle, aside := bundle.with_name("old"))
    save_bundle(new, bundle)
    versions, deadline = set(), time.monotonic() + 20
    while len(versions) < 2 and time.monotonic() < deadline:
        answer = client.post("/v1/models/toy/sample", json={"seed": 3}, headers=NPY)
        assert answer.status_code == 200
        versions.add(answer.headers["Kinfolk-Version"])
    assert len(versions) == 2
    expected = SPEC.to_uint8(sample(new, 1, 3)).numpy().astype(int)
    assert np.abs(np.load(io.BytesIO(answer.content)).astype(int) - expected).max() <= 1
    assert aside.is_dir()
    assert f"toy is at version {answer.headers['Kinfolk-Version']}." in logged("toy", 30)


def logged(name, seconds):
    """What the platform has logged in the replicas of a model, once it has; every line of their files is JSON."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path(), "serve")
    deadline = time.monotonic() + seconds
    while True:
        files = list(folder.glob(f"replica_model-{name}_*.log"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        told = [line["message"] for line in lines if line["filename"] == "follower.py"]
        if told or time.monotonic() > deadline:
            return told
        time.sleep(0.2)


def version_within(client, path, seconds, wanted):
    """The version that answers, as soon as ``wanted`` holds of it."""
    deadline = time.monotonic() + seconds
    while not wanted(version := client.get(path, headers=TOKEN).json()["version"]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return version


def test_a_replica_looks_at_once_when_the_registry_says_that_an_alias_has_moved(served):
    client, model, bundle = served
    before, passed = [client.get(f"/v1/models/{name}/", headers=TOKEN).json()["version"] for name in ("told", "toy")]
    save_bundle(_model(model.family, 2), bundle)
    version = version_within(client, "/v1/models/toy/", 30, lambda version: version not in (before, passed))
    assert version not in (before, passed)
    assert client.get("/v1/models/told/", headers=TOKEN).json()["version"] == before
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "told"}})
    sent = str(int(time.time()))
    headers = {"X-MLflow-Timestamp": sent, "X-MLflow-Delivery-Id": "1"}
    assert client.post(ADDRESS, content=body, headers=headers).status_code == 401
    headers["X-MLflow-Signature"] = _generate_hmac_signature("between them", "1", sent, body)
    assert client.post(ADDRESS, content=body, headers=headers).status_code == 204
    assert version_within(client, "/v1/models/told/", 30, lambda found: found == version) == version


def test_every_replica_looks_when_an_admin_asks_one(served):
    client, model, bundle = served
    path = "/v1/models/told/"
    before = client.get(path, headers=TOKEN).json()["version"]
    save_bundle(_model(model.family, 3), bundle)
    assert client.post(f"{path}-/look", headers={"Authorization": "Bearer admin"}).json()["version"] == before
    deadline, answered = time.monotonic() + 30, {before}
    while before in answered and time.monotonic() < deadline:
        answered = {client.get(path, headers=TOKEN).json()["version"] for _ in range(10)}  # of both replicas in turn
    assert before not in answered
