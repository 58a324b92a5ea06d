"""Does a change of the code leave a training as it was, to the last bit? Tiny trainings of fixed specs; their digests.

    python tests/studies/digests.py --save before.json          # at the commit before
    python tests/studies/digests.py --compare before.json       # after each move

Each family with each method in float32 and in bf16, and one spec for each thing that has a state or an order of its
own. A spec's quantities: the digest of the weights; each step's loss terms, learning rate and the scores, all exact
(as float.hex). Prints a table for docs/studies.md. Exit code 1: something differs, and each spec and quantity is named;
2: the digests were saved on another machine, or with other packages, so they say nothing here.

Knows `python -m fgd.train`, a spec, event lines and manifest.json, and nothing of what is behind them, so that it runs
unchanged before and after a move. Each training is forked from this process: torch is loaded once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from fgd.data.digits import compose

THREADS = 1
ROOT = Path(__file__).resolve().parents[2]
SAME, DIFFERS, ELSEWHERE = 0, 1, 2
"""Exit codes."""
CLASSES = ("0", "7")
CUTS = ((96, 128), (128, 96), (112, 128), (128, 128))
"""Height and width, pixels, of one image after the other: a batch has cells that are padding."""
LEAST_PX = 8
"""Of a box's sides, after the cut."""
IMAGES = {"train": 7, "val": 4, "test": 2}
"""Of the training images one step of four is an epoch, so that each step is reported; three others are left out."""
SCHEDULE = {
    "epochs": 3,
    "batch_size": 4,
    "min_size": 96,
    "max_size": 128,
    "evaluate_every": 3,
    "checkpoint_s": 3600.0,
}
LEARN = {"epochs": 4, "min_size": 64, "max_size": 64, "flip": "none"}
"""Of the teachers, six steps an epoch."""
RATES = {"retinanet": 3e-3}
"""Of the teachers; 1e-3 for the others."""
FCOS = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64}
RETINANET = {"kind": "retinanet", "backbone": "resnet18", "fpn_channels": 32}
RETINANET_V2 = {"kind": "retinanet", "backbone": "resnet18", "fpn_channels": 64, "version": 2}
FASTER_RCNN = {"kind": "faster_rcnn", "backbone": "mobilenet_v3_small", "fpn_channels": 16}
FASTER_RCNN_V2 = {"kind": "faster_rcnn", "backbone": "resnet18", "fpn_channels": 24, "version": 2}
FAMILIES = {
    "fcos": FCOS,
    "retinanet": RETINANET,
    "retinanet_v2": RETINANET_V2,
    "faster_rcnn": FASTER_RCNN,
    "faster_rcnn_v2": FASTER_RCNN_V2,
}
WIDER = {"fcos": 96, "retinanet": 48, "retinanet_v2": 96, "faster_rcnn": 24, "faster_rcnn_v2": 32}
"""Width of each family's teacher, so that there is something to adapt."""
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "fgd": {"kind": "fgd"},
    "official": {"kind": "fgd", "compat": "official"},
    "mimic": {"kind": "mimic"},
}
PRECISIONS = ("float32", "bf16")

Spec = dict[str, Any]
Found = dict[str, Any]
"""Quantity -> value: weights, and by step its losses or scores."""


def specs(teachers: Mapping[str, Path], data: Path) -> dict[str, Spec]:
    """By name. teachers: the folder of each family's result."""
    return crossed(teachers, data) | extras(teachers, data)


def crossed(teachers: Mapping[str, Path], data: Path) -> dict[str, Spec]:
    """Each family with each method, in each precision. Version 2 of a family has its methods from version 1."""
    made = {}
    for family, student in FAMILIES.items():
        for method, told in METHODS.items():
            for precision in PRECISIONS:
                if family.endswith("_v2") and method not in ("none", "fgd"):
                    continue
                teacher, methods = (teachers[family], [told]) if told else (None, [])
                begun = student if told else continued(family, teachers[family])
                made[f"{family} {method} {precision}"] = spec(data, begun, teacher, methods, precision=precision)
    return made


