"""What Serve is asked for, and what the root says of each model, without a running Serve."""

import asyncio
import time
from types import SimpleNamespace

import httpx
import pytest
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.schema import ApplicationStatus
from starlette.datastructures import Headers

from kinfolk.bundle import save_bundle
from kinfolk.errors import ConfigError, KinfolkError
from kinfolk.serving import launch, replica
from kinfolk.serving.config import Autoscaling, Limits, ServedModel, ServeFile, Shared
from kinfolk.serving.launch import (
    ServingError,
    _application,
    _directory,
    _looked_at,
    _shared,
    check_idle,
    check_room,
    serve_models,
)
from kinfolk.serving.replica import DirectoryReplica, application_name


def file_of(*models, **more):
    return ServeFile(models=models, **more)


@pytest.mark.parametrize(
    ("cpus", "replicas", "fits"), [(1.0, 2, True), (1.5, 2, False), (2.0, 0, True), (3.5, 0, False)]
)
def test_replicas_to_start_with_must_fit_the_cluster(monkeypatch, cpus, replicas, fits):
    monkeypatch.setattr(launch.ray, "cluster_resources", lambda: {"CPU": 3.0})
    scale = Autoscaling(min_replicas=replicas, max_replicas=9)
    file = file_of(ServedModel(name="a", num_cpus=cpus, autoscaling=scale), ServedModel(name="b", num_cpus=1.0))
    if fits:
        check_room(file)
    else:
        with pytest.raises(
            ConfigError, match=r"2 models .* want [\d.]+ CPUs to start; the cluster has 3\. Lower num_cpus"
        ):
            check_room(file)


def test_gpus_must_be_there_too(monkeypatch):
    monkeypatch.setattr(launch.ray, "cluster_resources", lambda: {"CPU": 3.0, "GPU": 1.0})
    check_room(file_of(ServedModel(name="a", num_gpus=0.5), ServedModel(name="b", num_gpus=0.5)))
    with pytest.raises(ConfigError, match=r"want 1\.5 GPUs to start; the cluster has 1\. Lower num_gpus"):
        check_room(file_of(ServedModel(name="a", num_gpus=1), ServedModel(name="b", num_gpus=0.5)))


def test_models_for_gpus_are_looked_at_without_one(monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "load", lambda served, release: seen.append(served.device))
    _looked_at(ServedModel(name="a", num_gpus=1), None)
    assert seen == ["cpu"]


def test_the_shared_replica_counts_once(monkeypatch):
    monkeypatch.setattr(launch.ray, "cluster_resources", lambda: {"CPU": 3.0})
    sharing = [ServedModel(name=f"s{number}", shared=True) for number in range(9)]
    check_room(file_of(ServedModel(name="a"), *sharing, shared=Shared(memory_mb=9, num_cpus=2)))
    with pytest.raises(ConfigError, match=r"want 3\.5 CPUs"):
        check_room(file_of(ServedModel(name="a"), *sharing, shared=Shared(memory_mb=9, num_cpus=2.5)))


@pytest.mark.parametrize("proxies", [{}, {"node": "HEALTHY"}])
def test_a_ray_that_serves_is_left_alone(monkeypatch, proxies):
    monkeypatch.setattr(launch.serve, "status", lambda: SimpleNamespace(proxies=proxies))
    if not proxies:
        check_idle()
    else:
        with pytest.raises(ConfigError, match="serves models already"):
            check_idle()


def test_the_serve_file_reaches_serve():
    scale = Autoscaling(
        min_replicas=2,
        max_replicas=5,
        target_queue_s=7,
        target_busy=0.5,
        upscale_delay_s=3,
        downscale_delay_s=4,
    )
    served = ServedModel(
        name="a", num_cpus=0.5, num_gpus=1, max_ongoing_requests=33, drain_timeout_s=6, autoscaling=scale
    )
    registry = object()
    file = file_of(served, cors_origins=["https://a.example"])
    bound = _application(served, file, registry, "secret")._bound_deployment
    assert bound.init_args == (served, registry, "secret", ("https://a.example",))
    assert bound.ray_actor_options["num_cpus"] == 0.5
    assert bound.ray_actor_options["num_gpus"] == 1
    assert bound.max_ongoing_requests == 33
    assert bound.max_queued_requests == 33
    config = bound._deployment_config
    assert config.graceful_shutdown_timeout_s == 6
    assert config.max_surge_percent == 100
    given = config.autoscaling_config
    assert (given.min_replicas, given.initial_replicas, given.max_replicas) == (2, 2, 5)
    assert given.policy.policy_kwargs == {"target_queue_s": 7, "target_busy": 0.5}
    assert (given.upscale_delay_s, given.downscale_delay_s) == (3, 4)


