"""The demo's data: real handwritten digits composed over regions of real photographs, written as COCO. No network.

    python -m fgd.data.digits FOLDER

Digits are scikit-learn's 8x8 scans (UCI optical digits), photographs its two sample images. The scene is composed:
it is not a photograph of digits. Train, val and test share neither a digit nor a pixel of a photograph;
`provenance.jsonl` says which digits and which region each image was made of. Same arguments, same files.
Knows no torch.
"""

# H x W pixels; a box is (x1, y1, x2, y2)

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFilter

from fgd.errors import DatasetError

Pixels = NDArray[np.float32]
Region = tuple[int, int, int, int]

SPLITS = ("train", "val", "test")
COUNTS: Mapping[str, int] = {"train": 400, "val": 100, "test": 200}
CLASSES = ("0", "3", "4", "7")
"""Four that stay apart at eight by eight pixels, mirrored too; ten classes are too hard for a few minutes."""

_PHOTOS = ("china.jpg", "flower.jpg")
_STRIPS = {"train": (0.0, 0.52), "val": (0.52, 0.74), "test": (0.74, 1.0)}
"""Share of a photograph's width, left to right, that a split may crop from."""
_CROP_PX = (96, 138)
"""Side of the square cut from a photograph; the same in all splits, and it fits the narrowest strip (141 px)."""
_DIGITS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
"""Share of each class's shuffled scans."""
_INK = 0.35
"""Opacity from which a pixel counts as visible ink; boxes are tight around those."""
_MAX_IOU = 0.15
_MAX_COVERED = 0.3
"""Of the smaller of two boxes; a small digit inside a large one has a small IoU."""
_LIGHT, _DARK = (215.0, 255.0), (10.0, 50.0)
"""Grey levels, of 255, of the ink and of the rim around it."""
_RIM_PX = 2
_TRIES = 60


@dataclass(frozen=True)
class _Scan:
    number: int
    """Row of scikit-learn's table."""
    label: int
    """1..K."""
    ink_HW: Pixels
    """8x8, 0..1."""


@dataclass(frozen=True)
class _Strip:
    """The part of a photograph that belongs to a split."""

    photo: str
    left: int
    """Its first column in the photograph."""
    pixels_HWC: NDArray[np.uint8]


@dataclass(frozen=True)
class _Sources:
    """What one split is made of."""

    strips: tuple[_Strip, ...]
    scans: tuple[tuple[_Scan, ...], ...]
    """By class."""


