"""A data set as a first stage encodes it, made once and read by every training on its latents."""

from collections.abc import Iterator
from pathlib import Path

import torch

from kinfolk.contract import Batch, DataSpec, Model
from kinfolk.data.entry import Contents, Entry, Report, Split, SplitName
from kinfolk.data.preparation import write
from kinfolk.data.prepared import DatasetRecord, Prepared
from kinfolk.data.source import Rows, Source, TensorSource, stored_dtype
from kinfolk.errors import ConfigError

_CHUNK = 256  # rows of one forward pass


def latent_spec(stage: Model, spec: DataSpec) -> DataSpec:
    """What one encoded sample is; classes are the data's.

    Raises:
        ConfigError: ``stage`` encodes nothing that it can decode again, or learned samples of another shape.
    """
    tasks = stage.tasks
    if tasks.encode is None or tasks.decode is None or tasks.latent_spec is None:
        raise ConfigError(f"A first stage must encode and decode, and this {stage.family.name} does not. Use another.")
    if stage.spec.shape != spec.shape:
        raise ConfigError(f"The first stage encodes samples of shape {stage.spec.shape}, the data has {spec.shape}.")
    return tasks.latent_spec.model_copy(update={"classes": spec.classes})


@torch.no_grad()
def encoded(stage: Model, batch: Batch, seeds: torch.Tensor) -> Rows:
    """Latents of a batch as they are stored."""
    spec, encode = latent_spec(stage, stage.spec), stage.tasks.encode
    assert encode is not None
    return Rows(encode(batch, seeds).to(stored_dtype(spec)).cpu(), batch.label)


def _chunks(stage: Model, source: Source) -> Iterator[Rows]:
    for start in range(0, len(source), _CHUNK):
        stop = min(start + _CHUNK, len(source))
        yield encoded(stage, source.take(start, stop), torch.arange(start, stop))


def encode_source(stage: Model, source: Source) -> TensorSource:
    """A whole split in memory, encoded."""
    rows = Rows.cat(list(_chunks(stage, source)))
    return TensorSource(latent_spec(stage, source.spec), rows.x, rows.label)


def write_latents(destination: Path, data: Prepared, stage: Model, name: str, report: Report) -> Prepared:
    """Encode every split of ``data`` into the prepared data set ``destination``.

    Raises:
        ConfigError: ``stage`` is no first stage for this data.
    """
    spec, record = latent_spec(stage, data.spec), data.record
    splits = {split: _split(stage, data, split) for split in record.splits}
    contents = Contents(spec, splits, record.class_names)
    write(destination, name, _entry(record, name, spec, contents), contents, report)
    return Prepared.open(destination)


def _split(stage: Model, data: Prepared, split: SplitName) -> Split:
    source = data.source(split)
    return Split(len(source), _chunks(stage, source))


def _entry(record: DatasetRecord, name: str, spec: DataSpec, contents: Contents) -> Entry:
    summary = f"{record.name} as a first stage encodes it"
    return Entry(name, summary, f"{summary}: {record.source}", record.licence, spec, lambda _: contents)