def test_the_shared_replica_is_one_and_has_what_the_section_says():
    section = Shared(memory_mb=9, num_cpus=0.5, num_gpus=1, max_ongoing_requests=33, drain_timeout_s=6)
    file = file_of(
        ServedModel(name="a", shared=True), ServedModel(name="b"), shared=section, cors_origins=["https://a.org"]
    )
    bound = _shared(file, None, "secret")._bound_deployment
    assert bound.init_args == (section, [file.models[0]], None, "secret", ("https://a.org",))
    assert (bound.ray_actor_options["num_cpus"], bound.ray_actor_options["num_gpus"]) == (0.5, 1)
    assert (bound.max_ongoing_requests, bound.max_queued_requests) == (33, 33)
    config = bound._deployment_config
    assert (config.num_replicas, config.autoscaling_config) == (1, None)
    assert config.graceful_shutdown_timeout_s == 6


def test_a_model_that_may_sleep_starts_awake():
    served = ServedModel(name="a", autoscaling=Autoscaling(min_replicas=0))
    given = _application(served, file_of(served), None, ())._bound_deployment._deployment_config.autoscaling_config
    assert (given.min_replicas, given.initial_replicas) == (0, 1)


def test_the_root_takes_no_cpu_and_knows_the_token():
    file = file_of(ServedModel(name="a"), cors_origins=["https://a.example"])
    bound = _directory(file, None, "secret")._bound_deployment
    assert bound.init_args == (file.models, None, "secret", ("https://a.example",))
    assert bound.ray_actor_options["num_cpus"] == 0


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_logged_is_json_and_requests_only_where_that_is_wanted(wanted):
    file = file_of(ServedModel(name="a"), access_log=wanted)
    for bound in (_application(file.models[0], file, None, ()), _directory(file, None, ())):
        logging = bound._bound_deployment._deployment_config.logging_config
        assert (logging["encoding"], logging["enable_access_log"]) == ("JSON", wanted)


def test_two_routes_to_one_model_are_two_applications():
    assert application_name(ServedModel(name="a")) == "model-a"
    assert application_name(ServedModel(name="a", route="b")) == "model-b"