def compose(
    folder: Path,
    *,
    seed: int = 0,
    counts: Mapping[str, int] = COUNTS,
    size: int = 96,
    classes: Sequence[str] = CLASSES,
    box_px: tuple[int, int] = (24, 52),
    per_image: tuple[int, int] = (2, 4),
) -> Path:
    """Write the data set and return its folder; one that is already there with the same arguments is left alone.

    counts: images of each split. size: side of an image, pixels. box_px: smallest and largest longer side of a box.
    per_image: fewest and most digits; a crowded image may miss one. Raises DatasetError if the folder holds something
    else or the arguments make no sense. The folder appears whole or not at all, whenever the program is ended.
    """
    if not set(classes) <= set("0123456789") or len(set(classes)) != len(classes) or not classes:
        raise DatasetError(f"classes must be different digits, got {list(classes)}")
    if not 8 <= box_px[0] < box_px[1] <= size:
        raise DatasetError(f"box_px must rise, from 8 at least to the image's {size} at most, got {list(box_px)}")
    recipe = {
        "drawing": 2,  # raise it when the same arguments give other pixels
        "seed": seed,
        "counts": {split: counts[split] for split in SPLITS},
        "size": size,
        "classes": list(classes),
        "box_px": list(box_px),
        "per_image": list(per_image),
    }
    if _holds(folder, recipe):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        partial.chmod(0o755)
        _write(partial, recipe)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _holds(folder: Path, recipe: Mapping[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        if json.loads((folder / "provenance.jsonl").read_bytes())["recipe"] == recipe:
            return True
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DatasetError(f"{folder} contains something else; remove it or name another folder")


def _write(folder: Path, recipe: Mapping[str, Any]) -> None:
    (folder / "annotations").mkdir()
    made_of: dict[str, Any] = {}
    for number, split in enumerate(SPLITS):
        (folder / split).mkdir()
        sources = _sources(split, recipe["classes"], recipe["seed"])
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in range(1, recipe["counts"][split] + 1):
            rng = np.random.Generator(np.random.PCG64([recipe["seed"], number, image_id]))
            scene = _compose_one(sources, recipe, rng)
            name = f"{image_id:06d}.jpg"
            Pillow.fromarray(scene.pixels_HWC).save(folder / split / name, quality=95, subsampling=0)
            images.append({"id": image_id, "file_name": name, "width": recipe["size"], "height": recipe["size"]})
            for scan, (x1, y1, x2, y2) in zip(scene.scans, scene.boxes, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": scan.label,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
            made_of[f"{split}/{name}"] = {
                "photo": scene.photo,
                "region": scene.region,
                "digits": [scan.number for scan in scene.scans],
            }
        categories = [{"id": label, "name": name} for label, name in enumerate(recipe["classes"], start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    about = "composed: scikit-learn's load_digits over regions of load_sample_images; boxes are x1, y1, x2, y2"
    (folder / "provenance.jsonl").write_text(json.dumps({"about": about, "recipe": recipe, "made_of": made_of}))


# --- sources --------------------------------------------------------------------------------------------------


def _sources(split: str, classes: Sequence[str], seed: int) -> _Sources:
    # Imported here: scikit-learn takes a second, which `--help` and a finished folder need not wait for.
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.Generator(np.random.PCG64([seed, len(SPLITS)]))
    by_class = []
    for label, name in enumerate(classes, start=1):
        rows = rng.permutation(np.flatnonzero(digits.target == int(name)))
        low, high = (round(share * len(rows)) for share in _DIGITS[split])
        chosen = rows[low:high]
        by_class.append(tuple(_Scan(int(r), label, (digits.images[r] / 16).astype(np.float32)) for r in chosen))
    return _Sources(_strips(split), tuple(by_class))


def _strips(split: str) -> tuple[_Strip, ...]:
    from sklearn.datasets import load_sample_image

    strips = []
    for name in _PHOTOS:
        pixels_HWC = load_sample_image(name)
        left, right = (round(share * pixels_HWC.shape[1]) for share in _STRIPS[split])
        strips.append(_Strip(name, left, pixels_HWC[:, left:right]))
    return tuple(strips)


# --- one scene ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    pixels_HWC: NDArray[np.uint8]
    photo: str
    region: Region
    """Of the photograph."""
    boxes: list[Region]
    scans: list[_Scan]


def _compose_one(sources: _Sources, recipe: Mapping[str, Any], rng: np.random.Generator) -> _Scene:
    size = recipe["size"]
    canvas_HWC, photo, region = _background(sources.strips, size, rng)
    boxes: list[Region] = []
    scans: list[_Scan] = []
    fewest, most = recipe["per_image"]
    for _ in range(int(rng.integers(fewest, most + 1))):
        of_class = sources.scans[int(rng.integers(len(sources.scans)))]
        scan = of_class[int(rng.integers(len(of_class)))]
        low, high = recipe["box_px"]
        opacity_HW = _opacity(scan.ink_HW, float(np.exp(rng.uniform(np.log(low), np.log(high)))), (low, high), rng)
        place = _free_place(opacity_HW.shape, size, boxes, rng)
        if place:
            _write_on(canvas_HWC, opacity_HW, place, rng)
            boxes.append(place)
            scans.append(scan)
    return _Scene(np.rint(canvas_HWC).clip(0, 255).astype(np.uint8), photo, region, boxes, scans)


def _background(strips: Sequence[_Strip], size: int, rng: np.random.Generator) -> tuple[Pixels, str, Region]:
    """A square of a photograph at `size`, mirrored half the time, a little darker or lighter."""
    strip = strips[int(rng.integers(len(strips)))]
    height, width = strip.pixels_HWC.shape[:2]
    side = int(rng.integers(_CROP_PX[0], _CROP_PX[1] + 1))
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    crop = Pillow.fromarray(strip.pixels_HWC[y : y + side, x : x + side])
    canvas_HWC = np.asarray(crop.resize((size, size), Pillow.Resampling.BICUBIC), dtype=np.float32)
    if rng.random() < 0.5:
        canvas_HWC = canvas_HWC[:, ::-1]
    region = (strip.left + x, y, strip.left + x + side, y + side)
    return np.ascontiguousarray(canvas_HWC * np.float32(rng.uniform(0.8, 1.1))), strip.photo, region


def _opacity(ink_HW: Pixels, longer_px: float, limits: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """0..1, cut tight around the visible ink, whose longer side is about `longer_px` and within `limits`."""
    scale = 8
    large = Pillow.fromarray(np.pad(ink_HW, 2)).resize((12 * scale, 12 * scale), Pillow.Resampling.BICUBIC)
    turned = large.rotate(float(rng.uniform(-12, 12)), Pillow.Resampling.BICUBIC)
    upright_HW = np.asarray(turned, dtype=np.float32)
    # Bicubic enlargement leaves wide grey flanks; the steeper ramp gives a pen's stroke with a soft edge.
    ink = _tight(np.clip((upright_HW - 0.3) / 0.4, 0, 1))
    height, width = ink.shape
    factor = longer_px / max(height, width)
    narrow = float(rng.uniform(0.85, 1.15))
    sides = [round(side * factor) for side in (width * narrow, height)]
    shrink = min(1.0, limits[1] / max(sides))
    grow = max(1.0, (limits[0] + 1) / max(sides))
    target = (max(4, round(sides[0] * shrink * grow)), max(4, round(sides[1] * shrink * grow)))
    resized = Pillow.fromarray(ink).resize(target, Pillow.Resampling.BICUBIC)
    return _tight(np.asarray(resized, dtype=np.float32).clip(0, 1))


def _tight(opacity_HW: Pixels) -> Pixels:
    rows = np.flatnonzero((opacity_HW > _INK).any(axis=1))
    columns = np.flatnonzero((opacity_HW > _INK).any(axis=0))
    return opacity_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _free_place(shape: tuple[int, ...], size: int, taken: Sequence[Region], rng: np.random.Generator) -> Region | None:
    """A place inside the image that hardly covers a box already there; None if a few tries find none."""
    height, width = shape
    for _ in range(_TRIES):
        x, y = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        place = (x, y, x + width, y + height)
        if all(_apart(place, other) for other in taken):
            return place
    return None


def _apart(a: Region, b: Region) -> bool:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared < _MAX_IOU * (sum(areas) - shared) and shared < _MAX_COVERED * min(areas)


def _write_on(canvas_HWC: Pixels, opacity_HW: Pixels, place: Region, rng: np.random.Generator) -> None:
    """Blend light ink with a dark rim into the canvas, in place: legible on any background, as subtitles are."""
    height, width = canvas_HWC.shape[:2]
    shape_HW = np.zeros((height, width), dtype=np.float32)
    shape_HW[place[1] : place[3], place[0] : place[2]] = opacity_HW
    rim = Pillow.fromarray(np.rint(shape_HW * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * _RIM_PX + 1))
    rim_HW = np.asarray(rim.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32) / 255
    dark, light = (np.float32(rng.uniform(*shades)) for shades in (_DARK, _LIGHT))
    tint = rng.uniform(-12, 12, 3).astype(np.float32)
    for alpha_HW, colour in ((rim_HW * np.float32(0.85), dark), (shape_HW, light)):
        alpha_HW1 = alpha_HW[:, :, None]
        canvas_HWC[:] = canvas_HWC * (1 - alpha_HW1) + np.clip(colour + tint, 0, 255) * alpha_HW1


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m fgd.data.digits FOLDER")
    print(compose(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
