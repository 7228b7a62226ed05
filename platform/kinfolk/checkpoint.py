"""Training checkpoints: safetensors and JSON in a sealed folder, read back only if every byte is as written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from kinfolk.errors import IntegrityError
from kinfolk.manifest import verify_sealed, write_sealed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything training needs to go on exactly: tensors by dotted name, and JSON values."""

    tensors: Mapping[str, Tensor]  # on the CPU
    values: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below ``prefix.``, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def save_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write ``snapshot`` as a sealed folder, atomically; Ray copies it to where it is kept, so it waits for no disk."""
    tensors = {name: value.contiguous() for name, value in snapshot.tensors.items()}
    write_sealed(
        folder, {"state.safetensors": save(tensors), "state.json": json.dumps(snapshot.values).encode()}, synced=False
    )


def load_checkpoint(folder: Path) -> Snapshot:
    """Read a sealed folder.

    Raises:
        IntegrityError: a file is missing, cut short or altered; it is named.
    """
    verify_sealed(folder)
    try:
        return Snapshot(load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_bytes()))
    except (OSError, ValueError, SafetensorError) as error:
        raise IntegrityError(f"{folder} is not a checkpoint: {error}") from None


def newest_good(folders: Iterable[Path]) -> tuple[Snapshot | None, list[str]]:
    """The first readable checkpoint of ``folders`` (newest first), and what was wrong with those before it."""
    problems: list[str] = []
    for folder in folders:
        try:
            return load_checkpoint(folder), problems
        except IntegrityError as error:
            problems.append(str(error))
    return None, problems
