"""Reads image files that strangers made: bounded, by content and not by name. Knows no torch.

Pixels are the stored matrix, as `PIL.Image.open(path).convert("RGB")` gives it: an EXIF orientation is *not*
applied, here and in the loader alike, because pycocotools and plain torchvision do not apply it either.
Alpha is dropped, grey, palette and CMYK become RGB, of an animation the first frame counts.
"""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image as Pillow

MAX_PIXELS = 100_000_000
"""Of one image. RGB bytes of that many take 300 MB."""
MAX_BYTES = 512 * 2**20
"""Of one image file: MAX_PIXELS in RGB, not compressed at all, are 300 MB."""
MAX_DECODE_S = 10.0
"""Seconds of the processor for one image: a picture of MAX_PIXELS takes one or two."""
MAX_READS = 4
"""How many times the bytes of a file may be read: tags can point at the same ones over and over."""
_SPARE_READ = 2**20
_FEW_SCANS, _PIECE_OF_SCANS = 20, 4096
"""A JPEG of more scans is given to its decoder in pieces of so many bytes: 140 can be a scan of the whole picture."""
MAX_TIFF_SCANS = 50
"""Of one strip or tile that is a JPEG."""
MAX_RLE_WIDTH = 65_535
"""Pixels. Pillow fills the rest of a row of such a BMP one at a time."""
MAX_COMMENTS = 100
"""In a PPM that is text: Pillow copies the block it reads for each of them."""

_SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "GIF": ".gif",
    "PPM": ".ppm",
}
"""Formats we open, and what their files are called in the store. Others (EPS, PDF, ...) start foreign programs."""
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
"""Eight bits a channel. Pillow clips deeper images to 255 instead of scaling them, which turns them white."""
_EXIF_ORIENTATION = 0x0112
_IN_MP4 = dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC") | (
    dict.fromkeys((b"avif", b"avis"), "AVIF")
)
"""Kinds of pictures in the container of videos."""
_BEGINNINGS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"GIF8",
    *(b"P%d" % kind for kind in range(1, 7)),
)
"""Of the files that are opened, besides WebP."""
_OTHERS = {
    b"%PDF": "a PDF",
    b"8BPS": "a picture of Photoshop",
    b"\x00\x00\x00\x0cjP  ": "a picture in JPEG 2000",
    b"\xff\x0a": "a picture in JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "a picture in JPEG XL",
    b"<svg": "a drawing in SVG",
    b"PK\x03\x04": "an archive",
    b"v/1\x01": "a picture in OpenEXR",
}
"""First bytes -> what they begin."""
_STRIPS = (273, 324)
"""TIFF's tags for where its strips and its tiles begin."""
_RLE = (1, 2)
"""Compressions of a BMP."""
_JPEG_SCAN = b"\xff\xda"


UNREADABLE = "image_unreadable"
"""The file system's fault, not the file's."""


class BadImage(Exception):
    """An image file that cannot be used; `code` is the defect's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class _TooMuchWork(Exception):
    """Of one image, in words."""


class _Measured(io.BytesIO):
    """The bytes of an image, given out until its time is over: every decoder comes back for more, sooner or later."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._until = time.thread_time() + MAX_DECODE_S
        self._left = MAX_READS * len(content) + _SPARE_READ

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self._left -= len(piece)
        if time.thread_time() > self._until:
            raise _TooMuchWork(f"it takes longer than {MAX_DECODE_S:g} s to decode")
        if self._left < 0:
            raise _TooMuchWork(f"its bytes are read more than {MAX_READS} times")
        return piece


@dataclass(frozen=True)
class Probe:
    """What the file itself says."""

    sha256: str
    suffix: str
    width: int
    height: int
    mode: str
    """Pillow's; "RGB" needs no conversion."""
    orientation: int
    """EXIF's 1..8; 1 is upright, 5 to 8 swap width and height."""

    @property
    def stored_name(self) -> str:
        return f"images/{self.sha256[:2]}/{self.sha256}{self.suffix}"


def refuse_other_files(content: bytes) -> None:
    """Raises BadImage for what does not begin as a picture that is read here. No decoder is asked."""
    in_riff = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    if not in_riff and not content.startswith(_BEGINNINGS):
        raise _not_an_image(content)


def probe(path: Path, verify: Literal["full", "headers"]) -> Probe:
    """Hash the file and read its header; "full" also decodes it. Raises BadImage."""
    content = _content(path)
    with _opened(content) as image:
        if verify == "full":
            _decoded(image)
        return Probe(
            sha256=hashlib.sha256(content).hexdigest(),
            suffix=_SUFFIXES[image.format or ""],
            width=image.width,
            height=image.height,
            mode=image.mode,
            orientation=_orientation(image),
        )