@pytest.fixture
def serving(monkeypatch):
    """Stands in for an idle Serve on four CPUs; what it was asked is written down."""
    done, fault = [], []

    def run_many(targets):
        done.append(("run", [(each.name, each.route_prefix) for each in targets]))
        if fault:
            raise RuntimeError(fault[0])

    stand_in = SimpleNamespace(
        status=lambda: SimpleNamespace(proxies={}),
        start=lambda **given: done.append(("start", given["http_options"], given["proxy_location"])),
        run_many=run_many,
        shutdown=lambda: done.append(("shutdown",)),
        **{name: getattr(launch.serve, name) for name in ("deployment", "ingress", "RunTarget", "Application")},
    )
    monkeypatch.setattr(launch, "serve", stand_in)
    monkeypatch.setattr(launch.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(launch.ray, "cluster_resources", lambda: {"CPU": 4.0})
    return SimpleNamespace(done=done, fault=fault)


@pytest.fixture
def bundle(toy, digits, tmp_path):
    from kinfolk.training.state import build

    save_bundle(build(toy, toy.config(), digits.spec, 0), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_every_model_has_its_address_and_the_root_the_rest(serving, bundle):
    file = file_of(ServedModel(name="a", bundle=bundle), ServedModel(name="a", route="b", bundle=bundle), port=8123)
    releases = serve_models(file)
    assert releases.keys() == {"/v1/models/a", "/v1/models/b"}
    assert serving.done == [
        ("start", {"host": "127.0.0.1", "port": 8123}, "HeadOnly"),
        ("run", [("model-a", "/v1/models/a"), ("model-b", "/v1/models/b"), ("directory", "/")]),
    ]


def test_models_that_share_a_replica_are_one_application_above_their_addresses(serving, bundle):
    sharing = [ServedModel(name=name, bundle=bundle, shared=True) for name in ("b", "c")]
    file = file_of(ServedModel(name="a", bundle=bundle), *sharing, shared=Shared(memory_mb=9))
    assert serve_models(file).keys() == {"/v1/models/a", "/v1/models/b", "/v1/models/c"}
    assert serving.done[-1] == (
        "run",
        [("model-a", "/v1/models/a"), ("shared", "/v1/models"), ("directory", "/")],
    )


def test_a_model_larger_than_what_is_shared_starts_nothing(serving, bundle):
    model = ServedModel(name="a", bundle=bundle, shared=True)
    with pytest.raises(ConfigError, match=r"a takes [\d.]+ MB, .* may take 1e-05 MB"):
        serve_models(file_of(model, shared=Shared(memory_mb=0.00001)))
    assert not serving.done


def test_what_cannot_be_served_starts_nothing(serving, bundle, tmp_path):
    with pytest.raises(ConfigError, match="want 5 CPUs to start; the cluster has 4"):
        serve_models(file_of(ServedModel(name="c", bundle=bundle, num_cpus=5)))
    gone = ServedModel(name="a", bundle=tmp_path / "gone")
    damaged = ServedModel(name="b", bundle=bundle)
    (bundle / "spec.json").write_text("{}")
    for model in (gone, damaged):
        with pytest.raises(KinfolkError):
            serve_models(file_of(model))
    assert not serving.done


def test_models_that_do_not_come_up_are_taken_down(serving, bundle):
    serving.fault.append("replica 3 died")
    with pytest.raises(ServingError, match="did not come up: replica 3 died"):
        serve_models(file_of(ServedModel(name="a", bundle=bundle)))
    assert serving.done[-1] == ("shutdown",)


def application(status, running):
    part = SimpleNamespace(replica_states={"RUNNING": running, "STARTING": 1})
    return SimpleNamespace(status=status, deployments={"SamplingReplica": part})


class Root:
    """A directory replica over applications that are played."""

    def __init__(self, monkeypatch, applications, describe):
        self.looks, self.now = 0, 100.0
        self.models = [ServedModel(name=name) for name in ("a", "b")]
        handle = SimpleNamespace(**dict.fromkeys(("describe", "images"), SimpleNamespace(remote=describe)))
        stand_in = SimpleNamespace(status=self._status, get_app_handle=lambda name: handle)
        self._applications = applications
        monkeypatch.setattr(replica, "serve", stand_in)
        monkeypatch.setattr(replica, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(replica, "_ANSWER_TIMEOUT_S", 0.02)
        monkeypatch.setattr(replica, "log_as_serve", lambda: None)
        self.replica = DirectoryReplica(self.models, None, ())

    def _status(self):
        self.looks += 1
        return SimpleNamespace(applications=self._applications)

    def listing(self):
        return asyncio.run(self.replica.listing())


async def described():
    return {"name": "told", "state": "ready"}


@pytest.mark.parametrize(
    ("status", "running", "state"),
    [
        (ApplicationStatus.RUNNING, 0, "asleep"),
        (ApplicationStatus.DEPLOYING, 0, "starting"),
        (ApplicationStatus.NOT_STARTED, 0, "starting"),
        (ApplicationStatus.DELETING, 0, "stopping"),
        (ApplicationStatus.DEPLOY_FAILED, 0, "failed"),
        (ApplicationStatus.UNHEALTHY, 0, "failed"),
        (ApplicationStatus.RUNNING, 2, "ready"),
    ],
)
def test_the_root_tells_the_state_of_each_model(monkeypatch, status, running, state):
    root = Root(monkeypatch, {"model-a": application(status, running)}, described)
    first, second = root.listing()
    assert first["state"] == state
    assert first["name"] == ("told" if running else "a")
    assert second == {"name": "b", "address": "/v1/models/b", "state": "failed"}


def test_a_replica_that_does_not_answer_hides_no_other(monkeypatch):
    answers = [asyncio.sleep(10), described()]
    running = application(ApplicationStatus.RUNNING, 1)
    root = Root(monkeypatch, {"model-a": running, "model-b": running}, lambda: answers.pop(0))
    assert [each["state"] for each in root.listing()] == ["busy", "ready"]


def test_a_replica_that_dies_meanwhile_hides_no_other(monkeypatch):
    async def dies():
        raise RuntimeError("gone")

    answers = [dies(), described()]
    running = application(ApplicationStatus.RUNNING, 1)
    root = Root(monkeypatch, {"model-a": running, "model-b": running}, lambda: answers.pop(0))
    first, second = root.listing()
    assert first == {"name": "a", "address": "/v1/models/a", "state": "busy"}
    assert second["state"] == "ready"


def test_of_a_shared_replica_one_model_is_asked_for_by_its_route(monkeypatch):
    async def answer(*asked):
        return {"state": asked}

    root = Root(monkeypatch, {"shared": application(ApplicationStatus.RUNNING, 1)}, answer)
    root.models[1:] = [ServedModel(name="b", route="c", shared=True)]
    assert root.listing()[1] == {"state": ("c",)}
    waits = Headers({"Kinfolk-Timeout": "2.5"})
    assert asyncio.run(root.replica._images("c", {"prompt": "1"}, waits)) == {"state": ({"prompt": "1"}, 2.5, "c")}


def images_through(monkeypatch, answer, **limits):
    """What the root answers to OpenAI's images API where a replica's answer is ``answer``."""
    root = Root(monkeypatch, {}, described)
    root.models[0] = ServedModel(name="a", limits=Limits(**limits))
    handle = SimpleNamespace(images=SimpleNamespace(remote=lambda values, timeout_s: answer))
    monkeypatch.setattr(replica.serve, "get_app_handle", {"model-a": handle}.get)

    async def ask():
        transport = httpx.ASGITransport(root.replica.__serve_build_asgi_app__(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/images/generations", json={"model": "a", "prompt": ""})

    return asyncio.run(ask())


def server_error(message):
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


UNAVAILABLE = DeploymentUnavailableError(DeploymentID("SamplingReplica", "model-a"))


@pytest.mark.parametrize("error", [BackPressureError(1, 1), RayActorError(), UNAVAILABLE])
def test_a_replica_that_cannot_take_a_picture_now_is_a_503_of_openais_form(monkeypatch, error):
    async def refuse():
        raise error

    answer = images_through(monkeypatch, refuse())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json() == server_error("a cannot take this now: try again in 1 s.")


def test_pictures_that_take_longer_than_the_model_may_are_a_504_of_openais_form(monkeypatch):
    begun = time.monotonic()
    answer = images_through(monkeypatch, asyncio.sleep(10), request_timeout_s=0.1)
    assert 0.12 <= time.monotonic() - begun < 5  # with the time in which a replica may still say so itself
    assert answer.status_code == 504
    assert "Retry-After" not in answer.headers
    assert answer.json() == server_error("Not done in time: ask for less, or later.")


def test_pictures_within_the_models_time_are_answered_as_the_replica_does(monkeypatch):
    told = asyncio.sleep(0.1, (418, {"data": []}, {"Retry-After": "9"}))
    answer = images_through(monkeypatch, told, request_timeout_s=5)
    assert (answer.status_code, answer.json(), answer.headers["Retry-After"]) == (418, {"data": []}, "9")


def test_a_listing_is_answered_again_for_a_second(monkeypatch):
    root = Root(monkeypatch, {}, described)

    async def twice():
        return await asyncio.gather(root.replica.listing(), root.replica.listing())

    asyncio.run(twice())
    assert root.looks == 1
    root.now += 0.9
    root.listing()
    assert root.looks == 1
    root.now += 0.2
    root.listing()
    assert root.looks == 2
