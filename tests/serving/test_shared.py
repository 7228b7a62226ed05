"""Models that take turns in the memory of one replica, without Serve."""

import asyncio
import base64
import gc
import io
import logging
import threading
import time
import weakref
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest
import torch

from kinfolk.bundle import save_bundle
from kinfolk.contract import Model
from kinfolk.errors import ConfigError, KinfolkError, RegistryError
from kinfolk.sampling import make_request, sample
from kinfolk.serving import follower, shared
from kinfolk.serving.access import Access, holders
from kinfolk.serving.batcher import OverloadError
from kinfolk.serving.config import Limits, Rollout, ServedModel, Shared
from kinfolk.serving.deadlines import Deadline
from kinfolk.serving.directory import images_of
from kinfolk.serving.shared import SharedModels, bytes_in, bytes_of, check_fits
from kinfolk.serving.shared_app import shared_app
from kinfolk.serving.versions import Registry, Release, told_afar
from kinfolk.training.state import build

MB = 10**6
NPY = {"Accept": "application/x-npy"}


class Store:
    """What is registered: the version of each model and its size, and what comes of looking it up and loading it."""

    def __init__(self, monkeypatch, make_walk, folder):
        self.version, self.mb, self.fault, self.faults = {}, {}, None, {}
        self.grown = {}  # what turns out to be larger in memory than in its file
        self.loaded, self.noted, self.models, self.gate = [], [], {}, threading.Event()
        self.tried = {}  # whether what was loaded last of that name was loaded before
        self.make_walk, self.folder = make_walk, folder
        self.gate.set()
        for name in ("wanted", "obtain", "load"):
            monkeypatch.setattr(shared, name, getattr(self, name))
            monkeypatch.setattr(follower, name, getattr(self, name))
        monkeypatch.setattr(follower, "tell", lambda served, registry, version, why: self.noted.append((version, why)))

    def wanted(self, served, registry):
        if self.fault:
            raise self.fault
        return self.version.get(served.name, "1")

    def obtain(self, served, registry, version):
        folder = self.folder / f"{served.name}-{version}"
        folder.mkdir(exist_ok=True)
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(self._size(folder.name))
        return Release(version, folder)

    def load(self, served, release, tried=False):
        name = release.folder.name
        self.gate.wait(10)
        self.loaded.append(name)
        self.tried[name] = tried
        if name in self.faults:
            raise self.faults[name]
        model = self.models[name] = self.make_walk()
        ballast = torch.zeros(int(self.grown.get(name, 0) * MB) or self._size(name) - 4, dtype=torch.uint8)
        model.module.register_buffer("ballast", ballast)
        return model

    def _size(self, name):
        return int(self.mb.get(name, 1) * MB)


@pytest.fixture
def store(monkeypatch, make_walk, tmp_path):
    return Store(monkeypatch, make_walk, tmp_path)


@asynccontextmanager
async def pool_of(names, memory_mb=2.5, metered=lambda _: lambda: asyncio.sleep(0), registry=None, **settings):
    """A pool in which nothing has been loaded since the start but the last models that fit."""
    rollout = Rollout(trial_s=0.02, max_failures=0)
    given = {"alias_poll_s": 60.0, "rollout": rollout, **settings}
    models = [ServedModel(name=name, shared=True, **given) for name in names]
    pool = SharedModels(Shared(memory_mb=memory_mb), models, registry, metered=metered)
    async with pool.life():
        yield pool


def held(pool):
    return "".join(name for name, host in pool.hosts.items() if host.loaded)


async def ask(pool, names):
    for name in names:
        async with pool.lease(name):
            pass


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_at_the_start_each_model_is_loaded_once_and_the_last_that_fit_stay(store):
    async def scenario():
        async with pool_of("abcd") as pool:
            assert held(pool) == "cd"
            assert set(pool.hosts["a"].remembered["tasks"]) >= {"sample", "inpaint"}

    asyncio.run(scenario())
    assert store.loaded == ["a-1", "b-1", "c-1", "d-1"]


def test_the_least_recently_used_makes_room_and_is_loaded_again_when_asked_for(store):
    async def scenario():
        async with pool_of("abcd", 3.5) as pool:
            await ask(pool, "bcda")  # at the start a had made room for d, and now b does for a
            assert held(pool) == "acd"
            await ask(pool, "cb")  # d is the one that was not asked for since
            assert held(pool) == "abc"

    asyncio.run(scenario())
    assert store.loaded == ["a-1", "b-1", "c-1", "d-1", "a-1", "b-1"]