def continued(family: str, teacher: Path) -> dict[str, Any]:
    """A student that begins as its family's teacher ended: it finds digits, so its scores are not all 0."""
    return FAMILIES[family] | {"fpn_channels": WIDER[family], "weights": {"path": str(teacher)}}


def extras(teachers: Mapping[str, Path], data: Path) -> dict[str, Spec]:
    both = [METHODS["fgd"], METHODS["mimic"]]
    fcos, lean = teachers["fcos"], FCOS | {"backbone": "mobilenet_v2"}
    averaged = {"batch_size": 2, "accumulate": 2, "ema": {"decay": 0.9}}
    augmented = {
        "augment": {"photometric": {"brightness": 0.3, "contrast": 0.2, "saturation": 0.3, "hue": 0.05},
                    "crop": {"probability": 0.7, "keep": "share"}},
        "scales": [64, 96, 128], "flip": "both",
    }  # fmt: skip
    gentle = {"optimizer": {"kind": "sgd"}, "lr_schedule": {"kind": "cosine", "warmup_steps": 1}, "clip_norm": 0.5}
    stepped = {"optimizer": {"kind": "sgd"}, "lr_schedule": {"kind": "step", "milestones": [1, 2], "warmup_steps": 1}}
    inheriting = FCOS | {"fpn_channels": WIDER["fcos"], "inherit": {"path": str(fcos)}}
    return {
        "two methods, ema, accumulate": spec(data, FCOS, fcos, both, **averaged),
        "crops, colours, scales, both flips": spec(data, FCOS, fcos, both, **augmented),
        "inherited head, sgd, cosine, clipped": spec(data, inheriting, fcos, both, **gentle),
        "warm start, sgd, steps": spec(data, continued("fcos", fcos), None, [], **stepped),
        "group norm": spec(data, FCOS | {"norm": "group"}, fcos, [METHODS["fgd"]]),
        "retinanet from faster_rcnn": spec(data, RETINANET, teachers["faster_rcnn"], both),
        "mobilenet_v2": spec(data, lean, fcos, both),
        "teacher's maps kept": spec(data, FCOS, fcos, both, resources={"teacher_cache_gib": 0.5}, flip="both"),
        "two processes": spec(data, FCOS, fcos, both, resources={"devices": 2}),
        "FGD's foreground and attention alone": spec(
            data, FCOS, fcos, [{"kind": "fgd", "beta": 0.0, "lambda": 0.0, "box_cells": "inclusive"}]
        ),
        "uninterrupted": spec(data, FCOS, fcos, both, **WITH_A_MIDDLE),
    }


WITH_A_MIDDLE: dict[str, Any] = {"batch_size": 2, "checkpoint_steps": 2, "ema": {"decay": 0.9}, "evaluate_every": 2}
"""Three steps an epoch, and a checkpoint in the middle of the last one, from which "resumed" goes on."""


def spec(
    data: Path,
    student: Mapping[str, Any],
    teacher: Path | None,
    methods: list[dict[str, Any]],
    resources: Mapping[str, Any] | None = None,
    **schedule: Any,
) -> Spec:
    return {
        "name": "digests",
        "teacher": {"path": str(teacher), "allow_unfit": True} if teacher else None,
        "student": dict(student),
        "dataset": {"path": str(data)},
        "methods": methods,
        "schedule": SCHEDULE | {"precision": "float32"} | schedule,
        "resources": {"device": "cpu", "threads": THREADS} | dict(resources or {}),
        "seed": 5,
    }


# --- data and trainings ---------------------------------------------------------------------------------------


def easily_learned(folder: Path) -> Path:
    """Digits that a network finds after a few steps."""
    counts = {"train": 24, "val": 6, "test": 2}
    return compose(folder, counts=counts, size=64, classes=CLASSES, box_px=(24, 40), per_image=(1, 2))


