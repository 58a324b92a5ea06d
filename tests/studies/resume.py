"""Is a training that is interrupted again and again the same, to the byte? Through the real service.

    python tests/studies/resume.py --out runs/resume --interruptions 20

One small distillation with everything that has a state (averaged weights, several batches a step, several sizes, crops
and colours, early stop) runs undisturbed; then the same job is submitted again, and whenever it has gone on for
a random number of steps, its trainer is killed, its worker is killed, or its worker is told to stop. Each job is
interrupted some times; at its end every file is compared with the undisturbed one's, and so are the epochs' means and
the scores.
Ends with a table for docs/studies.md; exit code 1 if a single byte differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgd.data.digits import compose
from tests.e2e.conftest import real_services
from tests.e2e.parts import Api, Service, pids, until

STUDENT = {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 64}
SCHEDULE = {
    "epochs": 6,
    "batch_size": 2,
    "accumulate": 2,
    "min_size": 64,
    "max_size": 64,
    "scales": [64, 96],
    "augment": {"photometric": {"brightness": 0.3, "hue": 0.05}, "crop": {"keep": "share"}},
    "ema": {"decay": 0.9},
    "early_stop": {"patience": 30},
    "checkpoint_steps": 2,
}
WAYS = ("trainer killed", "worker killed", "worker drained")
PATIENT_S = 600.0


@dataclass(frozen=True)
class Interruption:
    way: str
    after_step: int
    """The last step that was reported before."""
    resumed_at: int
    steps_lost: int


@dataclass(frozen=True)
class Ended:
    files: dict[str, str]
    curves: dict[str, list[tuple[int, Any]]]
    attempts: int


class Bench(Api):
    def __init__(self, service: Service, data: Path) -> None:
        super().__init__(service)
        self.dataset = self.post("/v1/datasets", {"name": "digits", "path": str(data)})["id"]
        until(lambda: self.get(f"/v1/datasets/{self.dataset}")["state"] == "ready", PATIENT_S, "the import")
        short = {"epochs": 1, "batch_size": 4, "min_size": 64, "max_size": 64}
        wide = STUDENT | {"fpn_channels": 96}
        self.teacher = self.submit(teacher=None, methods=[], student=wide, schedule=short)
        self.ended(self.teacher)

    def submit(self, **changes: Any) -> str:
        body = {
            "name": "resume",
            "teacher": {"job": getattr(self, "teacher", None), "allow_unfit": True},
            "student": STUDENT,
            "dataset": self.dataset,
            "methods": [{"kind": "fgd"}],
            "schedule": SCHEDULE,
            "resources": {"threads": 1},
            "limits": {"max_retries": 50},
        }
        return str(self.post("/v1/jobs", body | changes)["id"])

    def step(self, job: str) -> int:
        return int((self.service.job(job)["progress"] or {}).get("step") or 0)

    def over(self, job: str) -> bool:
        return self.service.job(job)["state"] not in ("queued", "running")

    def ended(self, job: str) -> Ended:
        until(lambda: self.over(job), PATIENT_S, "the end")
        view = self.service.job(job)
        assert view["state"] == "succeeded", view["failure"]
        files = {file["name"]: file["sha256"] for file in self.get(f"/v1/jobs/{job}/artifacts")["items"]}
        curves: dict[str, list[tuple[int, Any]]] = {}
        for point in self.get(f"/v1/jobs/{job}/metrics")["items"]:
            curves.setdefault(f"{point['split']}/{point['name']}", []).append((point["step"], point["value"]))
        return Ended(files, curves, view["attempt"])

    def starts(self, job: str) -> list[dict[str, Any]]:
        items = self.get(f"/v1/jobs/{job}/events?after=0&limit=200")["items"]
        return [event["data"] for event in items if event["type"] == "started"]

    def interrupt(self, job: str, way: str) -> None:
        home = self.service.home
        if way == "trainer killed":
            os.kill(until(lambda: pids(home, "fgd.train"), PATIENT_S, "the trainer")[-1], signal.SIGKILL)
        else:
            worker = until(lambda: pids(home, "-m worker"), PATIENT_S, "the worker")[-1]
            os.kill(worker, signal.SIGKILL if way == "worker killed" else signal.SIGTERM)


def same(ended: Ended, whole: Ended) -> list[str]:
    """What differs; nothing, one hopes."""
    differs = [name for name in sorted(whole.files) if ended.files.get(name) != whole.files[name]]
    for name, points in whole.curves.items():
        of_the_steps_alone = "/epoch/" in name or name.startswith(("val/", "test/"))
        if of_the_steps_alone and ended.curves.get(name) != points:
            differs.append(name)
    for name, points in ended.curves.items():
        steps = [step for step, _ in points]
        if steps != sorted(set(steps)):
            differs.append(f"{name} has doubled or unordered points")
    return differs


def disturbed(bench: Bench, dice: random.Random, most: int) -> tuple[str, list[Interruption]]:
    """A job that is interrupted up to `most` times, then left alone."""
    job, struck = bench.submit(), []
    for _ in range(most):
        until(lambda: bench.over(job) or bench.service.job(job)["phase"] == "training", PATIENT_S, "training")
        goal = bench.step(job) + dice.randint(1, 6)
        until(lambda goal=goal: bench.over(job) or bench.step(job) >= goal, PATIENT_S, f"step {goal}")
        if bench.over(job):
            break
        way, reached, starts = dice.choice(WAYS), bench.step(job), len(bench.starts(job))
        bench.interrupt(job, way)
        until(lambda starts=starts: bench.over(job) or len(bench.starts(job)) > starts, PATIENT_S, "another attempt")
        later = bench.starts(job)[starts:]
        if not later:
            break
        struck.append(Interruption(way, reached, later[0]["step"], later[0]["steps_lost"]))
        print(struck[-1], flush=True)
    return job, struck


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/resume"))
    parser.add_argument("--interruptions", type=int, default=20)
    parser.add_argument("--each", type=int, default=4, help="interruptions of one job at most")
    parser.add_argument("--seed", type=int, default=0, help="of the steps and ways, not of the training")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    out, dice, began = arguments.out.resolve(), random.Random(arguments.seed), time.monotonic()
    data = out / "data" / "digits"
    counts = {"train": 24, "val": 6, "test": 5}
    compose(data, counts=counts, size=64, classes=("0", "7"), box_px=(16, 40), per_image=(1, 2))
    rows, struck, wrong = [], 0, 0
    with real_services(out / "home", out / "data") as service:
        bench = Bench(service, data)
        whole = bench.ended(bench.submit())
        while struck < arguments.interruptions:
            job, story = disturbed(bench, dice, min(arguments.each, arguments.interruptions - struck))
            differs = same(bench.ended(job), whole)
            struck, wrong = struck + len(story), wrong + bool(differs)
            verdict = f"**differs: {', '.join(differs)}**" if differs else "identical"
            told = "; ".join(f"{each.way} after {each.after_step}, on from {each.resumed_at}" for each in story)
            rows.append(f"| {len(rows) + 1} | {len(story)} | {told} | {verdict} |")
            print(rows[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    print(
        f"\n`{' '.join(sys.argv)}`, commit {commit.strip()}, {os.cpu_count()} cores, {time.monotonic() - began:.0f} s\n"
    )
    print("| job | interruptions | where (steps) | files, epoch means, AP |\n|---|---|---|---|", *rows, sep="\n")
    print(f"\n{struck} interruptions of {len(rows)} jobs; {len(rows) - wrong} of {len(rows)} jobs byte-identical")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
