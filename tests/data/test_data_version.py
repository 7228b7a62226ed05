import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kinfolk.data.version import content_hash
from kinfolk.errors import DataError

DVC = Path(sys.executable).with_name("dvc")


def dvc(folder, *arguments):
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{DVC.parent}:{os.environ['PATH']}"}
    subprocess.run([DVC, *arguments], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    (path / "deeper").mkdir(parents=True)
    (path / "b.txt").write_bytes(b"line\r\nline\n")
    (path / "a b\u00e9.bin").write_bytes(bytes(range(256)))
    (path / "deeper" / "empty").touch()
    (path / "deeper-still").write_text("sorts between 'deeper' and 'deeper/' by name")
    return path


def test_it_is_what_dvc_records_for_the_output_of_a_stage(tmp_path, folder):
    stage = {"stages": {"prepare": {"cmd": "cp -r data out", "deps": ["data"], "outs": ["out"]}}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(stage))
    dvc(tmp_path, "init", "--no-scm", "-q")
    dvc(tmp_path, "repro", "-q")
    lock = yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]["prepare"]
    assert lock["outs"][0]["md5"] == content_hash(tmp_path / "out")
    assert lock["deps"][0]["md5"] == content_hash(folder)


def test_it_changes_with_content_and_with_names(folder):
    versions = [content_hash(folder)]
    (folder / "b.txt").write_bytes(b"line\nline\n")
    versions.append(content_hash(folder))
    (folder / "b.txt").rename(folder / "c.txt")
    versions.append(content_hash(folder))
    assert len(set(versions)) == 3
    assert all(version.endswith(".dir") and len(version) == 36 for version in versions)


def test_a_missing_folder_has_no_version(tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder"):
        content_hash(tmp_path / "nowhere")
