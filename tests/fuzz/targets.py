"""What is fuzzed: where an input comes from, how it is changed, what is done with it. True: taken; False: refused.

Whatever else is raised is a fault of ours. The corpora are made here, small and sound, so that changes come deep.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import yaml
from PIL import Image
from pydantic import BaseModel, ValidationError

from api.core.errors import ServiceError
from api.core.request_bodies import SubmitDataset, UploadModel
from api.core.rows import cursor
from api.http import digests, etag, negotiate, ranges
from fgd import weights_file
from fgd.data import formats, images, zips
from fgd.errors import FGDError, UserError
from fgd.presets import resolve
from fgd.recipe import Recipe
from fgd.spec import SubmitJob
from fgd.stored import stored_recipe
from fgd.text import strict_json
from fgd.text.pointers import faults
from tests.fuzz.mutator import change_bytes, change_json, change_name, change_value

Files = dict[str, bytes]
"""A data set: name -> content."""


@dataclass(frozen=True)
class Target:
    name: str
    corpus: Sequence[Any]
    change: Callable[[Random, Any], Any]
    run: Callable[[Any, Path], bool]
    """Of the input and an empty folder."""


# --- bodies -----------------------------------------------------------------------------------------------------

ID = "0123456789abcdef" * 2
JOB = {
    "name": "cells", "dataset": f"ds_{ID}", "teacher": {"model": f"mdl_{ID}"},
    "student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64, "weights": "none", "inherit": None},
    "methods": [{"kind": "fgd", "alpha": 0.001}, {"kind": "mimic"}],
    "schedule": {"epochs": 2, "batch_size": 2, "min_size": 64, "max_size": 96},
    "resources": {"device": "cpu", "threads": 1}, "limits": {"max_retries": 1}, "priority": 3,
    "metadata": {"team": "a"}, "seed": 7,
}  # fmt: skip
DETECTOR = {"kind": "retinanet", "backbone": "resnet18", "fpn_channels": 64}
MODEL = {"name": "m", "detector": DETECTOR, "classes": ["a", "b"], "min_size": 64, "max_size": 96}
DATASET = {"name": "d", "format": "coco", "path": "/data/d", "verify": "full", "val_fraction": 0.1, "group_by": "none"}
WORDS = (f"job_{ID}", f"ds_{ID}", {"job": f"job_{ID}"}, "fcos", "retinanet", "faster_rcnn", "resnet50", "mimic", "auto")


def body(name: str, kind: type[BaseModel], sound: dict[str, Any]) -> Target:
    def run(content: bytes, _: Path) -> bool:
        try:
            parsed = strict_json.parse(content)
        except strict_json.NotJSON:
            return False
        try:
            checked = kind.model_validate(parsed)
            if isinstance(checked, SubmitJob):
                resolve(checked.spec())
        except ValidationError as error:
            told = faults([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()], parsed)
            assert told, "a refusal names what is wrong"
            json.dumps([fault.detail for fault in told]).encode()
            return False
        except UserError:
            return False
        checked.model_dump_json()
        return True

    return Target(name, [json.dumps(sound).encode()], lambda rng, item: change_json(rng, item, WORDS), run)


def recipe(content: bytes, _: Path) -> bool:
    try:
        return isinstance(stored_recipe(content), Recipe)
    except (ValidationError, UserError, strict_json.NotJSON):
        return False


# --- data sets --------------------------------------------------------------------------------------------------


def picture(seed: int, kind: str = "PNG", mode: str = "RGB", **how: Any) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (16, 12), Random(seed).randbytes(16 * 12 * 3)).convert(mode).save(file, kind, **how)
    return file.getvalue()


def coco_files() -> Files:
    files: Files = {}
    for seed, split in enumerate(("train", "val")):
        files[f"{split}/a.png"], files[f"{split}/b.png"] = picture(seed), picture(seed + 9)
        content = {
            "info": {"year": 2024},
            "images": [{"id": n, "file_name": f"{name}.png", "width": 16, "height": 12} for n, name in enumerate("ab")],
            "annotations": [
                {"id": n, "image_id": n % 2, "category_id": n % 2, "bbox": [1, 2, 8.5, 9], "iscrowd": 0, "area": 72,
                 "segmentation": [[1, 2, 9, 2, 9, 9]]}
                for n in range(4)
            ],
            "categories": [{"id": 0, "name": "cat", "supercategory": "x"}, {"id": 1, "name": "dog"}],
        }  # fmt: skip
        files[f"annotations/instances_{split}.json"] = json.dumps(content).encode()
    return files


def yolo_files() -> Files:
    plan = {"path": ".", "train": "images/train", "val": ["images/val"], "names": {0: "cat", 1: "dog"}, "nc": 2}
    files: Files = {"data.yaml": yaml.safe_dump(plan).encode()}
    for seed, split in enumerate(("train", "val")):
        for name in "ab":
            files[f"images/{split}/{name}.png"] = picture(seed + ord(name))
            files[f"labels/{split}/{name}.txt"] = b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.1 0.2 0.2\n"
    return files


def voc_files() -> Files:
    files: Files = {}
    for seed, name in enumerate("abcd"):
        files[f"JPEGImages/{name}.png"] = picture(seed)
        files[f"Annotations/{name}.xml"] = (
            f"<annotation><folder>x</folder><filename>{name}.png</filename><size><width>16</width><height>12</height>"
            "<depth>3</depth></size><object><name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3"
            "</ymin><xmax>9</xmax><ymax>10</ymax></bndbox></object></annotation>"
        ).encode()
    files["ImageSets/Main/train.txt"], files["ImageSets/Main/val.txt"] = b"a\nb\n", b"c\nd\n"
    return files


FRONT = {
    "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*"}]}],
    "dataset_info": {"features": [{"name": "image", "dtype": "image"}, {"name": "objects", "sequence": [
        {"name": "category", "dtype": {"class_label": {"names": {"0": "cat", "1": "dog"}}}},
        {"name": "bbox", "sequence": "float32", "length": 4}]}]},
}  # fmt: skip


def card_files() -> Files:
    files: Files = {"README.md": f"---\n{yaml.safe_dump(FRONT)}---\n# cells\n".encode()}
    for seed, split in enumerate(("train", "validation")):
        rows = []
        for name in "ab":
            files[f"{split}/{name}.png"] = picture(seed + ord(name))
            rows.append({"file_name": f"{name}.png", "objects": {"bbox": [[1, 2, 8, 9]], "category": [1]}})
        files[f"{split}/metadata.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
    return files


def parquet_files() -> Files:
    """Made by another process: pyarrow has threads, and those do not come along into a child."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_parquet_files).result()


