"""What a training leaves of what its methods look at: small files of JSON, gzipped, for people and browsers. Knows no
torch.

    photos.json.gz            {"format": "fgd-photos/1", "split": "val", "photos": [a photo, ...]}: once
    step-00000120.json.gz     {"format": "fgd-focus/1", "step", "epoch", "strides": {level: pixels}, "images": [...]}

A photo is {"position", "name", "width", "height", "boxes", "labels", "jpeg"}: its place in the split from 0, the size
and boxes (left, top, right, bottom) in pixels of the image as stored, the names of their classes, and a small JPEG in
base64. An image of a step is {"photo", "size", "padded", "shown"}: which photo it is, and (height, width) of the
network's input without and with its padding. What is shown is

    {"method", "name", "network", "level", "shape", "of", "low", "high", "by_magnitude", "values"}

network is "teacher", "student" or null: both are compared under it. shape is [height, width] of a map over the whole
padded input, or [channels]; `of` is the shape before it was made smaller. values are bytes in base64, 0 for low and 255
for high; where `by_magnitude` is set, 0 is nothing, and 1 to 255 are the logarithms from low to high.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from typing import Any

FOLDER = "focus"
"""In a training's folder."""
PHOTOS = "photos.json.gz"
MAX_BYTES = 300_000
"""Of a step's file."""
MAX_PHOTOS_BYTES = 2_000_000


def name_of(step: int | None) -> str:
    """None: of the photos."""
    return PHOTOS if step is None else f"step-{step:08d}.json.gz"


def packed(content: dict[str, Any]) -> bytes:
    """The same bytes for the same content."""
    return gzip.compress(json.dumps(content, separators=(",", ":"), allow_nan=False).encode(), 6, mtime=0)


def values(told: Mapping[str, Any]) -> list[float]:
    """The numbers of something that is shown, line by line; 0 for nothing."""
    low, high = told["low"], told["high"]
    coded = base64.b64decode(told["values"])
    if not told["by_magnitude"]:
        return [low + byte / 255 * (high - low) for byte in coded]
    if high <= 0:
        return [0.0] * len(coded)
    span = math.log(high / low)
    return [low * math.exp((byte - 1) / 254 * span) if byte else 0.0 for byte in coded]


def unpacked(file: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress(file))
    return content
