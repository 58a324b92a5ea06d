"""The pictures of docs/dashboard.md, light and dark: a real service, real trainings, and what the pages show of them.

    python -m tests.studies.dashboard_pictures --home runs/pictures

Composes small handwritten digits, imports them, trains a teacher, and a study of a student with and without it, through
the API; then takes every page with Chromium. Minutes on two free cores. The folder keeps what was trained: a second run
only takes the pictures again. `--only` takes some of them.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from fgd.cli.embedded import service_at
from fgd.client import Client
from fgd.data import digits
from tests.browser.bring import there

COUNTS = {"train": 80, "val": 64, "test": 64}
CLASSES = ("0", "4", "7")
SIZE, BOX_PX = 64, (24, 44)
SCHEDULE: dict[str, Any] = {
    "batch_size": 4, "min_size": SIZE, "max_size": SIZE, "flip": "none", "optimizer": {"kind": "adamw", "lr": 6e-4},
}  # fmt: skip
TEACHER = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 96}
STUDENT = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64}
ARMS = [{"name": "fgd", "methods": [{"kind": "fgd"}]}]
SEEDS = [0]
EPOCHS = {"teacher": 24, "students": 9, "more": 60}
RESOURCES = {"threads": 1}
"""On a busy machine two threads wait for each other."""
BUDGET = {"latency_budget_ms": 12, "runtime": "onnxruntime", "threads": 1, "seconds": 60}
WIDE_PX, HIGH_PX, MOST_HIGH_PX = 1280, 800, 1250
LARGEST = 150_000
"""Bytes of a picture."""
PATIENCE_MS = 600_000


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
    begun = client.add_dataset("street digits", None, idempotency_key="pictures-data")
    if begun.state == "awaiting_upload":  # a path of this machine would stand in the picture
        client.upload_dataset(begun.id, Path(shutil.make_archive(str(folder), "zip", folder)))
    dataset = client.wait_dataset(begun.id)
    assert dataset.state == "ready", dataset.error
    spec = {
        "name": "teacher", "dataset": dataset.id, "teacher": None, "methods": [], "student": TEACHER,
        "schedule": SCHEDULE | {"epochs": EPOCHS["teacher"], "evaluate_every": 6}, "metadata": {"team": "readers"},
        "resources": RESOURCES,
    }  # fmt: skip
    teacher = client.wait(client.submit(spec, "pictures-teacher").id)
    assert teacher.state == "succeeded", teacher.failure
    study = client.submit_study(
        {
            "name": "what FGD adds", "dataset": dataset.id, "teacher": {"job": teacher.id, "allow_unfit": True},
            "schedule": SCHEDULE | {"epochs": EPOCHS["students"]}, "arms": ARMS, "students": [STUDENT],
            "seeds": SEEDS, "resources": RESOURCES, "metadata": {"team": "readers"},
        },
        "pictures-study",
    )  # fmt: skip
    jobs = [client.wait(job.id) for job in client.jobs(study=study.id)]
    assert all(job.state == "succeeded" for job in jobs), [(job.name, job.failure) for job in jobs]
    student, control = sorted(jobs, key=lambda job: not job.spec["methods"])
    plan = client.wait_plan(
        client.find_student({"dataset": dataset.id, "teacher": {"job": teacher.id}, **BUDGET}).id, patience_s=1800
    )
    assert plan.state == "measured", plan.error
    return Content(dataset.id, teacher.id, study.id, student.id, control.id, plan.id)


# --- the pages ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """A page: its address behind the "#", what is there when it is complete, and what is done before that."""

    name: str
    address: str
    ready: str
    """A selector."""
    before: Callable[[Any], None] = lambda page: None


def shots(of: Content, picture: Path) -> list[Shot]:
    job = f"jobs/{of.student}"
    spec = {
        "name": "street digits, small student", "dataset": of.dataset, "teacher": {"job": of.teacher},
        "student": STUDENT, "methods": [{"kind": "fgd"}], "schedule": SCHEDULE | {"epochs": EPOCHS["more"]},
        "resources": RESOURCES,
    }  # fmt: skip
    budget = f"budget?plan={of.budget}&dataset={of.dataset}&teacher={of.teacher}&latency_budget_ms=12&seconds=60"
    return [
        Shot("job", job, "canvas.plot"),
        Shot("learns", f"{job}?tab=learns", ".looks canvas", last_evaluation),
        Shot("detections", f"{job}?tab=detections&score=0.3", ".sides figure svg"),
        Shot("classes", f"{job}?tab=classes", "td.number"),
        Shot("try", f"{job}?tab=try&score=0.3", ".scene svg", lambda page: tried(page, picture)),
        Shot("files", f"{job}?tab=files", "text=Use them"),
        Shot("compare", f"compare?id={of.student}&id={of.control}", "canvas.plot"),
        Shot("dataset", f"datasets/{of.dataset}", ".picture .box-of"),
        Shot("study", f"studies/{of.study}", "table"),
        Shot("budget", budget, "svg.pareto"),
        Shot("new", f"new?spec={quote(json.dumps(spec))}", "text=Parameters", planned),
        Shot("jobs", "jobs", ".state.running"),
        Shot("workers", "workers", "text=training"),
    ]


def last_evaluation(page: Any) -> None:
    slider = page.get_by_label("Evaluation")
    slider.wait_for()
    slider.fill(slider.get_attribute("max"))


def tried(page: Any, picture: Path) -> None:
    page.get_by_label("Choose a picture").set_input_files(picture)


def planned(page: Any) -> None:
    page.get_by_role("button", name="Show the plan").click()


def take(address: str, wanted: Sequence[Shot], out: Path, schemes: Sequence[str] = ("light", "dark")) -> None:
    """Each in both colour schemes, as small pictures."""
    from playwright.sync_api import sync_playwright  # an extra, for developers

    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=there(), args=["--no-sandbox", "--disable-gpu"])
        for scheme in schemes:
            view = {"width": WIDE_PX, "height": HIGH_PX}
            context = browser.new_context(viewport=view, color_scheme=scheme, reduced_motion="reduce")
            context.set_default_timeout(PATIENCE_MS)
            for shot in wanted:
                page = context.new_page()
                page.goto(f"{address}/#/{shot.address}")
                shot.before(page)
                page.locator(shot.ready).first.wait_for()
                page.evaluate("document.activeElement.blur()")
                page.wait_for_timeout(3000)  # curves are drawn, images decoded
                file = out / f"{shot.name}-{scheme}.webp"
                file.write_bytes(small(page.screenshot(full_page=True)))
                print(f"{file}: {file.stat().st_size / 1000:.0f} kB", flush=True)
                page.close()
        browser.close()


def small(png: bytes) -> bytes:
    """As a WebP that is as good as LARGEST allows."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, MOST_HIGH_PX)))
    for quality in (90, 80, 70, 60):
        made = io.BytesIO()
        image.save(made, "WEBP", quality=quality, method=6)
        if made.tell() <= LARGEST:
            break
    return made.getvalue()


