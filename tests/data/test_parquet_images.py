# SPDX-License-Identifier: Apache-2.0
"""Images inside Parquet files: the right bytes of each row, from any thread or worker, with a bounded cache."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pefomed_recipes.data import parquet_images
from pefomed_recipes.data.images import ImageError, load_image
from pefomed_recipes.data.parquet_images import (
    image_column,
    is_parquet_reference,
    parquet_reference,
    read_parquet_image,
    read_rows,
)
from pefomed_recipes.data.reading import DatasetError

from .fixtures.parquet import write_hub_parquet
from .fixtures.pictures import picture_bytes

NAMES = [f"{number}.png" for number in range(9)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_hub_parquet(tmp_path / "train.parquet", [(name, "q", "a") for name in NAMES])


def test_each_row_gives_its_own_bytes_whatever_the_row_group(path):
    for row in (8, 0, 3, 2, 8, 1):
        assert read_parquet_image(parquet_reference(path, row)) == picture_bytes(NAMES[row])
    assert load_image(f"{path}#4").getpixel((0, 0)) == load_image(picture_bytes(NAMES[4])).getpixel((0, 0))


def test_references_are_told_from_paths(path):
    assert is_parquet_reference(parquet_reference(path, 12))
    for other in (str(path), f"{path}#x", "a.png#1", path, "x.parquet#", b".parquet#1"):
        assert not is_parquet_reference(other)


def test_missing_rows_images_and_files_are_told(tmp_path, path):
    with pytest.raises(DatasetError, match=r"#9: the file has 9 rows, counted from 0"):
        read_parquet_image(f"{path}#9")
    gaps = write_hub_parquet(tmp_path / "gaps.parquet", [("a.png", "q", "a"), (None, "q", "a")])
    with pytest.raises(DatasetError, match=r"#1: the row holds no image bytes"):
        read_parquet_image(f"{gaps}#1")
    with pytest.raises(DatasetError, match="no such file"):
        read_parquet_image(str(tmp_path / "none.parquet#0"))
    (tmp_path / "html.parquet").write_bytes(b"<html>")
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        read_parquet_image(str(tmp_path / "html.parquet#0"))
    with pytest.raises(ImageError, match="no such file"):
        load_image(str(tmp_path / "none.parquet#0"))


def test_damage_in_the_middle_is_no_traceback(path):
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"damaged in row group 0 \(\w+\); download it again"):
        read_parquet_image(f"{path}#0")
    with pytest.raises(DatasetError, match=r"damaged after row 0"):
        list(read_rows(path, ["image.bytes"]))


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "q": pa.string()}, "image.bytes"),
        ({"pixels": pa.large_binary(), "q": pa.string()}, "pixels"),
        ({"hash": pa.binary(), "image": pa.struct([("bytes", pa.large_binary())])}, "image.bytes"),
        ({"a": pa.binary(), "b": pa.binary()}, None),
        ({"image": pa.string()}, None),
        ({"image": pa.struct([("bytes", pa.string())])}, None),
    ],
)
def test_the_image_column_is_found_by_its_type(columns, found):
    assert image_column(pa.schema(list(columns.items()))) == found


def test_plain_binary_columns_are_read(tmp_path):
    pq.write_table(pa.table({"id": [1, 2], "pixels": pa.array([b"a", b"b"])}), tmp_path / "x.parquet")
    assert read_parquet_image(str(tmp_path / "x.parquet#1")) == b"b"
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "y.parquet")
    with pytest.raises(DatasetError, match="expected one column of images"):
        read_parquet_image(str(tmp_path / "y.parquet#1"))


def test_a_row_group_is_read_once_and_the_cache_stays_within_its_bound(path, monkeypatch):
    reads = []
    read_group = parquet_images._read_group
    monkeypatch.setattr(parquet_images, "_read_group", lambda *args: (reads.append(args[1]), read_group(*args))[1])
    parquet_images._cache.clear()
    for row in range(9):
        read_parquet_image(f"{path}#{row}")
    assert reads == [0, 1, 2, 3, 4]
    size = max(images.nbytes for images in parquet_images._cache.values())
    monkeypatch.setattr(parquet_images, "CACHE_BYTES", 2 * size)
    parquet_images._cache.clear()
    del reads[:]
    for row in (0, 2, 0, 4, 0, 2):
        read_parquet_image(f"{path}#{row}")
    assert reads == [0, 1, 2, 1]  # the one used longest ago went
    assert sum(images.nbytes for images in parquet_images._cache.values()) <= 2 * size
    monkeypatch.setattr(parquet_images, "MAX_GROUP_BYTES", 10)
    parquet_images._cache.clear()
    with pytest.raises(DatasetError, match=r"row group 0 holds \d+ bytes of images, expected at most 10"):
        read_parquet_image(f"{path}#0")


def test_a_file_written_anew_is_read_anew(path):
    assert read_parquet_image(f"{path}#0") == picture_bytes(NAMES[0])
    write_hub_parquet(path, [("other.png", "q", "a")] * 30)
    assert read_parquet_image(f"{path}#29") == picture_bytes("other.png")


def test_threads_and_forked_workers_read_the_same(path, monkeypatch):
    monkeypatch.setattr(parquet_images, "CACHE_BYTES", 1)
    rows = [7 * n % 9 for n in range(300)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: read_parquet_image(f"{path}#{row}"), rows))
    assert found == [picture_bytes(NAMES[row]) for row in rows]
    with parquet_images._lock:  # as another thread of the parent may hold it
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if read_parquet_image(f"{path}#5") == picture_bytes(NAMES[5]) else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
