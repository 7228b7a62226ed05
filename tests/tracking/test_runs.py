import pickle
import shutil
from pathlib import Path

import pytest

from kinfolk.errors import ConfigError, RegistryError
from kinfolk.tracking.aliases import set_alias
from kinfolk.tracking.connection import connect
from kinfolk.tracking.fetch import fetch
from kinfolk.tracking.lineage import Lineage
from kinfolk.tracking.registry import register
from kinfolk.tracking.runs import DataVersion, Tracker, deliver_spool, flatten
from kinfolk.tracking.server import start_server, store_address
from kinfolk.tracking.spool import Spool, metrics_entry


def _history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    points = connect(uri).get_metric_history(run_id, name)
    return [(point.step, point.value) for point in sorted(points, key=lambda point: (point.timestamp, point.step))]


def test_nested_settings_become_dotted_keys() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": "text", "g": {}, "h": True, "i": Path("x")}
    assert flatten(nested) == {
        "a.b.c": "1",
        "a.d": "[1, 2]",
        "e": "null",
        "f": "text",
        "g": "{}",
        "h": "true",
        "i": '"x"',
    }


def test_a_run_arrives_whole(tracker: Tracker, uri: str, tmp_path: Path) -> None:
    digest = "d" * 32 + ".dir"
    params = {"model": {f"p{index}": index for index in range(150)}}
    run = tracker.start_run("vae", params, {"worker": "2"}, DataVersion("digits", digest, "scikit-learn"))
    for step in range(120):
        run.log({"loss": 1 / (step + 1), "elbo": -float(step)}, step)
    run.log_file(b"png", "samples/000120.png")
    run.log_file(b"png", "final.png")
    run.tag("alarms", "Samples are alike.")
    delivery = run.finish()
    assert delivery.complete
    assert delivery.refused == ()
    assert _history(uri, run.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(120)]
    stored = connect(uri).get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "vae"
    assert (stored.data.tags["worker"], stored.data.tags["alarms"]) == ("2", "Samples are alike.")
    assert stored.data.params == {f"model.p{index}": str(index) for index in range(150)}
    (given,) = stored.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", digest)
    artifacts = Path(stored.info.artifact_uri)
    assert (artifacts / "samples" / "000120.png").read_bytes() == b"png"
    assert (artifacts / "final.png").read_bytes() == b"png"
    assert list((tmp_path / "spool").iterdir()) == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_resumed_run_is_the_same_run_and_repeats_no_point(tracker: Tracker, uri: str) -> None:
    run = tracker.start_run("vae", {"seed": 0}, {})
    for step in range(6):
        run.log({"loss": step * 0.1}, step)
    run.finish("FAILED")
    again = tracker.start_run("vae", {"seed": 0}, {}, resume_run_id=run.run_id)
    assert connect(uri).get_run(run.run_id).info.status == "RUNNING"
    for step in range(4, 8):
        again.log({"loss": step * 0.1}, step)
    again.log({"loss": 0.75}, 7)  # a roll-back comes by a second time, with another value
    assert again.finish().complete
    assert again.run_id == run.run_id
    assert _history(uri, run.run_id, "loss") == [(step, step * 0.1) for step in range(8)] + [(7, 0.75)]
    assert connect(uri).get_run(run.run_id).info.status == "FINISHED"


def test_a_run_cannot_be_resumed_as_another(tracker: Tracker) -> None:
    run = tracker.start_run("vae", {"seed": 0}, {})
    with pytest.raises(RegistryError, match="seed"):
        tracker.start_run("vae", {"seed": 1}, {}, resume_run_id=run.run_id)
    with pytest.raises(RegistryError, match="0" * 32):
        tracker.start_run("vae", {}, {}, resume_run_id="0" * 32)