def drawn(folder: Path) -> Path:
    """Digits, some images without any, cut to several shapes."""
    compose(folder, counts=IMAGES, size=128, classes=CLASSES, box_px=(16, 80), per_image=(0, 3))
    for listing in sorted((folder / "annotations").iterdir()):
        content, split = json.loads(listing.read_text()), listing.stem.removeprefix("instances_")
        shapes = {}
        for number, image in enumerate(content["images"]):
            height, width = shapes[image["id"]] = CUTS[number % len(CUTS)]
            image |= {"height": height, "width": width}
            with Pillow.open(folder / split / image["file_name"]) as whole:
                part = whole.crop((0, 0, width, height))
            part.save(folder / split / image["file_name"], quality=95, subsampling=0)
        content["annotations"] = [
            told for each in content["annotations"] if (told := cut(each, *shapes[each["image_id"]]))
        ]
        listing.write_text(json.dumps(content))
    return folder


def cut(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any] | None:
    """What is left of it in an image of that size; None: too little."""
    x, y, w, h = annotation["bbox"]
    w, h = min(x + w, width) - x, min(y + h, height) - y
    return annotation | {"bbox": [x, y, w, h], "area": w * h} if min(w, h) >= LEAST_PX else None


def load_torch() -> None:
    """Once, for the trainings are forked from here."""
    os.environ |= {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}  # before its OpenMP begins
    for package in ("torch", "torchvision", "faster_coco_eval"):
        importlib.import_module(package)


def train(spec: Spec, folder: Path, resume: str | None = None) -> list[dict[str, Any]]:
    """`python -m fgd.train` in a child that has torch loaded already; its events."""
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    argv = ["fgd.train", str(folder / "spec.json"), "--out", str(folder), *(["--resume", resume] if resume else [])]
    if (child := os.fork()) == 0:
        code = 1
        try:
            for fd, name in ((1, "events"), (2, "log")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), fd)
            sys.argv = argv
            runpy.run_module("fgd.train", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"{spec['student']}: the training failed\n{(folder / 'log').read_text()[-2000:]}")
    return [json.loads(line) for line in (folder / "events").read_text().splitlines()]


def found(events: list[dict[str, Any]], folder: Path) -> Found:
    """Of an epoch of one step the means are that step's own values."""
    losses = {str(event["step"]): of_epoch(event["values"]) for event in events if event["type"] == "stepped"}
    scores = {
        f"{event['step']} {event['split']}": {name: exact(value) for name, value in event["values"].items()}
        for event in events
        if event["type"] == "evaluated"
    }
    manifest = json.loads((folder / "result" / "manifest.json").read_text())
    return {
        "weights": manifest["weights_digest"],
        "losses": {step: terms for step, terms in losses.items() if len(terms) > 1},
        "scores": scores,
    }


def of_epoch(values: Mapping[str, float | None]) -> dict[str, str | None]:
    told = {name: value for name, value in values.items() if name.startswith("epoch/loss/")}
    return {name.removeprefix("epoch/"): exact(value) for name, value in told.items()} | {"lr": exact(values["lr"])}


def exact(value: float | None) -> str | None:
    return None if value is None else float(value).hex()


