"""Four real data sets through the real service: by folder, zip and curl; every defect named; each trains.

    python tests/studies/real_sets.py DATA --out runs/sets

DATA holds bccd (Pascal VOC), facemask and rbc (COCO), and pear (YOLO), as they were published. What the report of each
import says is compared with the counts of a reader of its own, in this file, which shares no code with the importer.
Then one epoch at 64 px is trained on each. Prints tables in Markdown; exits with 1 where two counts differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image as Picture

from tests.e2e.conftest import real_services
from tests.e2e.parts import ROOT, Service, environment, until

PATIENT_S = 1200.0
STUDENT = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64}
SCHEDULE = {"epochs": 1, "batch_size": 8, "min_size": 64, "max_size": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--imports", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    right = True
    print("| set | way | format | images train/val/test | boxes train/val/test | defects told | independent reader |")
    print("|---|---|---|---|---|---|---|")
    with real_services(out / "home", data) as service:
        trained = []
        for name, read in READERS.items():
            expected = read(data / name)
            for way, imported in ways(service, data / name, out).items():
                zipped = Counter(members_skipped=int(way != "folder" and bool(strange_files(data / name))))
                right &= tell(service, name, way, imported, replace(expected, defects=+(expected.defects + zipped)))
            if not arguments.imports:
                trained.append((name, train(service, imported)))
        print("\n| set | job | steps | AP after one epoch at 64 px |\n|---|---|---|---|")
        for name, job in trained:
            state, step, ap = ended(service, job)
            print(f"| {name} | {state} | {step} | {ap:.2f} |", flush=True)
            right &= state == "succeeded"
    sys.exit(not right)


# --- the service ----------------------------------------------------------------------------------------------


def ways(service: Service, folder: Path, out: Path) -> dict[str, str]:
    """Way -> id of the data set that was imported so."""
    url, name = str(service.http.base_url), folder.name
    zip = shutil.make_archive(str(out / name), "zip", folder)
    command = [sys.executable, "-m", "fgd.cli", "dataset", "add", name, zip, "--no-wait", "--json", "--url", url]
    added = subprocess.run(command, env=environment(out), cwd=ROOT, capture_output=True, text=True, check=True)
    json_type = ["-H", "Content-Type: application/json"]
    posted = curl([*json_type, "-d", json.dumps({"name": name}), f"{url}/v1/datasets"])
    curl(["-T", zip, "-H", "Content-Type: application/zip", f"{url}{posted['upload_url']}"])
    by_path = curl([*json_type, "-d", json.dumps({"name": name, "path": str(folder)}), f"{url}/v1/datasets"])
    return {"fgd dataset add ZIP": json.loads(added.stdout)["id"], "curl -T": posted["id"], "folder": by_path["id"]}


def curl(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def tell(service: Service, name: str, way: str, dataset: str, expected: Counted) -> bool:
    """A row of the table; whether the report says what the reader of this file counted."""
    url = f"/v1/datasets/{dataset}"
    until(lambda: service.http.get(url).json()["state"] != "verifying", PATIENT_S, "the import")
    report = service.http.get(f"{url}/report").json()
    told, splits = report["defect_counts"], report["splits"]
    images = {split: counts["images"] for split, counts in splits.items()}
    boxes = {split: counts["boxes"] for split, counts in splits.items()}
    same = (images, boxes, told) == (expected.images, expected.boxes, dict(expected.defects))
    print(
        f"| {name} | {way} | {report['format']} | {'/'.join(map(str, images.values()))} | "
        f"{'/'.join(map(str, boxes.values()))} | {words(told)} | "
        f"{'the same' if same else f'{expected.images} {expected.boxes} {words(expected.defects)}'} |",
        flush=True,
    )
    return same and len(report["defects"]) == sum(told.values())


def words(defects: dict[str, int]) -> str:
    return ", ".join(f"{code} {count}" for code, count in sorted(defects.items())) or "none"


def train(service: Service, dataset: str) -> str:
    body = {
        "name": "one epoch", "teacher": None, "methods": [], "dataset": dataset, "student": STUDENT,
        "schedule": SCHEDULE, "resources": {"threads": 1},
    }  # fmt: skip
    answer = service.http.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def ended(service: Service, job: str) -> tuple[str, int, float]:
    until(lambda: service.job(job)["state"] not in ("queued", "running"), PATIENT_S, "the training")
    view = service.job(job)
    latest = service.http.get(f"/v1/jobs/{job}/metrics/latest").json()["items"]
    ap = next((each["value"] for each in latest if (each["name"], each["split"]) == ("ap", "val")), None)
    return view["state"], (view["progress"] or {}).get("step", 0), float("nan") if ap is None else ap


# --- a reader of its own --------------------------------------------------------------------------------------


@dataclass
class Counted:
    images: dict[str, int] = field(default_factory=dict)
    boxes: dict[str, int] = field(default_factory=dict)
    defects: Counter[str] = field(default_factory=Counter)
    seen: dict[str, str] = field(default_factory=dict)
    """sha256 of an image -> its first split."""
    trained: set[str] = field(default_factory=set)
    """Classes with a box in train."""

    def image(self, split: str, file: Path, size: tuple[int, int] | None, boxes: list[tuple[str, Any]]) -> None:
        """boxes: (class, xyxy in pixels)."""
        self.images[split] = self.images.get(split, 0) + 1
        with Picture.open(file) as picture:
            picture.load()
            width, height = picture.size
            self.defects["exif_rotated"] += picture.getexif().get(0x0112, 1) not in (0, 1)
            self.defects["colour_converted"] += picture.mode != "RGB"
        self.defects["size_differs"] += size not in (None, (width, height))
        first = self.seen.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), f"{split} {file}")
        if first != f"{split} {file}":
            self.defects["image_repeated" if first.startswith(f"{split} ") else "image_in_two_splits"] += 1
        self.defects["image_unlabelled"] += not boxes
        kept = set()
        for name, (x1, y1, x2, y2) in boxes:
            if x2 <= x1 or y2 <= y1:
                self.defects["zero_area_box"] += 1
            elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
                self.defects["box_outside"] += 1
            else:
                self.defects["box_clipped"] += max(-x1, -y1, x2 - width, y2 - height) > 1
                box = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
                self.defects["box_duplicate"] += (name, box) in kept
                kept.add((name, box))
                if split == "train":
                    self.trained.add(name)
        self.boxes[split] = self.boxes.get(split, 0) + len(kept)

    def done(self, names: set[str], unlisted: int) -> Counted:
        self.defects["class_unused"] = len(names - self.trained)
        self.defects["image_unlisted"] = unlisted
        self.defects = +self.defects  # without zeros
        return self


def strange_files(root: Path) -> list[Path]:
    """What no data set needs, such as a licence: it is not taken out of a zip, which is told once."""
    wanted = (".jpg", ".jpeg", ".png", ".json", ".xml", ".txt", ".yaml")
    return [file for file in root.rglob("*") if file.is_file() and file.suffix.lower() not in wanted]


def read_voc(root: Path) -> Counted:
    counted = Counted()
    listed: set[str] = set()
    names: set[str] = set()
    for split in ("train", "val", "test"):
        for stem in (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            listed.add(stem)
            tree = ElementTree.parse(root / "Annotations" / f"{stem}.xml").getroot()
            size = tuple(int(tree.findtext(f"size/{side}") or 0) for side in ("width", "height"))
            boxes = []
            for thing in tree.iter("object"):
                x1, y1, x2, y2 = (
                    float(thing.findtext(f"bndbox/{key}") or 0) for key in ("xmin", "ymin", "xmax", "ymax")
                )
                boxes.append((thing.findtext("name") or "", (x1 - 1, y1 - 1, x2, y2)))
            names |= {name for name, _ in boxes}
            counted.image(split, root / "JPEGImages" / f"{stem}.jpg", size, boxes)  # type: ignore[arg-type]
    unlisted = sum(file.stem not in listed for file in (root / "JPEGImages").iterdir())
    return counted.done(names, unlisted)


def read_coco(root: Path, files: dict[str, tuple[str, str]]) -> Counted:
    """files: split -> annotations and folder of images."""
    counted = Counted()
    listed, names = set(), set()
    for split, (listing, folder) in files.items():
        content = json.loads((root / listing).read_text())
        classes = {category["id"]: category["name"] for category in content["categories"]}
        names |= set(classes.values())
        ids = [image["id"] for image in content["images"]]
        counted.defects["image_id_duplicate"] += len(ids) - len(set(ids))
        numbers = [each["id"] for each in content["annotations"]]
        counted.defects["annotation_id_duplicate"] += len(numbers) - len(set(numbers))
        counted.defects["annotation_unknown_image"] += sum(a["image_id"] not in ids for a in content["annotations"])
        boxes: dict[int, list[tuple[str, Any]]] = {id: [] for id in ids}
        for each in content["annotations"]:
            x, y, w, h = each["bbox"]
            boxes[each["image_id"]].append((classes[each["category_id"]], (x, y, x + w, y + h)))
        for image in content["images"]:
            file = root / folder / image["file_name"]
            listed.add(file)
            if not file.exists():
                counted.defects["image_missing"] += 1
                continue
            counted.image(split, file, (image["width"], image["height"]), boxes[image["id"]])
    folders = {root / folder for _, folder in files.values()}
    there = {file for folder in folders for file in folder.iterdir() if file.suffix in (".jpg", ".jpeg", ".png")}
    return counted.done(names, len(there - listed))


def read_yolo(root: Path) -> Counted:
    counted = Counted()
    for split in ("train", "val"):
        for file in sorted((root / "images" / split).iterdir()):
            with Picture.open(file) as picture:
                width, height = picture.size
            text = root / "labels" / split / f"{file.stem}.txt"
            boxes = []
            for line in text.read_text().splitlines() if text.exists() else []:
                _, x, y, w, h = map(float, line.split())
                corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
                boxes.append(("pear", corners))
            counted.image(split, file, None, boxes)
    return counted.done({"pear"}, 0)


READERS = {
    "bccd": read_voc,
    "facemask": lambda root: read_coco(
        root, {split: (f"annotations/custom_{split}.json", f"{split}2017") for split in ("train", "val")}
    ),
    "rbc": lambda root: read_coco(
        root,
        {
            split: (f"{folder}/_annotations.coco.json", folder)
            for split, folder in (("train", "train"), ("val", "valid"), ("test", "test"))
        },
    ),
    "pear": read_yolo,
}


if __name__ == "__main__":
    main()