def test_a_version_is_tried_when_it_is_loaded_first_and_not_again(store):
    async def scenario():
        async with pool_of("abc") as pool:
            before = dict(store.tried)
            store.version["b"] = "2"
            await ask(pool, "acab")
            return before, store.tried

    before, after = asyncio.run(scenario())
    assert before == {"a-1": False, "b-1": False, "c-1": False}
    assert after == {"a-1": True, "b-1": False, "b-2": False, "c-1": False}


def test_as_many_are_unloaded_as_a_large_one_needs(store):
    store.mb = {"large-1": 2}

    async def scenario():
        async with pool_of(["large", "a", "b", "c"], 3.0) as pool:
            await ask(pool, ["b", "c", "a", "large"])
            assert held(pool) == "largea"

    asyncio.run(scenario())


def test_a_model_with_a_request_under_way_is_never_unloaded(store):
    async def scenario():
        async with pool_of("abc") as pool:
            async with pool.lease("b") as host:  # the least recently used
                await ask(pool, "ca")
                assert host.loaded
                assert held(pool) == "ab"
                async with pool.lease("a"):
                    with pytest.raises(OverloadError, match="no room for c beside the models at work") as caught:
                        await ask(pool, "c")
                    assert caught.value.retry_after_s == 1
                    assert held(pool) == "ab"
            await ask(pool, "c")  # b was held for longer than a
            assert held(pool) == "bc"

    asyncio.run(scenario())


def test_where_room_cannot_be_made_nothing_is_unloaded(store):
    store.mb = {"large-1": 2}

    async def scenario():
        async with pool_of(["large", "a", "b"]) as pool, pool.lease("a"):
            with pytest.raises(OverloadError):
                await ask(pool, ["large"])
            assert held(pool) == "ab"

    asyncio.run(scenario())


def test_those_who_ask_together_wait_for_one_loading_which_outlasts_one_who_leaves(store):
    async def scenario():
        async with pool_of("abc") as pool:
            store.loaded.clear()
            store.gate.clear()
            asking = [asyncio.create_task(ask(pool, "a")) for _ in range(3)]
            await asyncio.sleep(0.01)
            asking[0].cancel()
            store.gate.set()
            await asyncio.gather(*asking, return_exceptions=True)
            assert held(pool) == "ac"
            assert asking[0].cancelled()

    asyncio.run(scenario())
    assert store.loaded == ["a-1"]


def test_those_who_wait_for_a_loading_at_the_end_are_told_to_come_back(store):
    async def scenario():
        async with pool_of("abc") as pool:
            store.gate.clear()
            asking = [asyncio.create_task(ask(pool, "a")) for _ in range(2)]
            await until(lambda: pool._places["a"].loading is not None and not pool._places["a"].loading.done())
            await asyncio.sleep(0.02)
        store.gate.set()
        return await asyncio.gather(*asking, return_exceptions=True)

    for error in asyncio.run(scenario()):
        assert isinstance(error, OverloadError)
        assert error.retry_after_s == 1
        assert "a is being stopped" in str(error)


def test_one_who_waits_too_long_for_a_loading_is_told(store):
    async def scenario():
        async with pool_of("abc", limits=Limits(request_timeout_s=0.02)) as pool:
            store.gate.clear()
            with pytest.raises(TimeoutError):
                await ask(pool, "a")
            store.gate.set()
            await until(lambda: held(pool) == "ac")

    asyncio.run(scenario())


def test_what_never_fits_is_refused_with_what_it_takes():
    check_fits(Shared(memory_mb=1.5), "a", int(1.5 * MB))
    with pytest.raises(ConfigError, match=r"a takes 1\.6 MB, .* may take 1\.5 MB\. Raise memory_mb"):
        check_fits(Shared(memory_mb=1.5), "a", int(1.6 * MB))


def test_a_model_that_turns_out_larger_has_more_room_made_or_is_refused(store):
    store.grown = {"a-1": 2.2, "b-1": 2.6}

    async def scenario():
        async with pool_of("abcd") as pool:
            assert "b takes 2.6 MB" in pool.hosts["b"].stale
            await ask(pool, "a")
            assert held(pool) == "a"

    asyncio.run(scenario())