def decode(path: Path) -> Pillow.Image:
    """The pixels as RGB. Raises BadImage."""
    with _opened(_content(path)) as image:
        return _decoded(image)


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadImage("image_too_large", f"the file is larger than {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(UNREADABLE, f"cannot be read: {error.strerror or error}") from error


def _opened(content: bytes) -> Pillow.Image:
    try:
        image = Pillow.open(_Measured(content), formats=tuple(f for f in _SUFFIXES if f != "MPO"))
    except MemoryError:
        raise  # says something about the host, not about the file
    except _TooMuchWork as error:
        raise BadImage("image_too_slow", f"{error}; save it again") from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise BadImage("image_too_large", str(error)) from error
    except Exception as error:  # a decoder fed nonsense raises whatever it likes (struct.error, SyntaxError, ...)
        raise _not_an_image(content) from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage("image_too_large", f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
    if why := _costly(image, content):
        raise BadImage("image_too_slow", f"{why}; save it again")
    if image.mode not in _MODES:
        raise BadImage("image_unsupported", f"pixels of {_depth(image.mode)}; convert it to 8 bits a channel")
    return image


def _costly(image: Pillow.Image, content: bytes) -> str | None:
    """What makes its decoder work long without coming back for more; None if it will come."""
    if image.format in ("JPEG", "MPO") and content.count(_JPEG_SCAN) > _FEW_SCANS:
        image.decodermaxblock = _PIECE_OF_SCANS  # type: ignore[attr-defined]  # ImageFile's, not Image's
    if image.format == "TIFF" and image.info.get("compression") == "jpeg":
        begins = [image.tag_v2.get(tag) for tag in _STRIPS]  # type: ignore[attr-defined]
        strips = max(len(places) if isinstance(places, tuple) else 1 for places in begins)
        if content.count(_JPEG_SCAN) > MAX_TIFF_SCANS * strips:
            return f"a JPEG inside has more than {MAX_TIFF_SCANS} scans"
    if image.format == "BMP" and image.width > MAX_RLE_WIDTH and image.info.get("compression") in _RLE:
        return f"it is compressed and wider than {MAX_RLE_WIDTH} pixels"
    if image.format == "PPM" and content[:2] in (b"P1", b"P2", b"P3") and content.count(b"#") > MAX_COMMENTS:
        return f"it has more than {MAX_COMMENTS} comments"
    return None


def _depth(mode: str) -> str:
    """Pillow's mode, for people."""
    kind = "16 bits a channel" if mode.startswith("I;16") else {"I": "32 bits a channel", "F": "fractions"}.get(mode)
    return f"{kind} (mode {mode})" if kind else f"mode {mode}"


def _not_an_image(content: bytes) -> BadImage:
    """By its first bytes, what it is instead and what to do."""
    head = content[:256].lstrip().lower()
    if not content:
        return BadImage("image_broken", "the file is empty; copy it again")
    if content[4:8] == b"ftyp":
        kind = _IN_MP4.get(content[8:12])
        if kind is None:
            return BadImage("image_unsupported", "a video, not an image; save its frames as JPEG")
        return BadImage("image_unsupported", f"a picture in {kind}, which is not read; convert it to JPEG")
    if head.startswith(b"version https://git-lfs"):
        return BadImage("image_broken", "a Git LFS pointer, not the image; run git lfs pull and send it again")
    if head.startswith((b"<!doctype html", b"<html")):
        return BadImage("image_broken", "a web page, not an image: its download failed; download it again")
    found = next((what for magic, what in _OTHERS.items() if content.startswith(magic)), None)
    if found:
        return BadImage("image_unsupported", f"{found}, which is not read; convert it to JPEG or PNG")
    return BadImage("image_broken", "not an image in a known format (JPEG, PNG, WebP, BMP, TIFF, GIF)")


def _decoded(image: Pillow.Image) -> Pillow.Image:
    try:
        # By way of RGBA: Pillow warns about palettes with transparency otherwise. The colours are the same.
        source = image.convert("RGBA") if image.mode in ("P", "PA") and "transparency" in image.info else image
        return source.convert("RGB")
    except MemoryError:
        raise  # says something about the host, not about the file
    except _TooMuchWork as error:
        raise BadImage("image_too_slow", f"{error}; save it again") from error
    except Exception as error:  # as above
        raise BadImage("image_broken", f"cannot be decoded: {error}") from error


def _orientation(image: Pillow.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself, their size included
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a mangled EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
