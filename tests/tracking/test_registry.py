import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinfolk.errors import ConfigError, IntegrityError, RegistryError
from kinfolk.tracking.aliases import set_alias
from kinfolk.tracking.connection import connect
from kinfolk.tracking.lineage import Lineage, Version
from kinfolk.tracking.registry import find, log_model_metrics, models, register


def test_lineage_survives_as_tags(lineage: Lineage) -> None:
    assert Lineage.from_tags(lineage.tags()) == lineage
    bare = Lineage(family="toy", recipe="toy", recipe_digest="1", data="ring", data_digest="2")
    assert Lineage.from_tags(bare.tags()) == bare


def test_a_version_carries_what_was_registered(uri: str, bundle: Path, run_id: str, lineage: Lineage) -> None:
    version = register(uri, bundle, "vae", run_id, lineage, {"fd_local": 0.1 + 0.2})
    assert find(uri, "vae/1") == version
    assert version.lineage == lineage
    assert version.metrics == {"fd_local": 0.1 + 0.2}  # to the last bit
    assert version.run_id == run_id
    logged = connect(uri).get_logged_model(version.model_id)
    assert logged.status == "READY"
    assert logged.params["model.centre"] == "0.5"
    assert logged.tags["data_digest"] == lineage.data_digest


def test_figures_added_later_reach_version_run_and_logged_model(
    uri: str, bundle: Path, run_id: str, lineage: Lineage
) -> None:
    version = register(uri, bundle, "vae", run_id, lineage, {"fd_local": 2.0})
    log_model_metrics(uri, version, {"coverage": 0.9}, alarms=("collapse",))
    log_model_metrics(uri, version, {"fd_local": 1.0})
    found = find(uri, "vae")
    assert found.metrics == {"fd_local": 1.0, "coverage": 0.9}
    assert found.alarms == ("collapse",)
    assert connect(uri).get_run(run_id).data.metrics == {"fd_local": 1.0, "coverage": 0.9}
    logged = {metric.key: metric.value for metric in connect(uri).get_logged_model(version.model_id).metrics}
    assert logged == {"fd_local": 1.0, "coverage": 0.9}


@pytest.fixture
def two(uri: str, bundle: Path, run_id: str, lineage: Lineage) -> str:
    register(uri, bundle, "vae", run_id, lineage)
    register(uri, bundle, "vae", run_id, lineage)
    return uri


def test_a_name_alone_is_its_champion_else_its_newest(two: str) -> None:
    assert find(two, "vae").number == 2
    set_alias(two, "vae", "challenger", 1)
    assert find(two, "vae").number == 2
    set_alias(two, "vae", "champion", 1)
    assert find(two, "vae").number == 1
    assert find(two, "vae@challenger").number == 1
    assert find(two, "vae/2").number == 2


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("vea", "Did you mean 'vae'"),
        ("vae/3", "Its newest versions: 1, 2"),
        ("vae@champoin", "Did you mean 'champion'"),
        ("vae@other", "Its aliases: champion"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(two: str, reference: str, said: str) -> None:
    set_alias(two, "vae", "champion", 1)
    with pytest.raises(RegistryError, match=said):
        find(two, reference)


def test_a_deleted_version_is_gone_for_every_reference(two: str) -> None:
    set_alias(two, "vae", "champion", 2)
    connect(two).delete_model_version("vae", "2")
    for reference in ("vae/2", "vae@champion"):
        with pytest.raises(RegistryError):
            find(two, reference)
    assert find(two, "vae").number == 1


def test_the_list_holds_every_version_of_kinfolk_and_no_other(
    two: str, bundle: Path, run_id: str, lineage: Lineage
) -> None:
    register(two, bundle, "gan", run_id, lineage)
    set_alias(two, "vae", "champion", 1)
    client = connect(two)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", "s3://bucket/model")
    client.create_model_version("vae", "s3://bucket/model")
    rows = models(two)
    assert [version.reference for version in rows] == ["gan/1", "vae/2", "vae/1"]
    assert [version.aliases for version in rows] == [(), (), ("champion",)]
    with pytest.raises(RegistryError, match="was not registered by Kinfolk"):
        find(two, "foreign/1")


def test_ten_writers_of_one_name_get_ten_versions(uri: str, bundle: Path, run_id: str, lineage: Lineage) -> None:
    with ThreadPoolExecutor(10) as pool:
        jobs = [pool.submit(register, uri, bundle, "vae", run_id, lineage) for _ in range(10)]
    versions: list[Version] = [job.result() for job in jobs]
    assert sorted(version.number for version in versions) == list(range(1, 11))
    assert len({version.model_id for version in versions}) == 10


def test_nothing_is_registered_from_a_damaged_bundle_or_under_a_bad_name(
    uri: str, bundle: Path, run_id: str, lineage: Lineage
) -> None:
    with pytest.raises(ConfigError):
        register(uri, bundle, "../vae", run_id, lineage)
    with pytest.raises(RegistryError, match="no-such-run"):
        register(uri, bundle, "vae", "no-such-run", lineage)
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        register(uri, bundle, "vae", run_id, lineage)
    assert models(uri) == []


def test_an_upload_that_fails_leaves_no_version(
    uri: str, bundle: Path, run_id: str, lineage: Lineage, tmp_path: Path
) -> None:
    (tmp_path / "store" / "artifacts").write_text("a file where the folder should be")
    with pytest.raises((RegistryError, OSError)):
        register(uri, bundle, "vae", run_id, lineage)
    assert models(uri) == []


def test_nothing_is_written_into_the_working_directory(
    uri: str, bundle: Path, run_id: str, lineage: Lineage, tmp_path: Path
) -> None:
    register(uri, Path(os.path.relpath(bundle)), "vae", run_id, lineage, {"fd_local": 1.0})
    assert list((tmp_path / "elsewhere").iterdir()) == []
