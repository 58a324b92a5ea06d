"""Single images out of an imported data set's two blobs. Knows the archive's form; knows nothing of HTTP."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PurePosixPath

from typing_extensions import Buffer

from api.core import index_pieces
from api.core.errors import NotFound, ServiceError
from api.core.index_pieces import Contents, ImagePiece
from api.core.rows.tables import Dataset
from api.core.store.names import BlobStore
from fgd.data.orientation import unturned

_HEADER = 2048
"""Bytes read at once while headers are looked for."""
_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".gif": "image/gif",
    ".ppm": "image/x-portable-pixmap",
}


def image(
    store: BlobStore, dataset: Dataset, split: str, n: int, after: int = 0, limit: int = 0
) -> tuple[ImagePiece, tuple[str, ...]]:
    """Image n of a split, with up to `limit` of its boxes from box `after` on; and the classes. Raises NotFound."""
    assert dataset.index_digest is not None, "a ready data set has its index"
    with _there():
        index = _contents(store, dataset.index_digest)
        piece = index.piece(split, n)
        if piece is None:
            raise NotFound("sample", f"{n} of {split}")
        data = b"".join(store.read(dataset.index_digest, *piece))
    return index_pieces.image_of(data, after, limit), index.classes


def places(store: BlobStore, dataset: Dataset, split: str) -> Mapping[int, int]:
    """Of each image of a split, by its id, the n that `image` takes."""
    assert dataset.index_digest is not None, "a ready data set has its index"
    with _there():
        return _places(store, dataset.index_digest, split)


def named(store: BlobStore, dataset: Dataset, text: str, split: str | None, most: int) -> list[tuple[str, int, str]]:
    """Split, n and name of images with this text in their name; first those that are called so, without or with a
    folder before it. Letter case does not count."""
    assert dataset.index_digest is not None, "a ready data set has its index"
    wanted = text.casefold()
    found: tuple[list[tuple[str, int, str]], ...] = ([], [], [])
    with _there():
        for of, n, name in index_pieces.names(store.read(dataset.index_digest)):
            if (split is None or of == split) and wanted in (folded := name.casefold()):
                rank = 0 if folded == wanted else 1 if folded.endswith(f"/{wanted}") else 2
                if len(found[rank]) < most:
                    found[rank].append((of, n, name))
                elif not wanted:
                    break
    return [each for rank in found for each in rank][:most]


def digest(image: ImagePiece) -> str:
    return PurePosixPath(image.file).stem


def content(store: BlobStore, dataset: Dataset, image: ImagePiece) -> tuple[bytes, str]:
    """The file's bytes, which viewers do not turn, for the boxes lie in the stored pixels; and their media type."""
    assert dataset.archive_digest is not None, "a ready data set has its archive"
    with _there():
        offset, size = _members(store, dataset.archive_digest)[image.file]
        file = b"".join(store.read(dataset.archive_digest, offset, size))
        return unturned(file), _TYPES[PurePosixPath(image.file).suffix]


@contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except KeyError:
        raise ServiceError("blob_missing", "the bytes of the data set are no longer in the store") from None


@lru_cache(maxsize=2)
def _contents(store: BlobStore, digest: str) -> Contents:
    """Blobs never change, so what one says can be kept: where each image stands in an index, not the images."""
    return index_pieces.contents(store.read(digest))


@lru_cache(maxsize=2)
def _places(store: BlobStore, digest: str, split: str) -> dict[int, int]:
    return {id: n for n, id in enumerate(_contents(store, digest).ids.get(split, ()))}


@lru_cache(maxsize=2)
def _members(store: BlobStore, archive: str) -> dict[str, tuple[int, int]]:
    """Name -> where its bytes begin, and how many they are. A store elsewhere is asked once for each image's header."""
    blob = io.BufferedReader(RangeReader(store, archive), _HEADER)
    members = {}
    with tarfile.open(fileobj=blob, mode="r:") as tar:
        while (member := tar.next()) is not None:
            members[member.name] = member.offset_data, member.size
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    return members


class RangeReader(io.RawIOBase):
    """A blob as a file that is read piece by piece."""

    def __init__(self, store: BlobStore, digest: str) -> None:
        self.store, self.digest, self.length, self.at = store, digest, store.size(digest), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        wanted = min(len(view), self.length - self.at)
        data = b"".join(self.store.read(self.digest, self.at, wanted)) if wanted > 0 else b""
        view[: len(data)] = data
        self.at += len(data)
        return len(data)
