"""A folder of a user's own images: class subfolders, or flat without classes."""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from kinfolk.contract import Config, DataSpec
from kinfolk.data.entry import Contents, Entry, Request, Split
from kinfolk.data.images import SUFFIXES, UnreadableError, read_square
from kinfolk.data.source import Rows
from kinfolk.errors import DataError
from kinfolk.rng import mix

_CHUNK = 64  # images decoded between two reports
_READERS = 4  # threads; decoding lets go of the interpreter
_NAMED = 5  # bad files that an error names


class FolderOptions(Config):
    """How images of any size become samples of one."""

    size: int = Field(64, ge=4, le=1024)  # pixels a side
    channels: Literal[1, 3] = 3
    test_share: float = Field(0.1, gt=0, lt=1)  # of all images; which ones follows from their names


@dataclass(frozen=True, slots=True)
class Found:
    """An image file below the folder."""

    path: Path
    name: str  # relative to the folder, with forward slashes
    label: int | None

    @property
    def share(self) -> float:
        """A number in [0, 1) that follows from the name alone: it splits and shuffles."""
        return mix(os.fsencode(self.name).hex()) / 2**63


def find(folder: Path) -> tuple[list[Found], tuple[str, ...]]:
    """Every image below ``folder``, sorted by name, and the class names: none when the images lie flat.

    Hidden files and other kinds of file are passed over.

    Raises:
        DataError: there are fewer than two images, or some lie flat beside class folders.
    """
    names = [path.relative_to(folder) for path in folder.rglob("*") if _is_image(path)]
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.parts))
    flat = [name for name in names if len(name.parts) == 1]
    if len(names) < 2:
        raise DataError(
            f"{folder} holds {len(names)} images, at least two are needed: one to train and one to test on. "
            f"Known endings: {' '.join(sorted(SUFFIXES))}."
        )
    if flat and len(flat) < len(names):
        raise DataError(
            f"{folder} holds images both directly ({flat[0]}, {len(flat)} in all) and in subfolders. "
            "Put every image into a class folder, or all of them flat."
        )
    classes = [] if flat else sorted({name.parts[0] for name in names})
    numbers = {name: number for number, name in enumerate(classes)}
    found = [Found(folder / name, name.as_posix(), numbers.get(name.parts[0])) for name in names]
    return found, tuple(os.fsencode(name).decode(errors="replace") for name in classes)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def split(found: Sequence[Found], test_share: float) -> tuple[list[Found], list[Found]]:
    """Train and test images, each shuffled, by their names alone: an image stays where it is when others come.

    At least one is in each.
    """
    ranked = sorted(found, key=lambda image: image.share)
    cut = sum(image.share < test_share for image in ranked)
    cut = min(max(cut, 1), len(ranked) - 1)
    return ranked[cut:], ranked[:cut]


@dataclass(frozen=True, slots=True)
class Reader:
    """Decodes images and keeps account of those it could not."""

    folder: Path
    options: FolderOptions
    total: int
    bad: list[str]  # "name (reason)"

    def chunks(self, images: Sequence[Found]) -> Iterator[Rows]:
        """The readable ones among ``images``, in order."""
        with ThreadPoolExecutor(_READERS) as threads, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused by our own, lower, limit
            for start in range(0, len(images), _CHUNK):
                part = images[start : start + _CHUNK]
                pairs = zip(part, threads.map(self._read, part), strict=True)
                if kept := [(image, x) for image, x in pairs if x is not None]:
                    yield _rows(kept)

    def _read(self, image: Found) -> Tensor | None:
        try:
            return read_square(image.path, self.options.size, self.options.channels)
        except (UnreadableError, OSError) as error:
            self.bad.append(f"{image.name} ({error})")
            return None

    def skipped(self) -> int:
        """How many could not be decoded."""
        return len(self.bad)

    def refuse_bad(self) -> int:
        """None could fail to be decoded.

        Raises:
            DataError: some did; they are counted, and the first ones named.
        """
        if not self.bad:
            return 0
        more = f" and {len(self.bad) - _NAMED} more" if len(self.bad) > _NAMED else ""
        raise DataError(
            f"{len(self.bad)} of {self.total} images in {self.folder} cannot be used: "
            f"{'; '.join(sorted(self.bad)[:_NAMED])}{more}. Mend or remove them, or go on without them by --skip-bad."
        )


def _rows(images: Sequence[tuple[Found, Tensor]]) -> Rows:
    labels = [image.label for image, _ in images if image.label is not None]
    return Rows(torch.stack([x for _, x in images]), torch.tensor(labels) if labels else None)


def _spec(options: FolderOptions, classes: int | None) -> DataSpec:
    shape = (options.channels, options.size, options.size)
    return DataSpec(kind="image", shape=shape, levels=256, classes=classes)


def _contents(request: Request) -> Contents:
    options: FolderOptions = request.options
    assert request.source is not None, "the catalogue asks for it"
    found, class_names = find(request.source)
    reader = Reader(request.source, options, len(found), [])
    train, test = split(found, options.test_share)
    return Contents(
        spec=_spec(options, len(class_names) or None),
        splits={"train": Split(len(train), reader.chunks(train)), "test": Split(len(test), reader.chunks(test))},
        class_names=class_names,
        skipped=reader.skipped if request.skip_bad else reader.refuse_bad,
    )


ENTRY = Entry(
    name="folder",
    summary="your own images, of any size and mode: class subfolders, or flat without classes",
    origin="a folder of images",
    licence="as its owner says",
    spec=_spec(FolderOptions(), None),
    contents=_contents,
    options=FolderOptions,
    source="required",
)
