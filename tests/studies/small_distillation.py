"""One small distillation on composed digits: AP of teacher and student, and how long a step takes.

    python -m tests.studies.small_distillation --device cuda --out runs/small

The demo's networks; on a GPU 200 images, which a teacher sees 8 times and a student 6 times, on the processor as little
as goes through every part. Its last line is the figures. Exit code 1 if a training fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Size:
    images: dict[str, int]
    side: int
    epochs: tuple[int, int]
    """Of teacher and student."""


SIZES = {
    "cuda": Size({"train": 200, "val": 40, "test": 40}, side=96, epochs=(8, 6)),
    "cpu": Size({"train": 8, "val": 2, "test": 2}, side=64, epochs=(1, 1)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    from fgd.data.digits import compose

    size = SIZES[arguments.device]
    compose(arguments.out / "data", counts=size.images, size=size.side)
    teacher = train(arguments, "teacher", {"backbone": "resnet34", "fpn_channels": 96}, size.epochs[0])
    if teacher is None:
        return 1
    student = train(arguments, "student", {"backbone": "resnet18", "fpn_channels": 64}, size.epochs[1], teach=True)
    if student is None:
        return 1
    print(
        "; ".join(
            f"{name} AP {ap_of(events):.1f}, {step_s(events):.3f} s a step"
            for name, events in (("teacher", teacher), ("student", student))
        )
    )
    return 0


def train(
    arguments: argparse.Namespace, name: str, student: dict[str, Any], epochs: int, *, teach: bool = False
) -> list[dict[str, Any]] | None:
    """The events of a training in a process of its own; None if it failed."""
    out, side = arguments.out / name, SIZES[arguments.device].side
    schedule = {"epochs": epochs, "batch_size": 4, "min_size": side, "max_size": side, "flip": "none"}
    spec = {
        "name": name,
        "teacher": {"path": str(arguments.out / "teacher" / "result"), "allow_unfit": True} if teach else None,
        "methods": [{"kind": "fgd"}] if teach else [],
        "student": {"kind": "fcos", **student},
        "dataset": {"path": str(arguments.out / "data")},
        "schedule": schedule | {"optimizer": {"kind": "adamw", "lr": 6e-4}, "evaluate_every": epochs},
        "resources": {"device": arguments.device, "threads": 1},
    }
    out.mkdir()
    (out / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "fgd.train", str(out / "spec.json"), "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        print(f"the {name}'s training ended with {done.returncode}: {events[-1:]}")
        return None
    return events


def ap_of(events: list[dict[str, Any]]) -> float:
    return float([event["values"]["ap"] for event in events if event["type"] == "evaluated"][-1])


def step_s(events: list[dict[str, Any]]) -> float:
    """From the images a second that it reports; the first report is warming up."""
    rates = [event["values"]["images_per_s"] for event in events if event["type"] == "stepped"]
    return 4 / statistics.median(rates[1:] or rates)


if __name__ == "__main__":
    sys.exit(main())
