"""What images without labels add where few have labels and a strong teacher exists.

    python tests/studies/few_labels.py FOLDER --out runs/few --labelled 20

The teacher learns from all training images. The student has `--labelled` of them with their labels, evenly spaced, and
the others as the unlabelled split; each way of learning has the same steps, labelled batches and seed. One thread
each, two runs side by side. A commit's finished runs are kept. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench_loss import commit
from fgd_vs_control import events_of, figures, last_scores, train

from fgd.data import archive, formats
from fgd.data.index import Index
from fgd.detector_specs import FCOS
from fgd.engine.device import processor_name
from fgd.events import Stepped
from fgd.method_specs import FGD
from fgd.spec import AdamW, JobSpec, Resources, Schedule, Unlabelled
from fgd.spec_fields import FromPath, TeacherFromPath

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "control": ("labels alone, without a teacher", {}),
    "fgd": ("FGD on the labelled images", {"methods": (FGD(),)}),
    "unlabelled": ("FGD on labelled and unlabelled images", {"methods": (FGD(),), "unlabelled": Unlabelled()}),
    "pseudo": ("and pseudo-labels", {"methods": (FGD(),), "unlabelled": Unlabelled(pseudo_labels=True)}),
}


def main() -> None:
    arguments = parse()
    whole, few = folders(arguments)
    size = {"batch_size": 4, "min_size": arguments.min_size, "max_size": arguments.max_size}
    schedule = Schedule(optimizer=AdamW(lr=6e-4), epochs=arguments.epochs, evaluate_every=arguments.epochs, **size)
    resources = Resources(threads=1)
    teacher = arguments.teacher or arguments.out / "teacher" / "result"
    if arguments.teacher is None:
        longer = schedule.but(epochs=arguments.teacher_epochs, evaluate_every=arguments.teacher_epochs)
        network = FCOS(backbone="resnet34", fpn_channels=128)
        spec = JobSpec(
            name="teacher",
            teacher=None,
            student=network,
            methods=(),
            schedule=longer,
            dataset=FromPath(path=str(whole)),
            resources=resources,
        )
        train(spec, arguments.out / "teacher")
    runs = {
        (way, seed): JobSpec(
            name=f"{way}-{seed}",
            student=FCOS(backbone="resnet18", fpn_channels=64),
            dataset=FromPath(path=str(few)),
            schedule=schedule,
            resources=resources,
            seed=seed,
            **{"methods": (), "teacher": TeacherFromPath(path=str(teacher.resolve())) if more else None, **more},
        )
        for seed in arguments.seeds
        for way, (_, more) in WAYS.items()
    }
    with ThreadPoolExecutor(arguments.beside) as pool:
        list(pool.map(lambda spec: train(spec, arguments.out / spec.name), runs.values()))
    print(table(arguments, teacher, runs))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set's folder, of any format")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=20, help="so many training images keep their labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=40, help="passes over the labelled images")
    parser.add_argument("--teacher-epochs", type=int, default=24)
    parser.add_argument("--min-size", type=int, default=144)
    parser.add_argument("--max-size", type=int, default=192)
    parser.add_argument("--beside", type=int, default=2, help="runs side by side")
    parser.add_argument("--teacher", type=Path, help="result folder of a teacher that is already trained")
    return parser.parse_args()


def folders(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The data set, and the same with few labels."""
    whole, few = arguments.out / "whole", arguments.out / f"few-{arguments.labelled}"
    if not (whole.exists() and few.exists()):
        index, _, sources = formats.read(arguments.data)
        for name, each in ((whole, index), (few, with_few_labels(index, arguments.labelled))):
            tar = name.with_suffix(".tar")
            tar.parent.mkdir(parents=True, exist_ok=True)
            archive.pack(each, sources, tar)
            archive.unpack(tar, name)
    return whole, few


def with_few_labels(index: Index, count: int) -> Index:
    train = index.splits["train"]
    kept = {i * len(train) // count for i in range(count)}
    bare = {"boxes": (), "labels": (), "crowd": ()}
    unlabelled = tuple(image.model_copy(update=bare) for n, image in enumerate(train) if n not in kept)
    labelled = tuple(image for n, image in enumerate(train) if n in kept)
    return index.model_copy(update={"splits": {**index.splits, "train": labelled, "unlabelled": unlabelled}})


def table(arguments: argparse.Namespace, teacher: Path, runs: dict[tuple[str, int], JobSpec]) -> str:
    manifest = json.loads((teacher / "manifest.json").read_text())
    splits = [split for split in ("val", "test") if split in manifest["metrics"]]
    head = " | ".join(f"{split} {figure}" for split in splits for figure in ("AP", "AP50", "AP75"))
    lines = [
        f"`python tests/studies/few_labels.py {' '.join(sys.argv[1:])}`, commit {commit()}, "
        f"{len(os.sched_getaffinity(0))} cores of {processor_name()}, Python {platform.python_version()}; AP of the "
        "last checkpoint",
        "",
        f"| learns from | seed | {head} | boxes an unlabelled image |",
        "|---|---|" + "---|" * (3 * len(splits) + 1),
        f"| the teacher: all labels | {manifest['spec']['seed']} | "
        + " | ".join(figures(manifest["metrics"][split]) for split in splits)
        + " | |",
    ]
    for (way, seed), spec in runs.items():
        events = events_of(arguments.out / spec.name)
        found = [e.values["unlabelled/boxes_per_image"] for e in events if isinstance(e, Stepped) and spec.unlabelled]
        scores = " | ".join(figures(last_scores(events, split)) for split in splits)
        lines.append(f"| {WAYS[way][0]} | {seed} | {scores} | {f'{statistics.mean(found):.1f}' if found else ''} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
