"""Single images out of an imported data set's two blobs. Knows the archive's form; knows nothing of HTTP."""

from __future__ import annotations

import tarfile
from functools import lru_cache
from pathlib import Path, PurePosixPath

from api.core.errors import NotFound, ServiceError
from api.core.storage import BlobStore
from api.core.tables import Dataset
from fgd.data.index import Image, Index

_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".gif": "image/gif",
    ".ppm": "image/x-portable-pixmap",
}


def image(store: BlobStore, dataset: Dataset, split: str, n: int) -> tuple[Image, tuple[str, ...]]:
    """Image n of a split, and the classes. Raises NotFound."""
    assert dataset.index_digest is not None, "a ready data set has its index"
    index = _index(_path(store, dataset.index_digest))
    images = {str(name): members for name, members in index.splits.items()}.get(split, ())
    if not 0 <= n < len(images):
        raise NotFound("sample", f"{n} of {split}")
    return images[n], index.classes


def digest(image: Image) -> str:
    return PurePosixPath(image.file).stem


def content(store: BlobStore, dataset: Dataset, image: Image) -> tuple[bytes, str]:
    """The file's bytes and their media type."""
    assert dataset.archive_digest is not None, "a ready data set has its archive"
    archive = _path(store, dataset.archive_digest)
    offset, size = _members(archive)[image.file]
    with archive.open("rb") as file:
        file.seek(offset)
        return file.read(size), _TYPES[PurePosixPath(image.file).suffix]


def _path(store: BlobStore, digest: str) -> Path:
    try:
        return store.path(digest)
    except KeyError:
        raise ServiceError("blob_missing", "the bytes of the data set are no longer in the store") from None


@lru_cache(maxsize=4)
def _index(path: Path) -> Index:
    """Blobs never change, so what one says can be kept."""
    return Index.model_validate_json(path.read_bytes())


@lru_cache(maxsize=4)
def _members(archive: Path) -> dict[str, tuple[int, int]]:
    """Name -> where its bytes begin, and how many they are."""
    with tarfile.open(archive, mode="r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}
