# SPDX-License-Identifier: Apache-2.0
"""Images that lie inside Parquet files, as the Hub's mirrors and `datasets` write them.

Such an image is named `/folder/file.parquet#ROW`, with the number of its row in the file, from 0. The column is found
by its type: a struct with a field `bytes` (the `Image` feature of `datasets`), else plain binary. Where a row holds a
list of such structs, `/folder/file.parquet#ROW:PLACE` says which of them, from 0. A Parquet file is read by row
groups, so the images of the last few row groups are kept, at most 256 MiB of them.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .reading import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

MARK = ".parquet#"
CACHE_BYTES = 2**28
MAX_GROUP_BYTES = 2**31  # of one row group's images: refused before anything is decompressed

# Files are known by (path, size, mtime): one that was written anew is read anew.
# -> the row after each row group's last one
_row_ends: dict[tuple[str, int, int], list[int]] = {}
# with the row group -> its images
_cache: OrderedDict[tuple[str, int, int, int], pa.ChunkedArray] = OrderedDict()
# One for all: a second thread that misses the same group waits for the first one's read instead of reading it again.
_lock = threading.Lock()


def _forget() -> None:
    """Start empty and unlocked in a forked worker, where the thread that held the lock does not exist."""
    global _lock
    _lock = threading.Lock()
    _cache.clear()
    _row_ends.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def parquet_reference(file: str | os.PathLike[str], row: int, place: int | None = None) -> str:
    """Return the name of the image in a row of a Parquet file, and at a place of the row's list; both from 0."""
    return f"{os.fspath(file)}#{row}" + ("" if place is None else f":{place}")


def is_parquet_reference(source: object) -> bool:
    """Whether this names an image inside a Parquet file."""
    return isinstance(source, str) and re.search(r"\.parquet#\d+(:\d+)?$", source) is not None


def read_parquet_image(reference: str) -> bytes:
    """Return the encoded bytes (PNG, JPEG, ...) of an image named by [`parquet_reference`].

    Safe to call from several threads; each forked worker keeps a cache of its own.

    Raises:
        DatasetError: the file is missing or damaged, has no such row or no image column, the row has no such place or
            holds no bytes, or the images of its row group are larger than 2 GiB.
    """
    name, _, at = reference.rpartition("#")
    number, _, place = at.partition(":")
    row = int(number)
    with _lock:
        try:
            status = os.stat(name)
        except OSError:
            raise DatasetError(f"{name}: no such file; expected a Parquet file") from None
        file = (name, status.st_size, status.st_mtime_ns)
        if file not in _row_ends:
            _row_ends[file] = _read_row_ends(name)
        ends = _row_ends[file]
        group = bisect.bisect_right(ends, row)
        if group == len(ends):
            raise DatasetError(f"{reference}: the file has {ends[-1] if ends else 0} rows, counted from 0")
        if (*file, group) not in _cache:
            _cache[(*file, group)] = _read_group(name, group)
            _drop_oldest()
        _cache.move_to_end((*file, group))
        cell = _cache[(*file, group)][row - (ends[group - 1] if group else 0)]
        content = _bytes_of(cell, int(place) if place else None)
    if not content:
        raise DatasetError(f"{reference}: the row holds no image bytes; expected an encoded image")
    return content


def open_parquet(path: str | os.PathLike[str]) -> Any:
    """Return an open `pyarrow.parquet.ParquetFile`, a context manager.

    Raises:
        DatasetError: it is missing or no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not os.path.isfile(path):
        raise DatasetError(f"{path}: no such file; expected a Parquet file")
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: cannot be read as Parquet ({type(error).__name__}); download it again") from None


def image_column(schema: pa.Schema) -> str | None:
    """Return the path of the column with the image bytes: `image.bytes`, or `image` where it is plain binary.

    None where there is no such column, or where several could be meant.
    """
    import pyarrow as pa

    def is_binary(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    structs = [
        f"{field.name}.bytes"
        for field in schema
        if pa.types.is_struct(field.type)
        and (at := field.type.get_field_index("bytes")) >= 0
        and is_binary(field.type.field(at).type)
    ]
    found = structs or [field.name for field in schema if is_binary(field.type)]
    return found[0] if len(found) == 1 else None


def image_list_column(schema: pa.Schema) -> str | None:
    """Return the path of the bytes in a column of lists of images, `images.list.element.bytes`; None for no such."""
    import pyarrow as pa

    lists = [field for field in schema if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)]
    found = [field.name for field in lists if image_column(pa.schema(list(field.type.value_type))) == "bytes"]
    return f"{found[0]}.list.element.bytes" if len(found) == 1 else None


def read_rows(path: Path, columns: list[str], batch_rows: int = 64) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(row number from 0, cells)` of a Parquet file, one small batch in memory at a time.

    Args:
        path: the file.
        columns: names of the columns to read; `image.bytes` for a field of a struct.
        batch_rows: rows that are decoded at once.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    import pyarrow as pa

    row = 0
    with open_parquet(path) as parquet:
        try:
            for batch in parquet.iter_batches(batch_rows, columns=columns, use_threads=False):
                for cells in batch.to_pylist():
                    yield row, cells
                    row += 1
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(
                f"{path}: damaged after row {row} ({type(error).__name__}); download it again"
            ) from None


def _read_row_ends(name: str) -> list[int]:
    """Return for each row group the number of rows up to its end."""
    with open_parquet(name) as parquet:
        groups = range(parquet.metadata.num_row_groups)
        return list(itertools.accumulate(parquet.metadata.row_group(group).num_rows for group in groups))


def _read_group(name: str, group: int) -> pa.ChunkedArray:
    """Return the encoded images of one row group."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with open_parquet(name) as parquet:
        in_lists = image_list_column(parquet.schema_arrow)
        path = in_lists or image_column(parquet.schema_arrow)
        if path is None:
            raise DatasetError(f"{name}: expected one column of images (a struct with bytes, or binary)")
        meta = parquet.metadata.row_group(group)
        chunks = [meta.column(at) for at in range(meta.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == path)
        if size > MAX_GROUP_BYTES:
            raise DatasetError(
                f"{name}: row group {group} holds {size:,} bytes of images, expected at most {MAX_GROUP_BYTES:,}; "
                "write the file again with smaller row groups"
            )
        column, _, leaf = path.partition(".")
        try:
            images = parquet.read_row_group(group, columns=[path], use_threads=False).column(column)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(
                f"{name}: damaged in row group {group} ({type(error).__name__}); download it again"
            ) from None
    return pc.struct_field(images, leaf) if leaf and not in_lists else images


def _bytes_of(cell: pa.Scalar, place: int | None) -> bytes | None:
    """Return the bytes of a cell, or of one place of a cell that is a list; None where there are none."""
    import pyarrow as pa

    if not isinstance(cell, pa.ListScalar):
        return cell.as_py() if place is None else None
    if place is None or cell.values is None or place >= len(cell.values):
        return None
    return cell.values[place]["bytes"].as_py()


def _drop_oldest() -> None:
    """Keep the newest row groups: one always, more as long as they fit."""
    while len(_cache) > 1 and sum(images.nbytes for images in _cache.values()) > CACHE_BYTES:
        _cache.popitem(last=False)