def all_found(work: Path, only: str) -> dict[str, Found]:
    easy, data = easily_learned(work / "easy"), drawn(work / "data")
    made: dict[str, Found] = {"the data": {"easy": digests_of(easy), "cut": digests_of(data)}}
    teachers = {family: work / "teachers" / family / "result" for family in FAMILIES}
    asked = {name: each for name, each in specs(teachers, data).items() if only in name}
    for family, wide in WIDER.items():
        if str(teachers[family]) in json.dumps(asked):
            student = FAMILIES[family] | {"fpn_channels": wide}
            rate = {"optimizer": {"kind": "adamw", "lr": RATES.get(family, 1e-3)}}
            folder = teachers[family].parent
            made[f"teacher {family}"] = found(train(spec(easy, student, None, [], **LEARN, **rate), folder), folder)
    for number, (name, each) in enumerate(asked.items()):
        folder, began = work / str(number), time.monotonic()
        events = train(each, folder)
        made[name] = found(events, folder)
        if name == "uninterrupted":
            saved = [event["path"] for event in events if event["type"] == "saved"]
            middle = next(path for path in saved if Path(path).exists())  # the last two are
            made["resumed"] = found(train(each, work / "resumed", middle), work / "resumed")
        print(f"{name}: {made[name]['weights'][:12]}, {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return made


# --- the machine ----------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What bytes depend on besides code and spec."""
    import torch

    processor, instructions = platform.machine(), ""
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        told = dict(line.split("\t", 1) for line in cpuinfo.read_text().splitlines() if "\t" in line)
        told = {name.strip(): value.partition(":")[2].strip() for name, value in told.items()}
        processor = told.get("model name", processor)
        words = told.get("flags", told.get("Features", "")).split()
        instructions = " ".join(sorted(word for word in words if word.startswith(("avx", "amx", "fma", "sve", "bf16"))))
    return {
        "processor": processor,
        "instructions": instructions,
        "aten": torch.backends.cpu.get_cpu_capability(),
        "threads": THREADS,
        **{package: version(package) for package in ("torch", "torchvision", "numpy", "pillow", "faster-coco-eval")},
    }


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" and changes" if git("status", "--porcelain", "-uno") else "")


# --- comparing ------------------------------------------------------------------------------------------------


def differences(before: Mapping[str, Found], now: Mapping[str, Found]) -> list[str]:
    """One line for each spec and quantity; of the losses the first step and the first term of it."""
    lines = []
    for name in sorted(before.keys() & now.keys()):
        for quantity, was in before[name].items():
            if (different := first_difference(was, now[name].get(quantity))) is not None:
                lines.append(f"{name}: {quantity} {different}")
    return lines + [f"{name}: is missing" for name in sorted(before.keys() - now.keys())]


def first_difference(was: Any, now: Any) -> str | None:
    """Where two values differ first, and how; None: nowhere."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(now.keys() - was.keys())]:
            if (different := first_difference(was.get(key), now.get(key))) is not None:
                return f"{key} {different}"
        return None
    return None if was == now else f"{was} -> {now}"


def digests_of(folder: Path) -> dict[str, str]:
    """Of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def table(made: Mapping[str, Found]) -> str:
    rows = [
        f"| {name} | {each['weights'][:12]} | {digest_of(each['losses'])[:12]} | {digest_of(each['scores'])[:12]} |"
        for name, each in made.items()
        if "weights" in each
    ]
    return "\n".join(["| spec | weights | losses | scores |", "|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="file to write the digests to")
    parser.add_argument("--compare", type=Path, help="file of digests to compare with")
    parser.add_argument("--only", default="", help="run the specs whose name has this in it, and compare those alone")
    arguments = parser.parse_args()
    load_torch()
    here, began = machine(), time.monotonic()
    before = json.loads(arguments.compare.read_text()) if arguments.compare else None
    if before is not None and before["machine"] != here:
        print(f"saved elsewhere: {first_difference(before['machine'], here)}; digests hold on one machine type only")
        return ELSEWHERE
    with tempfile.TemporaryDirectory(prefix="fgd-digests-") as folder:
        made = all_found(Path(folder), arguments.only)
    told = ", ".join(f"{name} {value}" for name, value in here.items() if name != "instructions")
    print(f"`{' '.join(sys.argv)}`, commit {commit()}, {told}, {time.monotonic() - began:.0f} s\n\n{table(made)}")
    if arguments.save:
        content = {"commit": commit(), "machine": here, "found": made}
        arguments.save.write_text(json.dumps(content, indent=1) + "\n")
    if before is None:
        return SAME
    wanted = {name: each for name, each in before["found"].items() if name in made or not arguments.only}
    lines = differences(wanted, made)
    told = "\n".join(lines) if lines else f"all {len(wanted)} are the same, to the bit"
    print(f"\ncompared with commit {before['commit']}: {told}")
    return DIFFERS if lines else SAME


if __name__ == "__main__":
    sys.exit(main())