def _parquet_files() -> Files:
    import pyarrow as pa
    from pyarrow import parquet as pq

    files: Files = {}
    for seed, split in enumerate(("train", "validation")):
        rows = [
            {"image": {"bytes": picture(seed + n), "path": f"{n}.png"}, "objects": {"bbox": [[1.0, 2.0, 8.0, 9.0]],
             "category": [n % 2]}} for n in range(3)
        ]  # fmt: skip
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), table, compression=("snappy", "zstd")[seed])
        files[f"data/{split}-00000-of-00001.parquet"] = table.getvalue()
    return files


TEXT_WORDS = (
    b"!!timestamp x", b"!!int ", b"&a [*a]", b"0x" + b"f" * 5000, b": ", b"- ", b"? ", b"|\n", b"\t", b"1:1:1:1", b"{",
    b"nan", b"1e999", b"-0.5", b"2", b"0 0 0 0 0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"&b;", b"<object>", b"</object>", b"<![CDATA[", b"<?xml version='1.0' encoding='utf-16'?>", b"---\n",
    b"\x1b]0;x\x07",
)  # fmt: skip


def change_files(rng: Random, files: Files) -> Files:
    """One file's content, most often of an annotation; now and then its name."""
    changed = dict(files)
    texts = [name for name in files if not name.endswith(".png")]
    name = rng.choice(texts if rng.random() < 0.9 else list(files))
    if rng.random() < 0.1:
        changed[change_name(rng, name)] = changed.pop(name)
        return changed
    content = changed[name]
    if name.endswith(".json"):
        changed[name] = change_json(rng, content)
    elif name.endswith(".jsonl"):
        lines = content.split(b"\n")
        place = rng.randrange(len(lines))
        lines[place] = change_json(rng, lines[place])
        changed[name] = b"\n".join(lines)
    elif name.endswith((".yaml", ".md")) and rng.random() < 0.6 and (front := _front(content)) is not None:
        text = json.dumps(change_value(rng, front)).encode()  # which is YAML, too
        changed[name] = b"---\n" + text + b"\n---\n" if name.endswith(".md") else text
    else:
        changed[name] = change_bytes(rng, content, TEXT_WORDS if not name.endswith((".png", ".parquet")) else ())
    return changed


def _front(content: bytes) -> Any:
    """What a YAML file, or a card, says; None if that is nothing any more."""
    parts = content.split(b"---\n")
    try:
        found = yaml.safe_load(parts[1] if len(parts) > 2 else content)
        json.dumps(found)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found


def data_set(name: str, format: str, files: Files) -> Target:
    def run(files: Files, folder: Path) -> bool:
        for file, content in files.items():
            path = folder / "set" / file.replace("\0", "")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError:  # no file system takes such a name
                return False
        try:
            index, report, _ = formats.read(folder / "set", format, "full", unpacked=folder / "unpacked")
        except UserError:
            return False
        report.model_dump_json()
        index.model_dump_json()
        return report.ok

    return Target(name, [files], change_files, run)


# --- archives, weights, images ----------------------------------------------------------------------------------


def zip_of(files: Files) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return archive.getvalue()


def change_zip(rng: Random, content: bytes) -> bytes:
    """Its bytes, or what it holds."""
    if rng.random() < 0.5:
        return change_bytes(rng, content, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"../", b"/"))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {member.filename: archive.read(member) for member in archive.infolist()}
        return zip_of(change_files(rng, files))
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        IndexError,
        NotImplementedError,
        EOFError,
        RuntimeError,
        OSError,
    ):
        return change_bytes(rng, content)


