import asyncio
import logging
import threading

import pytest

from kinfolk.errors import IntegrityError, KinfolkError, RegistryDownError, RegistryError
from kinfolk.serving import follower as module
from kinfolk.serving.config import Rollout, ServedModel
from kinfolk.serving.follower import Follower
from kinfolk.serving.host import ModelHost
from kinfolk.serving.versions import Registry, Release


class Alias:
    """Where an alias points, what comes of looking it up and of loading, and what was noted."""

    def __init__(self, monkeypatch, make_walk, tmp_path):
        self.version, self.fault, self.faults = "3", None, {}
        self.loading = threading.Event()
        self.loading.set()
        self.loaded, self.noted, self.make_walk, self.folder = [], [], make_walk, tmp_path
        self.damaged = {}
        monkeypatch.setattr(module, "wanted", self.wanted)
        monkeypatch.setattr(module, "obtain", self.obtain)
        monkeypatch.setattr(module, "load", self.load)
        monkeypatch.setattr(module, "tell", lambda served, registry, version, why: self.noted.append((version, why)))

    def wanted(self, served, registry):
        if self.fault:
            raise self.fault
        return self.version

    def obtain(self, served, registry, version):
        if version in self.damaged:
            raise self.damaged[version]
        return Release(version, self.folder)

    def load(self, served, release):
        self.loaded.append(release.version)
        self.loading.wait(10)
        if release.version in self.faults:
            raise self.faults[release.version]
        return self.make_walk()


@pytest.fixture
def alias(monkeypatch, make_walk, tmp_path):
    return Alias(monkeypatch, make_walk, tmp_path)


@pytest.fixture
def following(make_walk):
    """Run a scenario beside a follower that looks every few milliseconds."""

    def run(scenario, registry=None, **rollout):
        async def everything():
            served = ServedModel(name="walk", alias_poll_s=0.005, rollout=Rollout(**{"trial_s": 0.02, **rollout}))
            host = ModelHost(served, make_walk(), "3")
            task = asyncio.create_task(Follower(host, registry).follow())
            await scenario(host)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await host.close()
            return host

        return asyncio.run(everything())

    return run


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_an_alias_that_moves_is_followed_forth_and_back(alias, following):
    async def scenario(host):
        for version in ("4", "3", "7"):
            alias.version = version
            await until(lambda version=version: host.current.version == version)

    assert following(scenario).stale is None
    assert alias.loaded == ["4", "3", "7"]


def test_a_version_that_cannot_be_loaded_is_noted_once_and_not_tried_again(alias, following, caplog):
    alias.faults["4"] = KinfolkError("its files were altered")

    async def scenario(host):
        alias.version = "4"
        await until(lambda: alias.noted)
        await asyncio.sleep(0.05)
        assert host.current.version == "3"
        assert "its files were altered" in host.stale
        alias.version = "5"
        await until(lambda: host.current.version == "5")

    with caplog.at_level(logging.ERROR):
        assert following(scenario).stale is None
    assert alias.loaded == ["4", "5"]
    assert alias.noted == [("4", "its files were altered")]
    assert sum("its files were altered" in record.message for record in caplog.records) == 1


def test_a_version_whose_files_were_altered_is_noted_and_one_out_of_reach_is_had_later(alias, following):
    async def scenario(host):
        alias.damaged["4"] = IntegrityError("/cache/of/kinfolk/walk/4/model.safetensors was altered")
        alias.version = "4"
        await until(lambda: alias.noted)
        alias.damaged["5"] = RegistryError("the store does not answer")
        alias.version = "5"
        await until(lambda: host.stale and "does not answer" in host.stale)
        assert host.current.version == "3"
        del alias.damaged["5"]
        await until(lambda: host.current.version == "5")

    assert following(scenario, Registry("unused", "/cache/of/kinfolk")).stale is None
    assert alias.noted == [("4", "walk/4/model.safetensors was altered")]
    assert alias.loaded == ["5"]


def test_a_version_that_fails_on_trial_is_noted_with_its_reason(alias, following):
    async def scenario(host):
        alias.version = "4"
        await until(lambda: host.trial is not None)
        host.blame(host.trial.version, ValueError("values that are not finite"))
        await until(lambda: alias.noted)

    host = following(scenario, trial_s=60)
    assert host.current.version == "3"
    assert alias.noted[0][0] == "4"
    assert "not finite" in alias.noted[0][1]


def test_an_alias_that_moves_on_ends_the_trial(alias, following):
    async def scenario(host):
        alias.version = "4"
        await until(lambda: host.trial is not None)
        alias.version = "3"
        await until(lambda: host.trial is None)
        assert host.current.version == "3"

    following(scenario, trial_s=60)
    assert not alias.noted


def test_a_version_that_is_no_longer_wanted_once_it_is_loaded_is_not_tried(alias, following):
    async def scenario(host):
        alias.loading.clear()
        alias.version = "4"
        await until(lambda: alias.loaded)
        alias.version = "3"
        await asyncio.sleep(0.05)
        alias.loading.set()
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert host.trial is None
        assert host.current.version == "3"

    following(scenario, trial_s=60)
    assert not alias.noted


def test_an_alias_that_comes_back_to_a_version_has_it_tried_again(alias, following):
    async def scenario(host):
        for version in ("4", "3"):  # back before the trial is over
            alias.version = version
            await until(lambda version=version: (host.trial is not None) == (version == "4"))
        alias.faults["5"] = KinfolkError("there was no memory")
        alias.version = "5"
        await until(lambda: alias.noted)
        alias.version = "3"
        await until(lambda: host.stale is None)
        del alias.faults["5"]
        for version in ("5", "4"):
            alias.version = version
            await until(lambda version=version: host.trial is not None and host.trial.version.version == version)

    following(scenario, trial_s=60)
    assert alias.noted == [("5", "there was no memory")]


def test_where_the_registry_is_stays_in_the_log(alias, following, caplog):
    async def scenario(host):
        alias.fault = RegistryDownError("MLflow is out of reach at sqlite:////a/folder/mlflow.db")
        await until(lambda: host.stale)
        assert host.stale.endswith("cannot be had: the registry does not answer as it should; the log has the cause.")
        alias.fault = RegistryDownError("MLflow has no disk left")
        await until(lambda: "no disk left" in caplog.text)

    with caplog.at_level(logging.ERROR):
        following(scenario)
    assert "/a/folder/mlflow.db" in caplog.text


def test_a_registry_out_of_reach_leaves_the_version_and_is_said(alias, following, caplog):
    async def scenario(host):
        alias.fault = RegistryError("the registry does not answer")
        await until(lambda: host.stale)
        assert "does not answer" in host.stale
        assert host.ready
        await asyncio.sleep(0.05)
        alias.fault = None
        await until(lambda: host.stale is None)

    following(scenario)
    assert not alias.loaded
    assert sum("does not answer" in record.message for record in caplog.records) == 1


def test_a_look_that_is_asked_for_waits_for_no_turn(alias, make_walk):
    async def scenario():
        served = ServedModel(name="walk", alias_poll_s=1000, rollout=Rollout(trial_s=0))
        host = ModelHost(served, make_walk(), "3")
        follower = Follower(host, None)
        task = asyncio.create_task(follower.follow())
        alias.version = "4"
        await asyncio.gather(*(follower.look() for _ in range(5)))
        await until(lambda: host.current.version == "4")
        task.cancel()
        await host.close()

    asyncio.run(scenario())
    assert alias.loaded == ["4"]