def test_a_model_that_cannot_be_loaded_hides_no_other_and_is_tried_when_asked_for(store, caplog):
    store.faults["a-1"] = KinfolkError("its files were altered")

    async def scenario():
        async with pool_of("ab") as pool:
            assert held(pool) == "b"
            with pytest.raises(OverloadError, match="a cannot be loaded now: try again in 10 s"):
                await ask(pool, "a")
            assert "its files were altered" in pool.hosts["a"].stale
            del store.faults["a-1"]
            await ask(pool, "a")
            assert held(pool) == "ab"
            assert pool.hosts["a"].stale is None

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "its files were altered" in caplog.text


def test_the_size_of_a_model_is_that_of_its_weights_and_its_parents(make_walk):
    walk, child = make_walk(), make_walk()
    walk.module.register_buffer("mean", torch.zeros(5, dtype=torch.float64))
    child = Model(child.family, child.config, child.spec, child.module, {"teacher": walk})
    assert (bytes_of(walk), bytes_of(child)) == (44, 48)


def test_the_size_of_a_bundle_is_that_of_the_model_before_it_is_loaded(toy, digits, tmp_path):
    model = build(toy, toy.config(), digits.spec, 0)
    child = Model(model.family, model.config, model.spec, model.module, {"teacher": model})
    save_bundle(child, tmp_path / "bundle", {"much": "said" * 1000})
    assert bytes_in(tmp_path / "bundle") == bytes_of(child) == 2 * bytes_of(model)
    (tmp_path / "bundle" / "model.safetensors").write_bytes(b"\xff" * 9)
    assert bytes_in(tmp_path / "bundle") == bytes_of(model)


def test_what_was_unloaded_is_freed_at_once(store):
    async def scenario():
        async with pool_of("abc") as pool:
            await ask(pool, "bc")
            seen = weakref.ref(store.models.pop("b-1").module)
            gc.collect()
            gc.disable()
            try:
                await ask(pool, "a")
                assert held(pool) == "ac"
                await until(lambda: seen() is None)
            finally:
                gc.enable()

    asyncio.run(scenario())


def test_the_alias_is_looked_up_again_when_a_model_is_loaded_again(store):
    async def scenario():
        async with pool_of("abc") as pool:
            store.version["a"] = "2"
            await ask(pool, "a")
            return pool.hosts["a"].current.version

    assert asyncio.run(scenario()) == "2"


@pytest.mark.parametrize("fault", [RegistryError("no answer"), None])
def test_where_the_wanted_version_cannot_be_had_the_one_before_is_loaded(store, fault):
    store.faults = {"a-2": KinfolkError("altered")}

    async def scenario():
        async with pool_of("abc") as pool:
            store.version["a"], store.fault = "2", fault
            await ask(pool, "a")
            return pool.hosts["a"].current.version, pool.hosts["a"].stale

    found, stale = asyncio.run(scenario())
    assert found == "1"
    assert ("no answer" if fault else "altered") in stale


def test_why_the_wanted_version_is_not_loaded_is_said_without_folders_of_this_machine(store):
    store.faults = {"a-2": KinfolkError(f"{store.folder}/a-2/model.safetensors was altered")}

    async def scenario():
        async with pool_of("abc", registry=Registry("uri", str(store.folder))) as pool:
            store.version["a"] = "2"
            await ask(pool, "a")
            return pool.hosts["a"].stale

    assert asyncio.run(scenario()) == "a could not be loaded as it is wanted now: a-2/model.safetensors was altered"


def test_why_a_bundle_is_not_loaded_is_said_without_its_folder(tmp_path):
    served = ServedModel(name="a", bundle=tmp_path / "shelf" / "a")
    assert told_afar(ConfigError(f"{served.bundle} is no bundle folder"), served, None) == "a is no bundle folder"


def test_a_loaded_model_follows_its_alias_and_others_make_room_for_the_trial(store):
    async def scenario():
        async with pool_of("ab", alias_poll_s=0.005) as pool:
            await ask(pool, "ba")
            store.version["a"] = "2"
            await until(lambda: pool.hosts["a"].current.version == "2")
            assert held(pool) == "a"
            await ask(pool, "b")
            assert held(pool) == "ab"

    asyncio.run(scenario())


