import math
from pathlib import Path

import pytest

from kinfolk.errors import RegistryError
from kinfolk.tracking.spool import Spool, file_entry, metrics_entry, status_entry


def _steps(spool: Spool, limit: int | None = None) -> list[int]:
    return [entry["step"] for entry, _ in spool.unsent(limit)]


def test_entries_come_back_in_order_until_marked_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    for step in range(5):
        spool.append(metrics_entry({"loss": step / 3}, step))
    assert _steps(spool, 2) == [0, 1]
    spool.sent(spool.unsent(2)[-1][1])
    assert _steps(spool) == [2, 3, 4]
    spool.close()
    assert _steps(Spool(tmp_path, "run")) == [2, 3, 4]


def test_a_line_cut_by_a_death_is_dropped_and_the_next_is_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.append(metrics_entry({"loss": 1.0}, 1))
    spool.close()
    with spool.path.open("ab") as file:
        file.write(b'{"at_ms": 1, "step": 2, "metr')
    again = Spool(tmp_path, "run")
    again.append(metrics_entry({"loss": 3.0}, 3))
    assert _steps(again) == [1, 3]


def test_a_mark_that_was_cut_sends_again_and_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.append(metrics_entry({"loss": 1.0}, 1))
    spool.sent(spool.unsent()[-1][1])
    spool.close()
    (tmp_path / "run.sent").write_text("")
    assert _steps(Spool(tmp_path, "run")) == [1]


def test_an_answer_after_the_close_marks_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.append(metrics_entry({"loss": 1.0}, 1))
    mark = spool.unsent()[-1][1]
    spool.close()
    spool.sent(mark)
    assert _steps(Spool(tmp_path, "run")) == [1]


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    first = Spool(tmp_path, "run")
    with pytest.raises(RegistryError, match="in use"):
        Spool(tmp_path, "run", lock_wait_s=0.1)
    first.close()
    Spool(tmp_path, "run", lock_wait_s=0.1).close()


def test_values_survive_exactly_and_nan_is_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.append(metrics_entry({"a": 0.1 + 0.2, "b": math.nan, "c": -math.inf}, 7))
    spool.append(file_entry(bytes(range(256)), "samples/1.png"))
    spool.append(status_entry("FINISHED"))
    metrics = spool.unsent()[0][0]["metrics"]
    assert metrics["a"] == 0.1 + 0.2
    assert math.isnan(metrics["b"])
    assert metrics["c"] == -math.inf
    assert list(spool.points()) == [("a", 7, 0.1 + 0.2), ("c", 7, -math.inf)]


def test_a_removed_spool_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "run")
    spool.append(status_entry("FINISHED"))
    spool.sent(spool.unsent()[-1][1])
    spool.remove()
    assert list(tmp_path.iterdir()) == []
