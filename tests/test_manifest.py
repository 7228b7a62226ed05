"""Sealed folders that must outlast a power cut wait for the disk; those on their way elsewhere do not."""

import os
import stat

import pytest

from kinfolk.manifest import verify_sealed, write_sealed


@pytest.mark.parametrize("synced", [True, False])
def test_every_file_and_folder_is_synced_or_none(tmp_path, monkeypatch, synced):
    kinds, real = [], os.fsync

    def fsync(descriptor):
        kinds.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_sealed(tmp_path / "sealed", {"a": b"1", "b/c": b"2"}, synced=synced)
    assert sorted(kinds) == (["file", "file", "file", "folder", "folder"] if synced else [])
    assert len(verify_sealed(tmp_path / "sealed")) == 2
