"""One image costs seconds at most, whatever its file is made of; an honest one notices nothing."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from PIL import Image as Pillow

from fgd.data import images
from fgd.data.images import BadImage, probe
from tests.unit.data.conftest import picture


def saved(image: Pillow.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: a few bytes each, and a walk over the picture."""
    jpeg = saved(Pillow.new("RGB", (1600, 1600)), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * scans + jpeg[-2:]


def run_lengths(width: int, height: int, body: bytes) -> bytes:
    """A BMP of RLE8."""
    start = 14 + 40 + 1024
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + bytes(1024) + body


def tags_that_share(size: int, tags: int) -> bytes:
    """A TIFF whose tags all point at the same bytes."""
    entries = [(256, 4, 1, 8), (257, 4, 1, 8)] + [(40_000 + n, 7, size, 8) for n in range(tags)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + table


SLOW = {
    "scans": many_scans(3000),
    "ends of lines": run_lengths(50_000, 200, b"\1\1\0\0" * 200),
    "empty steps": run_lengths(1000, 1000, b"\0\2\0\0" * 1_000_000),
    "plain text": b"P3\n2000 2000\n255\n" + b"1 " * 4_000_000,
    "empty markers": b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000,
}
NEVER = {
    "a wide row": run_lengths(10**7, 1, b"\1\1\0\0"),
    "comments": b"P3\n9 9\n255\n" + b"#\n" * 200,
    "shared bytes": tags_that_share(100_000, 100),
}


@pytest.mark.parametrize("name", SLOW)
def test_an_image_that_takes_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(images, "MAX_DECODE_S", 0.02)
    (tmp_path / "a").write_bytes(SLOW[name])
    with pytest.raises(BadImage, match=r"longer than 0\.02 s") as bad:
        probe(tmp_path / "a", "full")
    assert bad.value.code == "image_too_slow"


@pytest.mark.parametrize("name", NEVER)
def test_what_no_clock_would_stop_in_time_is_not_even_begun(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(NEVER[name])
    with pytest.raises(BadImage) as bad:
        probe(tmp_path / "a", "full")
    assert bad.value.code in ("image_too_slow", "image_broken")


@pytest.mark.parametrize(
    "content",
    [
        many_scans(30),
        saved(picture(), "TIFF", compression="jpeg"),
        run_lengths(4, 2, b"\4\1\0\0\4\2\0\1"),
        b"P3\n# made by hand\n2 1\n255\n1 2 3  4 5 6\n",
        *(saved(picture(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")),
    ],
)
def test_honest_files_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert probe(tmp_path / "a", "full").width > 1
