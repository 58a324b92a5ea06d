"""The pictures of docs/dashboard.md, light and dark: a real service, real trainings, and what the pages show of them.

    python -m tests.studies.dashboard_pictures --home runs/pictures [--keep]

Composes the demo's digits, imports them, trains a teacher and a small study of students through the API, and then takes
every page with Chromium. Minutes on two free cores. What is there already is kept: with `--keep` nothing is trained, and
the pages are only taken once more.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fgd.cli.embedded import service_at
from fgd.client import Client
from fgd.data import digits
from tests.browser.bring import there

COUNTS = {"train": 80, "val": 64, "test": 64}
SIZE, BOX_PX = 64, (20, 40)
SCHEDULE: dict[str, Any] = {
    "batch_size": 4, "min_size": SIZE, "max_size": SIZE, "flip": "none", "optimizer": {"kind": "adamw", "lr": 6e-4},
}  # fmt: skip
TEACHER = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 96}
STUDENT = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64}
ARMS = [{"name": "fgd", "methods": [{"kind": "fgd"}]}]
SEEDS = [0]
EPOCHS = {"teacher": 12, "students": 6, "running": 40}
RESOURCES = {"threads": 1}


@dataclass(frozen=True)
class Content:
    """Ids of what the pages show."""

    dataset: str
    teacher: str
    study: str
    student: str
    control: str
    budget: str


def made(client: Client, folder: Path) -> Content:
    """Asked for with keys of its own: a second run finds what the first one made."""
    dataset = client.wait_dataset(client.add_dataset("street digits", folder, idempotency_key="pictures-data").id)
    assert dataset.state == "ready", dataset.error
    spec = {
        "name": "teacher", "dataset": dataset.id, "teacher": None, "methods": [], "student": TEACHER,
        "schedule": SCHEDULE | {"epochs": EPOCHS["teacher"], "evaluate_every": 3}, "metadata": {"team": "readers"},
        "resources": RESOURCES,
    }  # fmt: skip
    teacher = client.wait(client.submit(spec, "pictures-teacher").id)
    assert teacher.state == "succeeded", teacher.failure
    schedule = SCHEDULE | {"epochs": EPOCHS["students"]}
    study = client.submit_study(
        {
            "name": "what FGD adds", "dataset": dataset.id, "teacher": {"job": teacher.id, "allow_unfit": True}, "schedule": schedule,
            "arms": ARMS, "resources": RESOURCES, "students": [STUDENT], "seeds": SEEDS, "metadata": {"team": "readers"},
        },
        "pictures-study",
    )  # fmt: skip
    jobs = [client.wait(job.id) for job in reversed(client.jobs(study=study.id))]
    assert all(job.state == "succeeded" for job in jobs), [(job.name, job.failure) for job in jobs]
    print([(job.name, job.id) for job in jobs])
    raise SystemExit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("runs/pictures"), help="the folder of the service")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="the folder for the pictures")
    told = parser.parse_args()
    home = told.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    folder = digits.compose(home / "digits", counts=COUNTS, size=SIZE, box_px=BOX_PX, per_image=(1, 3))
    with service_at(None, home, [folder]) as (address, service), Client(address) as client:
        assert service is not None
        service.wait_ready(client)
        print(address)
        content = made(client, folder)


if __name__ == "__main__":
    main()
