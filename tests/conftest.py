import sys

import kinfolk_toy
import pytest
import torch
from kinfolk_walk import make_host, make_walk, serve, walk  # noqa: F401  fixtures of every test

from kinfolk.data.catalogue import prepare
from kinfolk.tracking.connection import connect, mlflow_environment


def pytest_itemcollected(item):
    """Tests on Ray share one cluster, so they run in one process, after all others."""
    if "ray_cluster" in item.fixturenames:
        item.add_marker(pytest.mark.on_ray)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)  # small networks on two threads crawl when the machine is busy


@pytest.fixture(scope="session", autouse=True)
def _mlflow():
    with pytest.MonkeyPatch.context() as patch:
        for key, value in mlflow_environment().items():
            patch.setenv(key, value)
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow store with its schema and nothing in it, to be copied: making one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The prepared digits data set."""
    return prepare("digits", tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """A folder that offers the toy family through an entry point, as an installed package does."""
    return kinfolk_toy.offer(tmp_path_factory.mktemp("site"))


@pytest.fixture
def toy(toy_folder, monkeypatch):
    """The toy family, installed at run time for one test."""
    monkeypatch.setattr(sys, "path", [str(toy_folder), *sys.path])
    return kinfolk_toy.FAMILY


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory, toy_folder):
    """One Ray cluster for all tests of a run; it ends with the run."""
    import ray

    from kinfolk.cluster import connect
    from kinfolk.serving.haproxy import haproxy_environment

    search = ":".join([str(toy_folder), str(next(p for p in sys.path if p.endswith("tests/support")))])
    environment = {**haproxy_environment(), "PYTHONPATH": search, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
    connect(None, tmp_path_factory.mktemp("state"), cpus=4, environment=environment)
    yield
    ray.shutdown()
