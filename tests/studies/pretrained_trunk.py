"""What torchvision's ImageNet trunk is worth to a small student, alone and with a teacher.

    FGD_WEIGHTS_DIR=FOLDER python tests/studies/pretrained_trunk.py DATA --teacher RESULT --out runs/trunk

FOLDER holds torchvision's own `mobilenet_v2-b0353104.pth`; DATA is COCO data with train and val; RESULT is the result
folder of a training on it, such as `runs/families/faster_rcnn-resnet18/result` of families.py. Faster R-CNN with
MobileNetV2 is trained on the same batches from each of --weights, distilled and alone. Two trainings of one thread go
side by side; finished runs are kept. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fgd.data import archive, coco
from fgd.detector_specs import DetectorSpec, FasterRCNN, WeightsName
from fgd.method_specs import FGD
from fgd.spec import AdamW, JobSpec, Resources, Schedule
from fgd.spec_fields import FromPath, TeacherFromPath


def student(weights: WeightsName) -> DetectorSpec:
    # norm "batch" for both, so that they differ in the weights alone; frozen is the default with IMAGENET1K_V1
    return FasterRCNN(backbone="mobilenet_v2", fpn_channels=64, weights=weights, norm="batch")


def main() -> None:
    arguments = parse()
    data = prepare(arguments.data, arguments.out)

    def trained(name: str, network: DetectorSpec, teacher: Path | None) -> Path:
        spec = JobSpec(
            name=name,
            teacher=None if teacher is None else TeacherFromPath(path=str(teacher.resolve())),
            student=network,
            methods=() if teacher is None else (FGD(),),
            dataset=FromPath(path=str(data.resolve())),
            schedule=Schedule(
                epochs=arguments.epochs,
                batch_size=4,
                min_size=arguments.min_size,
                max_size=arguments.max_size,
                evaluate_every=arguments.epochs,
                optimizer=AdamW(lr=6e-4),
            ),
            resources=Resources(threads=1, device="cpu"),
        )
        return train(spec, arguments.out / name)

    recipe = json.loads((arguments.teacher / "recipe.json").read_text())["detector"]
    print("| network | weights | method | AP | AP50 | AP75 |\n|---|---|---|---|---|---|")
    row(f"teacher: {recipe['kind']}, {recipe['backbone']}", recipe["weights"], "", arguments.teacher)
    runs = [(weights, taught) for weights in arguments.weights for taught in (True, False)]

    def run(weights: WeightsName, taught: bool) -> Path:
        name = f"{weights}-{'fgd' if taught else 'alone'}"
        return trained(name, student(weights), arguments.teacher if taught else None)

    with ThreadPoolExecutor(2) as pool:
        for (weights, taught), result in zip(runs, pool.map(run, *zip(*runs, strict=True)), strict=True):
            row("faster_rcnn, mobilenet_v2", weights, "FGD" if taught else "none", result)
    print(f"\nloaded: {json.dumps(loaded(arguments.out / 'IMAGENET1K_V1-fgd'))}")


def row(network: str, weights: str, method: str, result: Path) -> None:
    metrics = json.loads((result / "manifest.json").read_text())["metrics"]
    scored = metrics["test" if "test" in metrics else "val"]
    told = " | ".join(f"{scored[name]:.1f}" for name in ("ap", "ap50", "ap75"))
    print(f"| {network} | {weights} | {method} | {told} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a COCO folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="a folder with student.safetensors and recipe.json")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--weights", nargs="+", default=["IMAGENET1K_V1", "none"], choices=["IMAGENET1K_V1", "none"])
    parser.add_argument("--min-size", type=int, default=96)
    parser.add_argument("--max-size", type=int, default=128)
    return parser.parse_args()


def prepare(source: Path, out: Path) -> Path:
    """The data as the library keeps them: an index beside the images."""
    folder = out / "data"
    if not folder.exists():
        index, _, sources = coco.read(source)
        out.mkdir(parents=True, exist_ok=True)
        archive.pack(index, sources, out / "data.tar")
        archive.unpack(out / "data.tar", folder)
    return folder


def train(spec: JobSpec, out: Path) -> Path:
    """The folder of the result; trained already if the same was asked for before."""
    asked, result = spec.model_dump_json(indent=2), out / "result"
    if (result / "manifest.json").exists() and (out / "spec.json").read_text() == asked:
        return result
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(asked)
    command = [sys.executable, "-m", "fgd.train", str(out / "spec.json"), "--out", str(out)]
    with (out / "events.jsonl").open("wb") as lines, (out / "log").open("wb") as log:
        done = subprocess.run(command, stdout=lines, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        sys.exit(f"{spec.name}: {(out / 'log').read_text()[-2000:]}")
    return result


def loaded(out: Path) -> dict[str, Any]:
    """What the event about the pretrained file says, with counts in place of the lists."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    told = next(event["data"] for event in events if event.get("code") == "pretrained")
    return {key: len(value) if isinstance(value, list) else value for key, value in told.items()}


if __name__ == "__main__":
    main()