def test_a_run_can_be_handed_to_another_process_and_back(tracker: Tracker, uri: str) -> None:
    run = tracker.start_run("vae", {}, {})
    run.log({"loss": 0.0}, 0)
    handed = pickle.dumps(run)
    assert run.close().complete
    copy = pickle.loads(handed)
    copy.log({"loss": 1.0}, 1)
    assert copy.close().complete
    assert connect(uri).get_run(run.run_id).info.status == "RUNNING"
    run.log({"loss": 2.0}, 2)
    run.finish()
    assert _history(uri, run.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("path", ["/etc/x.png", "../x.png", "a/../../x.png", ""])
def test_a_file_stays_inside_the_run(tracker: Tracker, path: str) -> None:
    run = tracker.start_run("vae", {}, {})
    with pytest.raises(ConfigError, match="relative path"):
        run.log_file(b"png", path)


def test_what_mlflow_never_takes_is_reported_and_holds_nothing_up(tracker: Tracker, uri: str) -> None:
    run = tracker.start_run("vae", {}, {})
    run.log({"loss": 1.0}, 1)
    run.log({"loss?": 1.0}, 2)
    run.log({"loss": 3.0}, 3)
    delivery = run.finish()
    assert delivery.complete
    assert len(delivery.refused) == 1
    assert "loss? at step 2" in delivery.refused[0]
    assert _history(uri, run.run_id, "loss") == [(1, 1.0), (3, 3.0)]


def test_an_entry_sent_twice_is_one_point(tracker: Tracker, uri: str, tmp_path: Path) -> None:
    """A death between MLflow's answer and the mark sends the same entries again."""
    run = tracker.start_run("vae", {}, {})
    spool = Spool(tmp_path / "spool", run.run_id)
    for step in range(3):
        spool.append(metrics_entry({"loss": float(step)}, step))
    spool.close()
    shutil.copy(spool.path, tmp_path / "copy")
    assert deliver_spool(tmp_path / "spool", uri)[0].complete
    shutil.copy(tmp_path / "copy", spool.path)
    assert deliver_spool(tmp_path / "spool", uri)[0].complete
    assert _history(uri, run.run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_spool_in_use_is_passed_over(tracker: Tracker, uri: str, tmp_path: Path) -> None:
    run = tracker.start_run("vae", {}, {})
    run.log({"loss": 1.0}, 1)
    assert deliver_spool(tmp_path / "spool", uri) == []
    run.finish()


def test_a_server_that_goes_and_comes_back_misses_nothing(tmp_path: Path, bundle: Path, lineage: Lineage) -> None:
    with start_server(tmp_path / "server") as server:
        port = int(server.address.rpartition(":")[2])
        tracker = Tracker(server.address, "digits", tmp_path / "spool")
        tracker.check()
        run = tracker.start_run("vae", {"seed": 0}, {})
        other = tracker.start_run("gan", {}, {})
        run.log({"loss": 1.0}, 1)
        run.log_file(b"before", "samples/1.png")
        assert run.close().complete
        run.log({"loss": 2.0}, 2)
    server.stop()  # a second time does nothing
    assert server.process.returncode is not None
    for step in range(3, 30):
        run.log({"loss": float(step)}, step)
    run.log_file(b"after", "samples/29.png")
    other.log({"loss": 5.0}, 5)
    left = other.finish("FINISHED", timeout_s=0.5)
    assert left.unsent == 2
    assert "out of reach" in left.trouble
    with pytest.raises(RegistryError):
        deliver_spool(tmp_path / "spool", server.address)
    with start_server(tmp_path / "server", port):
        assert run.finish("FINISHED", timeout_s=60.0).complete
        assert [delivery.run_id for delivery in deliver_spool(tmp_path / "spool", server.address)] == [other.run_id]
        assert _history(server.address, run.run_id, "loss") == [(step, float(step)) for step in range(1, 30)]
        registered = register(server.address, bundle, "vae", run.run_id, lineage, {"fd_local": 1.0})
        set_alias(server.address, "vae", "champion", 1)
        fetched = fetch(server.address, "vae@champion", tmp_path / "models").version
    assert fetched.metrics == registered.metrics == {"fd_local": 1.0}
    with pytest.raises(RegistryError, match="out of reach"):
        fetch(server.address, "vae", tmp_path / "models")
    direct = connect(store_address(tmp_path / "server"))  # the store outlives the server
    assert direct.get_run(run.run_id).info.status == "FINISHED"
    assert direct.get_run(other.run_id).info.status == "FINISHED"
    assert (Path(direct.get_run(run.run_id).info.artifact_uri) / "samples" / "29.png").read_bytes() == b"after"
    assert list((tmp_path / "spool").iterdir()) == []
    assert fetch(store_address(tmp_path / "server"), "vae", tmp_path / "again").version == fetched
