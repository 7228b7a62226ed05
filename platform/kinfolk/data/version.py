"""The version of a data set: the hash that DVC gives its folder, without asking DVC."""

import hashlib
import json
from pathlib import Path

from kinfolk.errors import DataError

_CHUNK_BYTES = 1 << 20


def content_hash(path: Path) -> str:
    """What DVC 3 records for folder ``path`` in ``dvc.lock``: 32 hexadecimal digits and ``.dir``.

    It is the MD5 of a JSON list of every file's MD5 and name, sorted by name (dvc-data, ``Tree.digest``).

    Raises:
        DataError: there is no folder at ``path``.
    """
    if not path.is_dir():
        raise DataError(f"{path} is no folder, so it has no version. Prepare the data set first.")
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    listing = json.dumps([{"md5": _md5(file), "relpath": name} for name, file in files])
    return f"{hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()}.dir"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
