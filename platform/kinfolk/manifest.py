"""Folders that are either whole or recognisably not: written aside, sealed by a manifest, renamed into place."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kinfolk.errors import IntegrityError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def taking_place_of(destination: Path) -> Iterator[Path]:
    """An empty folder that becomes ``destination`` when the block ends well, and is removed when it does not."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}") for _ in range(2))
    aside.mkdir()
    try:
        yield aside
        if destination.exists():
            destination.rename(old)
        aside.rename(destination)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not destination.exists():
            old.rename(destination)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_sealed(folder: Path, files: Mapping[str, bytes], *, synced: bool = True) -> None:
    """Write ``files`` (relative name to content) as ``folder``, atomically, with a manifest of their sha256.

    A folder of that name is replaced. A death at any moment leaves the old folder, the new one, or none: never half.
    With ``synced`` this holds after a power cut too; it waits for the disk.
    """
    with taking_place_of(folder) as aside:
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
        whole = {**files, MANIFEST: json.dumps({"sha256": sums}, indent=1).encode()}
        for name, content in whole.items():
            _write(aside / name, content)
        if synced:
            for path in (*(aside / name for name in whole), aside):
                _sync(path)
    if synced:
        _sync(folder.parent)


def verify_sealed(folder: Path) -> dict[str, str]:
    """Check every file of a sealed folder and return name to sha256.

    Raises:
        IntegrityError: a file is missing, altered or added, or the manifest is none; the file is named.
    """
    try:
        sums: dict[str, str] = json.loads((folder / MANIFEST).read_bytes())["sha256"]
    except FileNotFoundError:
        raise IntegrityError(f"{folder} has no {MANIFEST}: it was never completed.") from None
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{folder / MANIFEST} is not a manifest: it was cut short or altered.") from None
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing although {MANIFEST} lists it.")
        if (got := sha256_of(path)) != expected:
            raise IntegrityError(
                f"{path} was altered or cut short: sha256 is {got[:12]}, {MANIFEST} says {expected[:12]}."
            )
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if added := sorted(found - sums.keys() - {MANIFEST}):
        raise IntegrityError(f"{folder / added[0]} is not in {MANIFEST}: it was added after the folder was sealed.")
    return sums