def test_a_version_that_finishes_what_it_began_takes_its_room_until_it_is_done(store):
    async def scenario():
        async with pool_of("ab", alias_poll_s=0.005) as pool:
            async with pool.lease("a") as host:
                old = store.models["a-1"]
                old.module.watch.gate.clear()
                begun = asyncio.create_task(host.current.batcher.run(make_request(old, 1)))
                await until(old.module.watch.entered.is_set)
                store.version["a"] = "2"
                await until(lambda: host.current.version == "2")
                with pytest.raises(OverloadError, match="no room for b"):
                    await ask(pool, "b")
                old.module.watch.gate.set()
                await begun
            await ask(pool, "b")
            assert held(pool) == "ab"

    asyncio.run(scenario())


def test_a_version_beyond_the_memory_is_refused_at_the_roll_out_and_not_loaded_later(store):
    store.mb["a-2"] = 3

    async def scenario():
        async with pool_of("abc", alias_poll_s=0.005) as pool:
            await ask(pool, "a")
            store.version["a"] = "2"
            await until(lambda: store.noted)
            assert pool.hosts["a"].current.version == "1"
            await ask(pool, "bc")
            assert held(pool) == "bc"
            store.mb["a-2"] = 1  # even so: it was refused
            await ask(pool, "a")
            await asyncio.sleep(0.05)
            assert pool.hosts["a"].current.version == "1"
            assert "a takes 3 MB" in pool.hosts["a"].stale

    asyncio.run(scenario())
    assert [version for version, _ in store.noted] == ["2"]
    assert "a takes 3 MB" in store.noted[0][1]
    assert "a-2" not in store.loaded


def test_a_version_without_room_for_its_trial_is_not_refused(store):
    """It is tried again, and there at the latest when the model is loaded anew."""

    async def scenario():
        async with pool_of("ab", 1.5, alias_poll_s=0.005) as pool:
            await ask(pool, "a")
            store.version["a"] = "2"
            await until(lambda: pool.hosts["a"].stale)
            assert "no room for a" in pool.hosts["a"].stale
            await ask(pool, "ba")
            assert pool.hosts["a"].current.version == "2"

    asyncio.run(scenario())
    assert not store.noted


def test_a_model_that_is_unloaded_on_trial_ends_both_versions(store):
    async def scenario():
        async with pool_of("abc", 3.2, alias_poll_s=0.005, rollout=Rollout(trial_s=60)) as pool:
            await ask(pool, "c")
            store.version["c"] = "2"
            await until(lambda: pool.hosts["c"].trial)
            batchers = [version.batcher for version in pool.hosts["c"].versions]
            await ask(pool, "ab")
            assert held(pool) == "ab"
            assert [batcher.alive for batcher in batchers] == [False, False]
            await ask(pool, "c")
            assert [version.version for version in pool.hosts["c"].versions] == ["2"]

    before = set(threading.enumerate())
    asyncio.run(scenario())
    assert not set(threading.enumerate()) - before


def test_a_trial_that_ends_as_its_model_is_unloaded_puts_nothing_in_service(store):
    async def scenario():
        async with pool_of("ab", 3.5, alias_poll_s=0.005, rollout=Rollout(trial_s=60)) as pool:
            host = pool.hosts["a"]
            store.version["a"] = "2"
            await until(lambda: host.trial)
            host.trial.over.set()
            await pool._unload(pool._places["a"])
            await asyncio.sleep(0.02)
            assert not host.loaded
            assert pool._places["a"].follower._rollout.cancelled()
            await ask(pool, "a")
            assert host.current.version == "2"

    asyncio.run(scenario())


def test_what_goes_on_for_a_model_goes_on_while_it_is_loaded(store):
    async def scenario():
        running = []

        def metered(host):
            async def run():
                running.append(host.served.name)
                try:
                    await asyncio.sleep(60)
                finally:
                    running.remove(host.served.name)

            return run

        async with pool_of("abc", metered=metered) as pool:
            for names in ("b", "c", "a", "b"):
                await ask(pool, names)
                await until(lambda: "".join(sorted(running)) == held(pool))
        await until(lambda: not running)

    asyncio.run(scenario())


async def list_of(pool):
    return [shared.describe(host) for host in pool.hosts.values()]


