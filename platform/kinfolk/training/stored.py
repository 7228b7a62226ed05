"""Checkpoints in the storage of Ray Train and Tune."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.train import Checkpoint


@contextmanager
def fetched(checkpoint: Checkpoint) -> Iterator[Path]:
    """A copy of ``checkpoint``, in a folder of its own that ends with the context.

    The folder Ray would choose is shared by all processes of a machine, stays for good, and one process writes into it
    again while others read.

    Raises:
        FileNotFoundError: it is not stored any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(checkpoint.to_directory(str(Path(folder) / "checkpoint")))


def each_fetched(checkpoints: Iterable[Checkpoint]) -> Iterator[Path]:
    """Copies of ``checkpoints``, each made when it is asked for and gone when the next one is."""
    for checkpoint in checkpoints:
        with fetched(checkpoint) as folder:
            yield folder
