"""Small COCO folders that tests bend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}]


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Pillow.Image:
    """Noise: no two seeds have the same content."""
    return Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@dataclass
class CocoFolder:
    """Two 40x30 images with a cat and a dog in train, one with both in val; `layout` is where things go."""

    root: Path
    image_folder: str = "{split}2017"
    json_file: str = "annotations/instances_{split}2017.json"
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: int = 0

    def document(self, split: str) -> dict[str, Any]:
        empty = {"images": [], "annotations": [], "categories": [dict(c) for c in CATEGORIES]}
        return self.documents.setdefault(split, empty)

    def image_path(self, split: str, name: str) -> Path:
        path = self.root / self.image_folder.format(split=split) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add_image(self, split: str, name: str, width: int = 40, height: int = 30, **changes: Any) -> int:
        """Write a picture and list it; returns its id."""
        self.made += 1
        picture(width, height, self.made).save(self.image_path(split, name))
        document = self.document(split)
        image_id = len(document["images"])
        document["images"].append({"id": image_id, "file_name": name, "width": width, "height": height} | changes)
        return image_id

    def add_box(self, split: str, image_id: Any, bbox: Any, category_id: Any = 0, **changes: Any) -> None:
        annotations = self.document(split)["annotations"]
        entry = {"id": len(annotations), "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0}
        annotations.append(entry | changes)

    def write(self) -> Path:
        for split, document in self.documents.items():
            path = self.root / self.json_file.format(split=split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document))  # NaN and Infinity become tokens, as other tools write them
        return self.root


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., CocoFolder]:
    def make(**layout: str) -> CocoFolder:
        coco = CocoFolder(tmp_path / "coco", **layout)
        coco.add_box("train", coco.add_image("train", "a.png"), [1, 2, 10, 12], 0)
        coco.add_box("train", coco.add_image("train", "b.png"), [5, 5, 20, 20], 7)
        image_id = coco.add_image("val", "c.png")
        coco.add_box("val", image_id, [0, 0, 40, 30], 0)
        coco.add_box("val", image_id, [3, 3, 4, 4], 7)
        return coco

    return make


@pytest.fixture
def coco(make_coco: Callable[..., CocoFolder]) -> CocoFolder:
    return make_coco()