@asynccontextmanager
async def client_of(pool, token=None, others=(), origins=()):
    """Shared models over HTTP, mounted where Serve has them."""
    app = shared_app(pool, lambda: list_of(pool), (*holders(token), *others), origins)
    transport = httpx.ASGITransport(app, root_path="/v1/models", raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/v1/models") as client:
        yield client


@pytest.fixture
def over_http(store):
    """Run a scenario with a client, and the pool behind it, in which b and c of three models are loaded."""

    def run(scenario, token=None, others=(), origins=(), **settings):
        async def everything():
            async with pool_of("abc", **settings) as pool, client_of(pool, token, others, origins) as client:
                return await scenario(client, pool)

        return asyncio.run(everything())

    return run


def test_samples_of_a_model_that_was_unloaded_are_those_of_the_sampler(over_http, walk):
    async def scenario(client, pool):
        assert "a" not in held(pool)
        return await client.post("/a/sample", json={"n": 5, "seed": 7, "steps": 4}, headers=NPY)

    answer = over_http(scenario)
    assert answer.status_code == 200
    assert answer.headers["Kinfolk-Model"] == "a"
    assert np.array_equal(
        np.load(io.BytesIO(answer.content)), walk.spec.to_uint8(sample(walk, 5, 7, None, {"steps": 4}))
    )


def test_who_sends_slowly_keeps_no_model_in_memory_meanwhile(over_http, walk):
    async def scenario(client, pool):
        begun, rest = asyncio.Event(), asyncio.Event()

        async def body():
            yield b'{"n": 5, "seed"'
            begun.set()
            await rest.wait()
            yield b': 7, "steps": 4}'

        headers = {**NPY, "Content-Type": "application/json"}
        slow = asyncio.create_task(client.post("/b/sample", content=body(), headers=headers))
        await begun.wait()
        await ask(pool, "ac")
        meanwhile = held(pool)
        rest.set()
        return meanwhile, (await slow).content

    meanwhile, content = over_http(scenario)
    assert meanwhile == "ac"
    assert np.array_equal(np.load(io.BytesIO(content)), walk.spec.to_uint8(sample(walk, 5, 7, None, {"steps": 4})))


@pytest.mark.parametrize(("limits", "status"), [({"max_body_bytes": 9}, 413), ({"body_timeout_s": 0.05}, 408)])
def test_a_body_that_is_too_large_or_too_slow_has_no_model_loaded(over_http, store, limits, status):
    async def body():
        yield b'{"n": 5, "seed"'
        await asyncio.sleep(0.2)
        yield b": 7}"

    async def scenario(client, pool):
        store.loaded.clear()
        answer = await client.post("/a/sample", content=body(), headers={"Content-Type": "application/json"})
        return answer.status_code

    assert over_http(scenario, limits=Limits(**limits)) == status
    assert not store.loaded


def test_a_body_is_waited_for_no_longer_than_its_caller_waits(over_http, store):
    async def body():
        yield b'{"n": 5, "seed"'
        await asyncio.Event().wait()

    async def scenario(client, pool):
        store.loaded.clear()
        headers = {"Content-Type": "application/json", "Kinfolk-Timeout": "0.05"}
        return (await client.post("/a/sample", content=body(), headers=headers)).status_code

    assert over_http(scenario, limits=Limits(body_timeout_s=1)) == 504  # and not 408, a second later
    assert not store.loaded


def test_what_an_unloaded_model_is_can_be_read_without_loading_it(over_http, store):
    async def scenario(client, pool):
        store.loaded.clear()
        told = [(await client.get(path)).json() for path in ("/a", "/b", "/a/", "/a/readyz", "/a/healthz")]
        assert not store.loaded
        return told

    a, b, again, ready, health = over_http(scenario)
    assert (a["state"], b["state"], ready["status"], health["status"]) == ("unloaded", "ready", "unloaded", "alive")
    assert a["address"] == "/v1/models/a"
    assert again == a
    assert a["tasks"]["sample"]["address"] == "/v1/models/a/sample"
    assert a["tasks"].keys() == b["tasks"].keys()


def test_the_schema_of_each_model_is_below_its_address(over_http):
    async def scenario(client, pool):
        return [(await client.get(f"/{name}/openapi.json")).json() for name in "ab"]

    for name, schema in zip("ab", over_http(scenario), strict=True):
        assert schema["info"]["title"] == f"Kinfolk: {name}"
        assert "/sample" in schema["paths"]


def test_the_list_and_what_is_unknown_are_answered_as_the_root_does(over_http):
    async def scenario(client, pool):
        listed = (await client.get("http://test/v1/models")).json()["models"]
        return listed, await client.post("/aa/sample"), await client.get("/aa/readyz")

    listed, *unknown = over_http(scenario)
    assert [(each["name"], each["state"]) for each in listed] == [("a", "unloaded"), ("b", "ready"), ("c", "ready")]
    for answer in unknown:
        assert answer.status_code == 404
        assert "Did you mean 'a'? Models: a, b, c." in answer.json()["error"]["message"]


def test_nobody_without_a_token_has_a_model_loaded(over_http, store):
    async def scenario(client, pool):
        store.loaded.clear()
        refused = [await client.post("/a/sample"), await client.get("/a/openapi.json"), await client.get("/a")]
        refused += [await client.request(method, "/a/healthz") for method in ("POST", "DELETE")]
        free = [await client.get("/a/readyz"), await client.get("/a/healthz")]
        assert not store.loaded
        allowed = await client.post("/a/sample", headers={"Authorization": "Bearer secret"})
        return [each.status_code for each in (*refused, *free, allowed)]

    assert over_http(scenario, token="secret") == [401] * 5 + [200] * 3


NOT_LOADED_FOR = [
    ("POST", "/a/healthz", 404),
    ("POST", "/a/readyz", 404),
    ("POST", "/a", 405),
    ("HEAD", "/a/readyz", 200),
    ("DELETE", "/a/healthz", 405),
    ("GET", "/a/favicon.ico", 405),
    ("GET", "/a/sample", 405),
    ("PUT", "/a/sample", 405),
    ("POST", "/a/favicon.ico", 404),
    ("POST", "/a/sample/more", 404),
    ("POST", "/a/openapi.json", 404),
]


ANY_TASK = {("POST", "/a/favicon.ico", 404), ("POST", "/a/openapi.json", 404)}  # what is not known may have them


@pytest.mark.parametrize(
    ("method", "path", "status", "remembered"),
    [(*each, True) for each in NOT_LOADED_FOR] + [(*each, False) for each in NOT_LOADED_FOR if each not in ANY_TASK],
)
def test_a_model_is_loaded_for_its_tasks_and_schema_alone(over_http, store, method, path, status, remembered):
    async def scenario(client, pool):
        if not remembered:  # as it is where it could not be loaded at the start
            pool.hosts["a"].remembered = {}
        store.loaded.clear()
        answer = await client.request(method, path)
        assert not store.loaded
        return answer

    assert over_http(scenario).status_code == status


def test_a_task_that_an_unloaded_model_lacks_is_answered_with_the_nearest(over_http):
    async def scenario(client, pool):
        return [(await client.post(f"/{name}/sampel")).json()["error"] for name in "ab"]

    unloaded, loaded = over_http(scenario)
    assert unloaded["field"] == "task"
    assert unloaded["message"] == loaded["message"].replace("b has", "a has")
    assert "Did you mean 'sample'?" in unloaded["message"]


def test_a_model_of_which_no_task_is_known_yet_is_loaded_for_any(over_http, store):
    async def scenario(client, pool):
        pool.hosts["a"].remembered = {}
        return (await client.post("/a/sample")).status_code

    assert over_http(scenario) == 200


def test_the_schema_of_an_unloaded_model_loads_it_for_its_head_too(over_http):
    async def scenario(client, pool):
        return (await client.head("/a/openapi.json")).status_code

    assert over_http(scenario) == 200


def test_an_admin_alone_may_have_a_replica_look_at_the_alias_of_a_model(over_http, store):
    async def scenario(client, pool):
        store.version["c"] = "2"
        keys = [{"Authorization": f"Bearer {key}"} for key in ("secret", "of-the-admin")]
        sampler, admin = [await client.post("/c/-/look", headers=key) for key in keys]
        await until(lambda: pool.hosts["c"].current.version == "2")
        return sampler.status_code, admin.status_code

    people = [Access(name="ann", token="of-the-admin", role="admin")]
    assert over_http(scenario, "secret", people, memory_mb=4) == (403, 200)


def test_forms_of_other_sites_are_refused_unless_the_serve_file_names_the_site(over_http):
    async def scenario(client, pool):
        forms = [{"Origin": site, "Content-Type": "text/plain"} for site in ("https://a.org", "https://b.org")]
        return [(await client.post("/b/sample", headers=form)).status_code for form in forms]

    assert over_http(scenario, origins=["https://a.org"]) == [200, 403]


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_while_all_that_is_loaded_is_at_work_one_more_is_told_when_to_come_back(over_http, store, accept):
    async def scenario(client, pool):
        watches = [store.models[f"{name}-1"].module.watch for name in "bc"]
        for watch in watches:
            watch.gate.clear()
        asked = [asyncio.create_task(client.post(f"/{name}/sample", headers={"Accept": accept})) for name in "bc"]
        await until(lambda: all(watch.entered.is_set() for watch in watches))
        busy = await client.post("/a/sample")
        for watch in watches:
            watch.gate.set()
        done = await asyncio.gather(*asked)
        return busy, done, await client.post("/a/sample")

    busy, done, later = over_http(scenario)
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
    assert [each.status_code for each in (*done, later)] == [200, 200, 200]


def test_a_model_that_cannot_be_loaded_now_is_a_503_that_shows_nothing_of_the_cause(over_http, store):
    async def scenario(client, pool):
        store.fault, pool._places["a"].had = RegistryError("tracking.internal does not answer"), None
        return await client.post("/a/sample")

    answer = over_http(scenario)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert "internal" not in answer.text


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_one_who_does_not_wait_as_long_as_a_loading_takes_is_told_in_time(over_http, store, accept):
    async def scenario(client, pool):
        store.gate.clear()
        asyncio.get_running_loop().call_later(2, store.gate.set)
        began = time.monotonic()
        answer = await client.post("/a/sample", headers={"Accept": accept, "Kinfolk-Timeout": "0.1"})
        took_s = time.monotonic() - began
        store.gate.set()
        return answer.status_code, took_s

    status, took_s = over_http(scenario)
    assert status == 504
    assert took_s < 1


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_the_time_that_a_loading_takes_is_part_of_the_time_of_the_request(over_http, store, accept):
    load = store.load

    def load_slowly(served, release, tried):
        model = load(served, release, tried)
        time.sleep(0.6)
        model.module.watch.on_call = lambda: time.sleep(0.1)
        return model

    async def scenario(client, pool):
        shared.load = load_slowly  # put back with the store's
        began = time.monotonic()
        body = {"steps": 60, "seed": 1}
        answer = await client.post("/a/sample", json=body, headers={"Accept": accept, "Kinfolk-Timeout": "1"})
        return answer.text, time.monotonic() - began

    told, took_s = over_http(scenario)
    assert "Not done in time" in told
    assert took_s < 1.4


def test_a_time_that_nobody_can_wait_has_no_model_loaded(over_http, store):
    async def scenario(client, pool):
        store.loaded.clear()
        answer = await client.post("/a/sample", headers={"Kinfolk-Timeout": "61"})
        assert not store.loaded
        return answer

    answer = over_http(scenario)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Kinfolk-Timeout")


def test_a_request_of_the_images_api_has_one_time_for_the_loading_and_the_sampling(store):
    async def scenario():
        async with pool_of("abc", limits=Limits(request_timeout_s=60)) as pool:
            deadline = Deadline.after(0.3, 60)
            async with pool.lease("a", deadline.at):
                store.models["a-1"].module.watch.on_call = lambda: time.sleep(0.1)
            began = time.monotonic()
            status, _, _ = await images_of(pool.lease("a", deadline.at), {"prompt": "3"}, deadline)
            assert time.monotonic() - began < 0.8
            store.gate.clear()
            late, _, _ = await images_of(pool.lease("b", deadline.at), {"prompt": "3"}, deadline)
            store.gate.set()
            return status, late

    assert asyncio.run(scenario()) == (504, 504)


def test_the_images_api_loads_the_model_and_says_when_to_come_back(over_http, store):
    async def scenario(client, pool):
        deadline = Deadline.after(60, 60)
        drawn = await images_of(pool.lease("a"), {"prompt": "3", "seed": 1}, deadline)
        await ask(pool, "bca")  # it was let go
        async with pool.lease("a"), pool.lease("c"):
            return drawn, await images_of(pool.lease("b"), {"prompt": "3"}, deadline)

    (status, told, _), (busy, why, headers) = over_http(scenario)
    assert status == 200
    assert base64.b64decode(told["data"][0]["b64_json"]).startswith(b"\x89PNG")
    assert (busy, headers) == (503, {"Retry-After": "1"})
    assert "no room for b" in why["error"]["message"]
