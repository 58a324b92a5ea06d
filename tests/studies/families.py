"""Whether each export keeps its AP: every family and trunk trained by a job, read back through its model.py alone.

    python tests/studies/families.py FOLDER --out runs/families --epochs 12
    python tests/studies/families.py FOLDER --out runs/families --epochs 1 --images 16 --only retinanet-resnet18

FOLDER: COCO data with train and val. "Before" is the job's own figure (faster-coco-eval, the library's batches);
"after" is that of plain torchvision in another process, which knows model.py and student.safetensors, scored by
pycocotools. Each family with ResNet-18 and MobileNetV2, and each other trunk with RetinaNet. Two trainings of one
thread go side by side; finished rows are kept, so it can be stopped and gone on with. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from fgd.data import archive, coco
from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet, Trunk
from fgd.spec import AdamW, JobSpec, Resources, Schedule
from fgd.spec_fields import FromPath

FAMILIES: dict[str, DetectorSpec] = {
    "fcos": FCOS(fpn_channels=64),
    "retinanet": RetinaNet(fpn_channels=64),
    "retinanet_v2": RetinaNet(fpn_channels=64, version=2),
    "faster_rcnn": FasterRCNN(fpn_channels=64),
    "faster_rcnn_v2": FasterRCNN(fpn_channels=64, version=2),
}
TRUNKS_OF_ALL: tuple[Trunk, ...] = ("resnet18", "mobilenet_v2")


def main() -> None:
    arguments = parse()
    data = prepare(arguments)
    chosen = {name: spec for name, spec in students().items() if arguments.only in (None, name)}
    if not chosen:
        sys.exit(f"--only {arguments.only}: there is no such row; take one of {', '.join(students())}")
    schedule = Schedule(
        epochs=arguments.epochs,
        batch_size=4,
        min_size=arguments.min_size,
        max_size=arguments.max_size,
        evaluate_every=arguments.epochs,
        optimizer=AdamW(lr=6e-4),
    )
    specs = [
        JobSpec(
            name=name,
            teacher=None,
            student=student,
            methods=(),
            dataset=FromPath(path=str(data.resolve())),
            schedule=schedule,
            resources=Resources(threads=1, device="cpu"),
        )
        for name, student in chosen.items()
    ]
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda spec: row(spec, data, arguments.out / spec.name), specs))
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a COCO folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, help="use this many training images, evenly spaced")
    parser.add_argument("--min-size", type=int, default=96)
    parser.add_argument("--max-size", type=int, default=128)
    parser.add_argument("--only", help="one row, such as faster_rcnn-mobilenet_v2")
    return parser.parse_args()


def students() -> dict[str, DetectorSpec]:
    """Row -> network."""
    pairs = [(family, trunk) for family in FAMILIES for trunk in TRUNKS_OF_ALL]
    pairs += [("retinanet", trunk) for trunk in get_args(Trunk) if trunk not in TRUNKS_OF_ALL]
    return {f"{family}-{trunk}": FAMILIES[family].but(backbone=trunk) for family, trunk in pairs}


def prepare(arguments: argparse.Namespace) -> Path:
    """The data as the library keeps them: an index beside the images."""
    folder: Path = arguments.out / "data"
    if not folder.exists():
        index, _, sources = coco.read(arguments.data)
        train = index.splits["train"]
        count = min(arguments.images or len(train), len(train))
        some = tuple(train[i * len(train) // count] for i in range(count))
        index = index.model_copy(update={"splits": {**index.splits, "train": some}})
        tar = arguments.out / "data.tar"
        tar.parent.mkdir(parents=True, exist_ok=True)
        archive.pack(index, sources, tar)
        archive.unpack(tar, folder)
    return folder


def row(spec: JobSpec, data: Path, out: Path) -> dict[str, Any]:
    """Train, unless it is done already, and score the export."""
    asked, kept = spec.model_dump_json(indent=2), out / "row.json"
    if kept.exists() and (out / "spec.json").read_text() == asked:
        return dict(json.loads(kept.read_text()))
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(asked)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fgd.train", str(out / "spec.json"), "--out", str(out)]
    with (out / "events.jsonl").open("wb") as lines, (out / "log").open("wb") as log:
        done = subprocess.run(command, stdout=lines, stderr=log, env=environment, check=False)
    if done.returncode:
        return {"name": spec.name, "failed": (out / "log").read_text().strip().splitlines()[-1]}
    manifest = json.loads((out / "result" / "manifest.json").read_text())
    split = "test" if "test" in manifest["metrics"] else "val"
    command = [sys.executable, "-c", SCORE, str(out / "result"), str(data), split]
    scored = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if scored.returncode:
        return {"name": spec.name, "failed": scored.stderr.strip().splitlines()[-1]}
    made = {
        "name": spec.name,
        "split": split,
        "parameters": manifest["parameters"],
        "anchor": (manifest.get("anchor_sizes") or [[None]])[0][0],
        "before": manifest["metrics"][split]["ap"],
        "after": json.loads(scored.stdout.splitlines()[-1]),
    }
    kept.write_text(json.dumps(made))
    return made


SCORE = """
# Plain torchvision and pycocotools: nothing of the library. The index is JSON, the images are files.
import json, runpy, sys
from pathlib import Path
import torch, torchvision
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

result, data, split = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
model = runpy.run_path(str(result / "model.py"))["load"]()
index = json.loads((data / "index.json").read_text())
images, truth, found = [], [], []
for image in index["splits"][split]:
    images.append({"id": image["id"], "width": image["width"], "height": image["height"]})
    for (x1, y1, x2, y2), label, crowd in zip(image["boxes"], image["labels"], image["crowd"]):
        box = [x1, y1, x2 - x1, y2 - y1]
        truth.append({"id": len(truth) + 1, "image_id": image["id"], "category_id": label, "bbox": box,
                      "area": box[2] * box[3], "iscrowd": int(crowd)})
    pixels = torchvision.io.read_image(str(data / image["file"]), torchvision.io.ImageReadMode.RGB) / 255
    with torch.no_grad():
        out = model([pixels])[0]
    for (x1, y1, x2, y2), score, label in zip(out["boxes"].tolist(), out["scores"].tolist(), out["labels"].tolist()):
        box = [x1, y1, x2 - x1, y2 - y1]
        found.append({"image_id": image["id"], "category_id": label, "bbox": box, "score": score})
if not found:
    print(0.0)
    sys.exit()
coco = COCO()
categories = [{"id": k, "name": name} for k, name in enumerate(index["classes"], 1)]
coco.dataset = {"info": {}, "images": images, "annotations": truth, "categories": categories}
coco.createIndex()
evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
evaluation.evaluate(); evaluation.accumulate(); evaluation.summarize()
print(100 * float(evaluation.stats[0]))
"""


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| family and trunk | parameters | smallest anchor | split | AP before | AP after |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        if "failed" in each:
            lines.append(f"| {each['name']} | failed: {each['failed']} | | | | |")
            continue
        anchor = f"{each['anchor']} px" if each["anchor"] else "none"
        lines.append(
            f"| {each['name']} | {each['parameters'] / 1e6:.1f} M | {anchor} | {each['split']} | "
            f"{each['before']:.2f} | {each['after']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
