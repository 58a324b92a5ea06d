"""What FGD adds to the same student, schedule and seed without a teacher. Seeds are fixed beforehand.

    python tests/studies/fgd_vs_control.py digits --out runs/digits --seeds 0 1 2
    python tests/studies/fgd_vs_control.py FOLDER --out runs/x --seeds 0 --images 300 --min-size 160 --max-size 224

Each run uses one thread and two runs go side by side, so on two cores a control and its distilled run cost the same
wall time and are disturbed alike. A commit's finished runs are kept, so the study can be stopped and gone on with.
Prints a table in Markdown; --out keeps every event of every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench_loss import commit

from fgd.cli.demo import plan
from fgd.data import archive, coco
from fgd.data.digits import compose
from fgd.engine.device import processor_name
from fgd.events import Evaluated, Event, Failed, Note, Stepped, from_line
from fgd.method_specs import FGD, MethodSpec, Mimic
from fgd.spec import JobSpec, Resources, Schedule
from fgd.spec_fields import FromPath, TeacherFromPath

METHODS: dict[str, tuple[MethodSpec, ...]] = {"control": (), "fgd": (FGD(),), "mimic": (Mimic(),)}


def main() -> None:
    arguments = parse()
    data, teacher_schedule, schedule = prepare(arguments)
    chosen = plan(report_of(data), own_data=False)
    teacher = arguments.teacher or arguments.out / "teacher" / "result"
    common = {"dataset": FromPath(path=str(data)), "resources": Resources(threads=1)}
    if arguments.teacher is None:
        spec = JobSpec(
            name="teacher", teacher=None, student=chosen.teacher, methods=(), schedule=teacher_schedule, **common
        )
        train(spec.but(resources=Resources(threads=2)), arguments.out / "teacher")
    runs = {
        (method, seed): JobSpec(
            name=f"{method}-{seed}",
            teacher=TeacherFromPath(path=str(teacher.resolve())) if METHODS[method] else None,
            student=chosen.student,
            methods=METHODS[method],
            schedule=schedule.but(precision=arguments.precision),
            seed=seed,
            **common,
        )
        for seed in arguments.seeds
        for method in arguments.methods
    }
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: train(item[1], arguments.out / item[1].name), runs.items()))
    print(table(arguments, teacher, {key: events_of(arguments.out / spec.name) for key, spec in runs.items()}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help='"digits", or a COCO folder')
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["control", "fgd"])
    parser.add_argument("--images", type=int, help="use this many training images, evenly spaced")
    parser.add_argument("--min-size", type=int, default=160)
    parser.add_argument("--max-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--teacher-epochs", type=int, default=16)
    parser.add_argument("--precision", choices=("auto", "float32", "bf16"), default="auto", help="of the students")
    parser.add_argument("--teacher", type=Path, help="result folder of a teacher that is already trained")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace) -> tuple[Path, Schedule, Schedule]:
    """Folder of the data, and the schedules of teacher and students."""
    folder = arguments.out / "data"
    if arguments.data == "digits":
        compose(folder)  # what is there already must be the same, else it says so
        chosen = plan(report_of(folder), own_data=False)
        return folder, chosen.teacher_schedule, chosen.student_schedule
    if not folder.exists():
        index, _, sources = coco.read(Path(arguments.data))
        train = index.splits["train"]
        count = min(arguments.images or len(train), len(train))
        some = tuple(train[i * len(train) // count] for i in range(count))
        index = index.model_copy(update={"splits": {**index.splits, "train": some}})
        tar = arguments.out / "data.tar"
        tar.parent.mkdir(parents=True, exist_ok=True)
        archive.pack(index, sources, tar)
        archive.unpack(tar, folder)
    size = {"batch_size": 4, "min_size": arguments.min_size, "max_size": arguments.max_size, "evaluate_every": 4}
    optimizer = plan(None, own_data=False).student_schedule.optimizer  # type: ignore[arg-type]
    schedules = (Schedule(epochs=n, optimizer=optimizer, **size) for n in (arguments.teacher_epochs, arguments.epochs))
    teacher_schedule, schedule = schedules
    return folder, teacher_schedule, schedule


def report_of(folder: Path) -> Any:
    return coco.read(folder, verify="headers")[1] if (folder / "annotations").exists() else None


def train(spec: JobSpec, out: Path) -> None:
    asked, path, by = spec.model_dump_json(indent=2), out / "spec.json", out / "commit"
    if by.exists() and (path.read_text(), by.read_text()) == (asked, commit()):
        return
    out.mkdir(parents=True, exist_ok=True)
    by.unlink(missing_ok=True)  # it says that the run has ended
    path.write_text(asked)
    command = [sys.executable, "-m", "fgd.train", str(out / "spec.json"), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(spec.resources.threads)}
    with (out / "events.jsonl").open("wb") as lines, (out / "log").open("wb") as log:
        done = subprocess.run(command, stdout=lines, stderr=log, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{spec.name}: {[e.message for e in events_of(out) if isinstance(e, Failed)]}; see {out / 'log'}")
    by.write_text(commit())


def events_of(out: Path) -> list[Event]:
    return [from_line(line) for line in (out / "events.jsonl").read_bytes().splitlines()]


def table(arguments: argparse.Namespace, teacher: Path, runs: dict[tuple[str, int], list[Event]]) -> str:
    manifest = json.loads((teacher / "manifest.json").read_text())
    split = "test" if "test" in manifest["metrics"] else "val"
    lines = [
        f"`python tests/studies/fgd_vs_control.py {' '.join(sys.argv[1:])}`, commit {commit()}, "
        f"{len(os.sched_getaffinity(0))} cores of {processor_name()}, Python {platform.python_version()}; "
        f"AP on {split}, last checkpoint",
        "",
        "| run | seed | AP | AP50 | AP75 | minus control |",
        "|---|---|---|---|---|---|",
        f"| teacher | {manifest['spec']['seed']} | {figures(manifest['metrics'][split])} | |",
    ]
    gains: dict[str, list[float]] = {}
    for (method, seed), events in runs.items():
        scores = last_scores(events, split)
        gain = ""
        if method != "control" and ("control", seed) in runs:
            difference = scores["ap"] - last_scores(runs["control", seed], split)["ap"]
            gains.setdefault(method, []).append(difference)
            gain = f"{difference:+.1f}"
        lines.append(f"| {method} | {seed} | {figures(scores)} | {gain} |")
    for method, values in gains.items():
        spread = f", standard deviation {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines += [
            "",
            f"{method} minus control: mean {statistics.mean(values):+.2f} AP over {len(values)} seeds{spread}",
        ]
    for (method, seed), events in runs.items():
        shares = [(e.epoch, e.values) for e in events if isinstance(e, Stepped) and "epoch/loss/total" in e.values]
        if METHODS[method] and shares:
            lines += [
                "",
                f"Share of each term ({method}, seed {seed}): weighted term / detection loss, mean over the epoch",
                "",
            ]
            terms = sorted(name for name in shares[0][1] if name.startswith("epoch/share/"))
            lines += ["| epoch | " + " | ".join(term.removeprefix("epoch/share/") for term in terms) + " |"]
            lines += ["|---" * (len(terms) + 1) + "|"]
            for epoch, values in (shares[0], shares[len(shares) // 2], shares[-1]):
                lines += [f"| {epoch} | " + " | ".join(f"{values[term]:.4f}" for term in terms) + " |"]
    notes = [e.message for events in runs.values() for e in events if isinstance(e, Note)]
    return "\n".join([*lines, "", *dict.fromkeys(notes)])


def last_scores(events: list[Event], split: str) -> dict[str, float]:
    return [e.values for e in events if isinstance(e, Evaluated) and e.split == split][-1]  # type: ignore[return-value]


def figures(scores: dict[str, Any]) -> str:
    return " | ".join(f"{scores[name]:.1f}" for name in ("ap", "ap50", "ap75"))


if __name__ == "__main__":
    main()
