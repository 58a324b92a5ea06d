"""Reads the Parquet shards of a Hugging Face data set, a few rows at a time, and puts their images into files.

A shard is what `datasets` pushes: a column of images as struct<bytes, path>, and the boxes. What a file claims of
itself bounds nothing: rows, bytes and images are counted as they come. Needs pyarrow (extra `hf`). Knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fgd.data import images
from fgd.data.archive import MAX_FILES, MAX_TOTAL_BYTES
from fgd.data.huggingface_card import class_names
from fgd.data.texts import UnreadableText
from fgd.data.tree import is_text
from fgd.errors import DatasetError

EXTRA = 'pip install "fgd-service[hf]"'
MAX_ANNOTATION_BYTES = 256 * 2**20
"""Of a batch of rows, without its images."""
_MAX_METADATA_BYTES = 64 * 2**20
_MAX_ROWS, _BATCH_BYTES = 16, 64 * 2**20
"""Decoded at once. One large value can be named by every row of a small file, and takes its room for each of them."""
_SPARE = 1.2
_IMAGE_COLUMNS = ("image", "img", "images", "picture", "pixel_values")
_COLUMNS = frozenset(
    {"file_name", "objects", "annotations", "bbox", "bboxes", "boxes", "width", "height", "iscrowd", "is_crowd"}
)


@dataclass(frozen=True)
class Picture:
    """One image of a row: a file that was made of its bytes, or none and why."""

    name: str | None
    """As the row calls it."""
    path: Path | None
    code: str = ""
    why: str = ""


@dataclass(frozen=True)
class Row:
    number: int
    """From 1."""
    values: dict[str, Any]
    picture: Picture | None
    """None where the table has no images in it, but their file names."""


class Store:
    """A folder of images named by content: the same bytes take room once, however many rows have them."""

    def __init__(self, made: Callable[[], Path]) -> None:
        self._made = made
        self._bytes = 0
        self._rows = 0

    def count(self) -> None:
        self._rows += 1
        if self._rows > MAX_FILES:
            raise DatasetError(f"the Parquet files have more than {MAX_FILES} rows")

    def put(self, content: bytes) -> Path:
        """Raises DatasetError beyond what an archive may hold; OSError where the disk is full."""
        self._bytes += len(content)  # repeated ones too: a small file can repeat a large picture a million times
        if self._bytes > MAX_TOTAL_BYTES:
            raise DatasetError(f"the Parquet files contain more than {MAX_TOTAL_BYTES} bytes of images")
        digest = hashlib.sha256(content).hexdigest()
        path = self._made() / digest[:2] / digest
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._made()).free
        if needed * _SPARE > free:
            raise OSError(f"no room to unpack {needed} bytes of images: {free} are free")  # the host's fault


class Table:
    """One Parquet file. Raises Broken; DatasetError where pyarrow is not installed."""

    def __init__(self, path: Path) -> None:
        parquet = _pyarrow()
        try:
            self._file = parquet.ParquetFile(
                path,
                thrift_string_size_limit=_MAX_METADATA_BYTES,
                thrift_container_size_limit=1_000_000,
                schema_depth_limit=32,
                pre_buffer=False,
                arrow_extensions_enabled=False,
            )
            self._schema = self._file.schema_arrow
        except _faults() as error:
            raise UnreadableText(
                f"not a Parquet file that can be read: {' '.join(str(error).split())[:300]}"
            ) from error
        self._features = _features(self._schema.metadata)
        self.image_column = _image_column(self._schema, self._features)
        self.columns: tuple[str, ...] = tuple(self._schema.names)

    @property
    def rows(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def class_names(self) -> list[Any] | dict[Any, Any] | None:
        return class_names(self._features)

    def read(self, store: Store, more: Sequence[str]) -> Iterator[Row]:
        """Row by row; more: columns to be read beside those that every reader wants. Raises Broken, DatasetError."""
        wanted = [name for name in dict.fromkeys(self.columns) if name in _COLUMNS or name in more]
        if self.image_column:
            store.check_room(sum(self._claimed()))
            wanted.append(self.image_column)
        number = 0
        for rows, pictures in self._batches(wanted):
            for place, values in enumerate(rows):
                number += 1
                store.count()
                yield Row(number, values, None if pictures is None else _picture(pictures[place], store))

    def _batches(self, wanted: Sequence[str]) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        """Some rows without their images, and the column of these."""
        done = 0
        largest = max([1, *self._claimed()])
        size = max(1, min(_MAX_ROWS, _BATCH_BYTES // largest))
        try:
            for batch in self._file.iter_batches(size, columns=wanted, use_threads=False):
                table = batch.drop_columns([self.image_column]) if self.image_column else batch
                if table.nbytes > MAX_ANNOTATION_BYTES:
                    raise UnreadableText(
                        f"the annotations of {batch.num_rows} rows behind row {done} take {table.nbytes} bytes"
                    )
                rows = table.to_pylist() if table.num_columns else [{} for _ in range(batch.num_rows)]
                yield rows, batch.column(self.image_column) if self.image_column else None
                done += batch.num_rows
        except _faults() as error:
            raise UnreadableText(f"cannot be read behind row {done}: {' '.join(str(error).split())[:300]}") from error

    def _claimed(self) -> list[int]:
        """Bytes of each group of rows, as the file says. Not of each column: pyarrow 26 ends the process where the
        statistics of one are damaged."""
        metadata = self._file.metadata
        return [max(0, metadata.row_group(group).total_byte_size) for group in range(metadata.num_row_groups)]


def _pyarrow() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DatasetError(
            f"it has Parquet files, which need pyarrow on the worker; it is not installed there: {EXTRA}"
        ) from error
    return parquet


def _faults() -> tuple[type[Exception], ...]:
    """What a damaged or hostile file makes pyarrow raise."""
    import pyarrow

    return (
        pyarrow.ArrowException,
        MemoryError,
        ValueError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        KeyError,
        OSError,
    )


def _features(metadata: Any) -> dict[str, Any]:
    """The JSON that `datasets` leaves in the schema."""
    try:
        content = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _image_column(schema: Any, features: dict[str, Any]) -> str | None:
    """The one that the features call an image, else the one of a usual name, else the one of the usual fields."""
    said = [name for name, f in features.items() if isinstance(f, dict) and f.get("_type") == "Image"]
    usual = sorted((n for n in schema.names if n in _IMAGE_COLUMNS), key=_IMAGE_COLUMNS.index)
    for name in (*[n for n in usual if n in said], *said, *usual, *schema.names):
        if schema.names.count(name) == 1 and _holds_images(schema.field(name).type, name in usual):
            return str(name)
    return None


def _holds_images(kind: Any, named: bool) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return named and _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _picture(cell: Any, store: Store) -> Picture:
    """Bytes into a file. The name that a row gives them is a label; where they go, it does not say."""
    import pyarrow

    struct = pyarrow.types.is_struct(cell.type)
    if struct and cell.is_valid:
        places = {field.name for field in cell.type}
        content = cell["bytes"]
        told = cell["path"].as_py() if "path" in places else None
    else:
        content, told = cell, None
    name = told if is_text(told) else None
    if not cell.is_valid or not content.is_valid:
        return Picture(name, None, "image_missing", "it has no bytes")
    size = len(content.as_buffer())
    if size > images.MAX_BYTES:
        return Picture(name, None, "image_too_large", f"{size} bytes are more than {images.MAX_BYTES}")
    return Picture(name, store.put(content.as_py()))


def label(name: str | None) -> str | None:
    """The last part of a row's own name for its image, if it is one that can be shown."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    usable = last.isprintable() or all(unicodedata.category(character) not in ("Cc", "Cs") for character in last)
    return last if last and usable and len(os.fsencode(last)) <= 255 else None