def busy(client: Client, of: Content) -> list[str]:
    """A longer training that runs while the table of jobs is taken, and one that waits behind it."""
    body = {
        "dataset": of.dataset, "teacher": {"job": of.teacher, "allow_unfit": True}, "student": STUDENT,
        "methods": [{"kind": "fgd"}], "schedule": SCHEDULE | {"epochs": EPOCHS["more"]}, "resources": RESOURCES,
        "metadata": {"team": "readers"},
    }  # fmt: skip
    ids = [client.submit({"name": name, **body}).id for name in ("longer, FGD", "longer, FGD, once more")]
    while (progress := client.job(ids[0]).progress) is None or progress.step < 25:
        time.sleep(1)
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("runs/pictures"), help="the folder of the service")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="the folder for the pictures")
    parser.add_argument("--only", nargs="+", default=[], help="names of pictures")
    told = parser.parse_args()
    home = told.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    folder = digits.compose(home / "digits", counts=COUNTS, size=SIZE, classes=CLASSES, box_px=BOX_PX, per_image=(1, 2))
    with service_at(None, home, []) as (address, service), Client(address) as client:
        assert service is not None
        service.wait_ready(client)
        print(address)
        content = made(client, folder)
        wanted = shots(content, sorted((folder / "test").glob("*.*g"))[0])
        wanted = [shot for shot in wanted if not told.only or shot.name in told.only]
        quiet = [shot for shot in wanted if shot.name not in ("jobs", "workers")]
        take(address, quiet, told.out)
        if len(quiet) < len(wanted):
            running = busy(client, content)
            take(address, [shot for shot in wanted if shot not in quiet], told.out)
            for job in running:
                client.delete_job(client.wait(client.cancel(job, "now").id).id)


if __name__ == "__main__":
    main()
