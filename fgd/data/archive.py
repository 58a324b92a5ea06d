"""An imported data set as one file: an uncompressed tar of index.json and the images, named by content.

The same data set gives the same bytes, no matter who packs it and when. Unpacking trusts nothing: it writes the files
itself instead of calling tarfile's extraction. Knows no torch.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from fgd.data.index import Index
from fgd.errors import DatasetError

INDEX = "index.json"
_IMAGE_NAME = re.compile(r"images/([0-9a-f]{2})/(\1[0-9a-f]{62})\.(jpg|png|webp|bmp|tif|gif|ppm)", re.ASCII)
MAX_FILE_BYTES = 512 * 2**20
"""Of one image, as fgd.data.images takes it; the index may take `MAX_INDEX_BYTES`."""
MAX_INDEX_BYTES = 2 * 2**30
MAX_FILES = 2_000_000
MAX_TOTAL_BYTES = 50 * 2**30
"""Of a data set as it comes, all its files together."""
_SPARE = 1.2
"""Free space asked for, as a multiple of what is to be written."""
_CHUNK = 2**20


def pack(index: Index, sources: Mapping[str, Path], tar_path: Path) -> None:
    """Write index and images to `tar_path`, whole or not at all.

    sources: `Image.file` -> file, as `fgd.data.formats.read` returns it. Raises DatasetError if a file has changed
    since it was read: its name is its content's hash, and the archive must not lie.
    """
    used = {image.file for images in index.splits.values() for image in images}
    with tempfile.NamedTemporaryFile(dir=tar_path.parent, prefix=f".{tar_path.name}.", delete=False) as partial:
        try:
            with tarfile.open(fileobj=partial, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                _add(tar, INDEX, index.model_dump_json().encode())
                for name in sorted(used):
                    _add(tar, name, _content(name, sources[name]))
            partial.flush()
            os.fsync(partial.fileno())
            os.replace(partial.name, tar_path)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise


def _content(name: str, source: Path) -> bytes:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise DatasetError(f"{source}: can no longer be read: {error.strerror}; import the data set again") from error
    if hashlib.sha256(content).hexdigest() not in name:
        raise DatasetError(f"{source} changed during the import; import the data set again")
    return content


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0: nothing of this machine
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def unpack(tar_path: Path, folder: Path) -> Path:
    """Make `folder` out of an archive; it appears whole or not at all. One that is there already is left alone.

    Raises DatasetError for an archive that `pack` did not make, or that does not fit on the disk.
    """
    if (folder / INDEX).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _extract(tar_path, partial)
        partial.rename(folder)
    except OSError as error:
        # Two processes may unpack the same archive; the folder of the first is as good as ours.
        if not (folder / INDEX).is_file():
            raise DatasetError(f"{tar_path}: cannot be unpacked to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _extract(tar_path: Path, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    written, names = 0, set[str]()
    try:
        with tarfile.open(tar_path, mode="r:") as tar:
            for member in tar:
                _refuse(tar_path, member, names)
                names.add(member.name)
                written += member.size
                if written * _SPARE > free:
                    raise DatasetError(f"{tar_path}: {written} bytes or more do not fit: {free} are free in {folder}")
                source = tar.extractfile(member)
                assert source is not None  # it is a regular file: _refuse saw to that
                _write(tar_path, member, source, folder / member.name)
    except DatasetError:
        raise
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DatasetError(f"{tar_path}: not an archive of a data set: {error}") from error
    if INDEX not in names:
        raise DatasetError(f"{tar_path}: contains no {INDEX}; not an archive of a data set")


def _refuse(tar_path: Path, member: tarfile.TarInfo, seen: set[str]) -> None:
    """Raise DatasetError for anything `pack` would not have put there."""
    known = member.name == INDEX or _IMAGE_NAME.fullmatch(member.name)
    if not known or member.type != tarfile.REGTYPE or member.pax_headers:
        raise DatasetError(f"{tar_path}: contains {member.name!r}, which is not part of a data set")
    if member.name in seen:
        raise DatasetError(f"{tar_path}: contains {member.name} twice")
    if not 0 <= member.size <= (MAX_INDEX_BYTES if member.name == INDEX else MAX_FILE_BYTES):
        raise DatasetError(f"{tar_path}: {member.name} claims {member.size} bytes")
    if len(seen) >= MAX_FILES:
        raise DatasetError(f"{tar_path}: contains more than {MAX_FILES} files")


def _write(tar_path: Path, member: tarfile.TarInfo, source: IO[bytes], target: Path) -> None:
    """Copy one member and compare an image with the hash in its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), member.size
    with target.open("xb") as file:
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise DatasetError(f"{tar_path}: ends in the middle of {member.name}")
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
    if member.name != INDEX and target.stem != digest.hexdigest():
        raise DatasetError(f"{tar_path}: the content of {member.name} does not match its name")
