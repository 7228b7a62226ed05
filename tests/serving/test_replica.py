"""A replica as Serve holds it, without Serve: it follows what its bundle folder or alias says."""

import asyncio
import threading
from types import SimpleNamespace

import httpx
import pytest
import torch

from kinfolk.bundle import save_bundle
from kinfolk.contract import DataSpec, Model
from kinfolk.errors import IntegrityError
from kinfolk.rng import seeded_initialisation
from kinfolk.serving.access import Access
from kinfolk.serving.config import ServedModel, Shared
from kinfolk.serving.replica import DirectoryReplica, SamplingReplica, SharedReplica, _Ear
from kinfolk.serving.versions import Registry

SPEC = DataSpec(kind="image", shape=(1, 4, 4), levels=256)


@pytest.fixture
def save(toy, tmp_path):
    """Write the toy family's model of a seed as the bundle that is served."""

    def write(seed):
        with seeded_initialisation(seed):
            model = Model(toy, toy.config(), SPEC, toy.build(toy.config(), SPEC, {}))
        save_bundle(model, tmp_path / "bundle")
        return tmp_path / "bundle"

    return write


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _process(monkeypatch):
    """What a replica sets in its process is as it was after each test."""
    monkeypatch.setattr("kinfolk.serving.replica.log_as_serve", lambda: None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_damaged_version_leaves_the_old_one_in_service_and_a_sound_one_follows(save):
    bundle = save(0)

    async def scenario():
        replica = SamplingReplica(
            ServedModel(name="toy", bundle=bundle, alias_poll_s=0.01, num_cpus=2, rollout={"trial_s": 0}), None, ()
        )
        assert torch.get_num_threads() == 2
        app = replica.__serve_build_asgi_app__()
        async with app.router.lifespan_context(app):
            first = (await replica.describe())["version"]
            await replica._host.look()  # as an admin may ask
            manifest = bundle / "manifest.json"
            manifest.write_text(manifest.read_text().replace('": "', '": "0', 1))
            await until(lambda: replica._host.stale)
            stale = await replica.describe()
            await replica.check_health()
            save(2)
            await until(lambda: not replica._host.stale)
            fresh = await replica.describe()
        with pytest.raises(RuntimeError, match="stopped"):
            await replica.check_health()
        await until(lambda: len(asyncio.all_tasks()) == 1)  # nobody follows the alias any more
        return first, stale, fresh

    first, stale, fresh = asyncio.run(scenario())
    assert stale["stale"]
    assert stale["version"] == first
    assert not fresh["stale"]
    assert fresh["version"] != first


class Handle:
    """A replica as its handle in Serve is called."""

    def __init__(self, replica):
        self._replica = replica

    def __getattr__(self, method):
        return SimpleNamespace(remote=getattr(self._replica, method))


def test_an_admin_makes_every_replica_of_the_model_look(save, monkeypatch):
    admin = Access(name="keeps", token="secret", role="admin")
    served = ServedModel(name="toy", bundle=save(0), alias_poll_s=600, rollout={"trial_s": 0})

    async def look(app):
        headers = {"Authorization": "Bearer secret"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.post("/-/look", headers=headers)).status_code

    async def scenario():
        async def away(*_):
            raise RuntimeError("the root is being replaced")

        registry = Registry("unused", "unused")
        root = DirectoryReplica([served], registry, ())
        monkeypatch.setattr("ray.serve.get_app_handle", {"directory": Handle(root)}.get)
        first, second = replicas = [SamplingReplica(served, registry, (admin,)) for _ in range(2)]
        apps = [each.__serve_build_asgi_app__() for each in replicas]
        async with apps[0].router.lifespan_context(apps[0]), apps[1].router.lifespan_context(apps[1]):
            before = second._host.current.version
            save(1)
            assert await look(apps[0]) == 200
            await until(lambda: before not in [each._host.current.version for each in replicas])
            root.move = root.moves = away
            save(2)
            now = first._host.current.version
            assert await look(apps[0]) == 200
            await until(lambda: first._host.current.version != now)
            assert second._host.current.version == now

    asyncio.run(scenario())


def test_while_serves_controller_is_away_a_replica_goes_on(save, monkeypatch):
    back = threading.Event()

    asked = []

    def get_app_handle(name):
        asked.append(name)
        back.wait(10)
        raise RuntimeError("there is no controller")

    async def scenario():
        monkeypatch.setattr("ray.serve.get_app_handle", get_app_handle)
        monkeypatch.setattr("kinfolk.serving.replica._ANSWER_TIMEOUT_S", 0.02)
        ear = _Ear("toy", Registry("unused", "unused"))
        for _ in range(3):  # each is given up
            await asyncio.wait_for(ear.wait(0.0), 5)
        before = len(asked)
        back.set()
        await until(lambda: ear._handles._asked["directory"].done())
        await ear.wait(0.0)
        return before, len(asked)

    assert asyncio.run(scenario()) == (1, 2)


def test_a_shared_replica_answers_for_each_model_and_is_replaced_when_one_has_died(save):
    models = [ServedModel(name=name, bundle=save(0), shared=True) for name in ("a", "b")]

    async def scenario():
        replica = SharedReplica(Shared(memory_mb=0.01, threads=2), models, None, ())
        assert torch.get_num_threads() == 2
        app = replica.__serve_build_asgi_app__()
        async with app.router.lifespan_context(app):
            first = await replica.describe("a"), await replica.describe("b")
            assert (await replica.images({"prompt": "a cat"}, 60.0, "a"))[0] == 400
            await replica.check_health()
            await replica._pool.hosts["b"].current.batcher.close()
            with pytest.raises(RuntimeError, match="of b has stopped"):
                await replica.check_health()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        return first

    a, b = asyncio.run(scenario())
    assert (a["name"], b["name"], b["state"]) == ("a", "b", "ready")
    assert a["tasks"]["sample"]["address"] == "/v1/models/a/sample"


def test_a_replica_does_not_start_on_a_damaged_bundle(save):
    bundle = save(0)
    (bundle / "spec.json").write_text("{}")

    async def scenario():
        SamplingReplica(ServedModel(name="toy", bundle=bundle), None, ())

    with pytest.raises(IntegrityError, match=r"spec\.json"):
        asyncio.run(scenario())


def test_the_replica_and_the_root_let_pages_of_named_sites_read(save):
    site = "https://site.example"

    async def asked(app, path):
        headers = {"Origin": site, "Access-Control-Request-Method": "GET"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.options(path, headers=headers)).headers["Access-Control-Allow-Origin"]

    async def scenario():
        replica = SamplingReplica(ServedModel(name="toy", bundle=save(0)), None, (), (site,))
        root = DirectoryReplica([], None, (), (site,))
        told = [await asked(each.__serve_build_asgi_app__(), "/") for each in (replica, root)]
        await replica._host.close()
        return told

    assert asyncio.run(scenario()) == [site] * 2