def unzip(content: bytes, folder: Path) -> bool:
    (folder / "a.zip").write_bytes(content)
    try:
        zips.unpack(folder / "a.zip", folder / "out")
    except UserError:
        assert not (folder / "out").exists(), "a refused zip leaves nothing"
        return False
    except OSError as error:
        if "no room" in str(error):
            return False
        raise
    assert {path.name for path in folder.iterdir()} == {"a.zip", "out"}, "nothing outside its folder"
    return True


def safetensors() -> bytes:
    header = {"__metadata__": {"a": "b"}} | {
        f"backbone.{n}.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * n, 24 * n + 24]}
        for n in range(3)
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(72)


def pth() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        made.writestr("archive/data/0", bytes(24))
        made.writestr("archive/version", b"3\n")
    return archive.getvalue()


def change_weights(rng: Random, content: bytes) -> bytes:
    if content.startswith(b"PK") or rng.random() < 0.3:
        return change_bytes(rng, content)
    (length,) = struct.unpack("<Q", content[:8].ljust(8, b"\0"))
    header = change_json(rng, content[8 : 8 + length], ([0, 24], [24, 0], "F16", [2**40, 2**40]))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def weights(content: bytes, folder: Path) -> bool:
    (folder / "w").write_bytes(content)
    try:
        if weights_file.check(folder / "w") == "safetensors":
            weights_file.digest_of_tensors(folder / "w")
    except FGDError:
        return False
    return True


def pictures() -> list[bytes]:
    plain = [picture(n, kind) for n, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF"))]
    turned = Image.Exif()
    turned[0x0112] = 6
    more = [picture(7, "JPEG", progressive=True), picture(8, "JPEG", exif=turned), picture(9, "PNG", "P")]
    more += [picture(10, "TIFF", compression="tiff_lzw"), picture(11, "TIFF", compression="jpeg")]
    return [*plain, *more, picture(12, "WEBP", lossless=True), b"P3\n2 1\n255\n1 2 3 4 5 6\n"]


def image(content: bytes, folder: Path) -> bool:
    (folder / "i").write_bytes(content)
    try:
        found = images.probe(folder / "i", "full")
    except images.BadImage:
        return False
    return found.width * found.height <= images.MAX_PIXELS


# --- headers ----------------------------------------------------------------------------------------------------

KEY = b"k" * 32
HEADERS = [
    b"sha-256=:" + base64.b64encode(bytes(32)) + b":, sha-512=:AAAA:", b"bytes=0-99", b"bytes=-5", b'"v7", W/"v8"',
    b"*",
    b"text/csv;q=0.5, application/json;q=0.4, */*;q=0.1", b"respond-async, wait=20",
    cursor.encode(cursor.Position(datetime(2024, 1, 1, tzinfo=UTC), f"job_{ID}"), KEY, "jobs").encode(),
]  # fmt: skip


def header(content: bytes, _: Path) -> bool:
    """Each reader of a header gets each value, as the server decodes it."""
    value = content.decode("latin-1")
    taken = False
    for read in (
        lambda: digests.parse(value, "Content-Digest"),
        lambda: ranges.parse(value, 1000),
        lambda: etag.matches(value, '"v7"'),
        lambda: negotiate.prefers(value, "text/csv", "application/json"),
        lambda: negotiate.wait_s(value),
        lambda: cursor.decode(value, KEY, "jobs"),
    ):
        try:
            taken = bool(read()) or taken
        except (ServiceError, ranges.Unsatisfiable):
            continue
    return taken


def change_header(rng: Random, content: bytes) -> bytes:
    return change_bytes(
        rng, content, (b"sha-256=:", b":", b",", b";q=", b"bytes=", b"9" * 30, b"wait=", b'"', b"W/", b"\xe9")
    )


def targets() -> list[Target]:
    return [
        body("JobSpec bodies", SubmitJob, JOB),
        body("model bodies", UploadModel, MODEL),
        body("data-set bodies", SubmitDataset, DATASET),
        Target(
            "recipe.json",
            [json.dumps({key: value for key, value in MODEL.items() if key != "name"}).encode()],
            change_json,
            recipe,
        ),
        data_set("COCO", "coco", coco_files()),
        data_set("VOC", "voc", voc_files()),
        data_set("YOLO", "yolo", yolo_files()),
        data_set("cards and tables", "huggingface", card_files()),
        data_set("Parquet", "huggingface", parquet_files()),
        Target("zips", [zip_of(coco_files()), zip_of(yolo_files())], change_zip, unzip),
        Target("safetensors and .pth", [safetensors(), pth()], change_weights, weights),
        Target("images", pictures(), change_bytes, image),
        Target("header values", HEADERS, change_header, header),
    ]
