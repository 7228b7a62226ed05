"""Parquet shards: column ``x`` of fixed-shape tensors, column ``label`` of int64 where there are classes.

The tensor column is Arrow's own extension type, so pyarrow and Ray Data read whole tensors and pandas reads flat
arrays, without this code. The same rows give the same bytes under one version of pyarrow.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kinfolk.contract import DataSpec
from kinfolk.data.source import Rows
from kinfolk.errors import DataError

SHARD_SUFFIX = ".parquet"
SHARD_BYTES = 32 * 2**20  # decoded; two of them are what streaming holds in memory
_ROW_GROUP_BYTES = 4 * 2**20  # decoded; readers that want a part of a shard read this much


def sharded(chunks: Iterable[Rows], shard_bytes: int = SHARD_BYTES) -> Iterator[Rows]:
    """The same rows in the same order, ``shard_bytes`` of decoded samples at a time; the last may be smaller."""
    held: list[Rows] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        size = _rows_in(shard_bytes, chunk)
        while count >= size:
            joined = Rows.cat(held)
            yield joined[:size]
            held, count = [joined[size:]], count - size
    if count:
        yield Rows.cat(held)


def _rows_in(size_bytes: int, rows: Rows) -> int:
    return max(1, size_bytes // rows.x[0].nbytes)


def write_shard(path: Path, rows: Rows) -> None:
    """Write ``rows`` as one Parquet file.

    Pixels are stored as bytes of equal significance side by side, then compressed: on handwritten digits that is
    smaller and twice as fast to read as a dictionary.
    """
    columns = {"x": pa.FixedShapeTensorArray.from_numpy_ndarray(rows.x.contiguous().numpy())}
    if rows.label is not None:
        columns["label"] = pa.array(rows.label.numpy())
    pq.write_table(
        pa.table(columns),
        path,
        row_group_size=_rows_in(_ROW_GROUP_BYTES, rows),
        compression="zstd",
        use_dictionary=False,
        column_encoding={"x.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
    )


def read_shard(path: Path, spec: DataSpec, count: int) -> Rows:
    """The ``count`` rows of a shard.

    Raises:
        DataError: the file is no such shard, or its rows are not what ``spec`` says; the file is named.
    """
    try:
        rows = _rows(pq.read_table(path))
    except (OSError, pa.ArrowException, KeyError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as a shard: {error}. Prepare the data set again.") from None
    rows.check(spec, str(path))
    if len(rows) != count:
        raise DataError(f"{path} holds {len(rows)} rows, the record says {count}. Prepare the data set again.")
    return rows


def _rows(table: pa.Table) -> Rows:
    x = torch.tensor(table["x"].combine_chunks().to_numpy_ndarray())
    return Rows(x, torch.tensor(table["label"].to_numpy()) if "label" in table.column_names else None)
