"""Pictures whose files say that they are to be turned, made to be shown as they are stored."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image as Pillow
from PIL import ImageOps

from fgd.data.images import probe
from fgd.data.orientation import unturned
from tests.unit.data.conftest import picture


def turned(kind: str, orientation: int = 6, order: str = "<") -> bytes:
    exif = Pillow.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112], exif[0x0131] = "maker", orientation, "software"
    made = io.BytesIO()
    picture().save(made, kind, exif=exif)
    return made.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_only_the_orientation_changes(kind: str, order: str) -> None:
    before = turned(kind, order=order)
    after = unturned(before)
    shown = Pillow.open(io.BytesIO(after))
    assert shown.getexif()[0x0112] == 1
    assert shown.getexif()[0x010F] == "maker"
    assert ImageOps.exif_transpose(shown).tobytes() == Pillow.open(io.BytesIO(before)).tobytes()
    assert len(after) == len(before)
    assert sum(a != b for a, b in zip(after, before, strict=True)) <= (6 if kind == "PNG" else 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_upright_pictures_stay_as_they_are(kind: str) -> None:
    made = io.BytesIO()
    picture().save(made, kind)
    assert unturned(made.getvalue()) == made.getvalue()


def test_damaged_files_are_survived() -> None:
    rng = random.Random(0)
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = turned(kind)
        for _ in range(300):
            content = bytearray(whole[: rng.randint(0, len(whole))])
            for _ in range(rng.randint(0, 8)):
                if content:
                    content[rng.randrange(min(len(content), 200))] = rng.randrange(256)
            assert len(unturned(bytes(content))) == len(content)


@pytest.mark.parametrize("verify", ["full", "headers"])
def test_tiff_is_turned_by_pillow_and_counts_as_upright(tmp_path: object, verify: str) -> None:
    path = tmp_path / "a.tif"  # type: ignore[operator]
    path.write_bytes(turned("TIFF"))
    found = probe(path, verify)  # type: ignore[arg-type]
    assert (found.width, found.height, found.orientation) == (30, 40, 1)
