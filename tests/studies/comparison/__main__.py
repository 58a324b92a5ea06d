"""The study of docs/study.md.

    python -m tests.studies.comparison run [--until HH:MM] [--only SETTING/ARM/SEED ...]
    python -m tests.studies.comparison tables
    python -m tests.studies.comparison reproduce SETTING/ARM/SEED
    python -m tests.studies.comparison left

`run` trains what docs/study/runs.jsonl does not have yet, two one-thread trainings at a time, and adds a line for each
that ends: an interruption costs the trainings under way, and they continue from their checkpoints. `reproduce`
trains a finished run again from the spec in its line and compares the weights, which are the same to the bit on a
processor of the same kind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Event, Lock

from fgd.engine.device import processor_name
from fgd.events import Evaluated, Failed, Note, Started, from_line
from fgd.statistics import detections
from fgd.statistics.intervals import drawn
from fgd.statistics.matching import match
from tests.studies.checkout import commit
from tests.studies.comparison import plan, record, sets, tables
from tests.studies.comparison.plan import Run

ROOT = Path(__file__).parents[3]
LINES = ROOT / "docs/study/runs.jsonl"
AT_ONCE = 2
TEACHERS = Lock()
RESAMPLES = 400
"""Of the images, kept in each line."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    match arguments.verb:
        case "run":
            return run_all(arguments)
        case "tables":
            print(tables.markdown(record.load(LINES)))
        case "left":
            done = record.load(LINES)
            print("\n".join(each.name for each in plan.runs() if each.name not in done))
        case "reproduce":
            return reproduce(arguments)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "tables", "reproduce", "left"))
    parser.add_argument("names", nargs="*", help="runs, or beginnings of their names; all that are left by default")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/study", help="the study's folder")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder of the published sets")
    parser.add_argument("--until", help="HH:MM; nothing is begun after it")
    parser.add_argument("--lines", type=Path, default=LINES, help="where a finished run adds its line")
    return parser.parse_args(argv)


def run_all(arguments: argparse.Namespace) -> int:
    done = record.load(arguments.lines)
    wanted = [
        each
        for each in plan.runs()
        if each.name not in done
        and (not arguments.names or any(each.name.startswith(name) for name in arguments.names))
    ]
    for name in {plan.SETTINGS[each.setting].data for each in wanted}:
        sets.make(name, arguments.data, arguments.out / plan.DATA / name)
    taught = {each: Event() for each in wanted if each.arm == plan.TEACHER}

    def one(run: Run) -> None:
        if arguments.until and datetime.now().strftime("%H:%M") >= arguments.until:
            return
        if plan.needs_teacher(run):
            if (ready := taught.get(plan.teacher_of(run))) is not None:
                ready.wait()
            ensure_teacher(run, arguments.out)
        try:
            train_one(run, arguments)
        except BaseException as error:  # the pool keeps it until all others have ended
            print(f"{run.name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            raise
        finally:  # one that failed must not keep its students waiting: they train it again, and say why it fails
            if run in taught:
                taught[run].set()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, wanted))
    return 0


def ensure_teacher(run: Run, out: Path) -> None:
    """Train it again where its weights are gone: on another machine a finished run is only a line."""
    teacher = plan.teacher_of(run)
    with TEACHERS:
        if not (out / plan.RUNS / teacher.name / "result/manifest.json").exists():
            train(teacher.name, plan.spec_of(teacher).model_dump(mode="json"), out)


def train_one(run: Run, arguments: argparse.Namespace) -> None:
    started = time.monotonic()
    finished = train(run.name, plan.spec_of(run).model_dump(mode="json"), arguments.out)
    seconds = time.monotonic() - started
    record.add(arguments.lines, line_of(run, finished, arguments.out, seconds))
    print(f"{run.name}: {seconds:.0f} s", flush=True)


def train(name: str, spec: Mapping[str, object], out: Path) -> Path:
    """The run's folder, its training ended."""
    folder = out / plan.RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(spec, indent=2))
    command = [sys.executable, "-m", "fgd.train", str(folder / "spec.json"), "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "events.jsonl").open("ab") as lines, (folder / "log").open("ab") as log:
        done = subprocess.run(
            ["nice", "-n", "19", *command], cwd=out, stdout=lines, stderr=log, env=environment, check=False
        )
    if done.returncode:
        failed = [event.message for event in events(folder) if isinstance(event, Failed)]
        raise SystemExit(f"{name}: {failed[-1:]}; see {folder / 'log'}")
    return folder


def events(folder: Path) -> list[object]:
    return [from_line(line) for line in (folder / "events.jsonl").read_bytes().splitlines()]


def line_of(run: Run, folder: Path, out: Path, seconds: float) -> record.Finished:
    manifest = json.loads((folder / "result/manifest.json").read_text())
    seen = events(folder)
    split = "test" if "test" in manifest["metrics"] else "val"
    on_resamples = drawn(match(detections.read(folder / "result/detections.npz")[split]), RESAMPLES)
    teacher = out / plan.RUNS / plan.teacher_of(run).name / "result/manifest.json"
    return record.Finished(
        name=run.name,
        spec=json.loads((folder / "spec.json").read_text()),
        commit=commit(),
        machine=f"{len(os.sched_getaffinity(0))} cores of {processor_name()}, Python {platform.python_version()}",
        precision=next(event.precision for event in seen if isinstance(event, Started)),
        seconds=round(seconds),
        steps=manifest["steps"],
        ap=record.rounded(manifest["metrics"][split]),
        curve=curve(seen),
        images=on_resamples.images,
        drawn=tuple(round(float(ap), 3) for ap in on_resamples.value_B),
        warnings=tuple(dict.fromkeys(e.code for e in seen if isinstance(e, Note) and e.level == "warning")),
        teacher=json.loads(teacher.read_text())["weights_digest"] if plan.needs_teacher(run) else None,
        weights=manifest["weights_digest"],
        notes={key: manifest[key] for key in ("calibration", "balance") if manifest.get(key)},
    )


def curve(seen: list[object]) -> tuple[tuple[int, float], ...]:
    """Of an attempt that was resumed, a step once."""
    points = {e.step: e.values.get("ap") for e in seen if isinstance(e, Evaluated) and e.split == "val"}
    return tuple((step, round(ap or 0.0, 3)) for step, ap in sorted(points.items()))


def reproduce(arguments: argparse.Namespace) -> int:
    done = record.load(arguments.lines)
    for name in arguments.names:
        setting, arm, seed = name.split("/")
        run, was = Run(setting, arm, int(seed)), done[name]
        sets.make(plan.SETTINGS[setting].data, arguments.data, arguments.out / plan.DATA / plan.SETTINGS[setting].data)
        if plan.needs_teacher(run):
            ensure_teacher(run, arguments.out)
        folder = train(f"again/{name}", was.spec, arguments.out)
        now = line_of(run, folder, arguments.out, 0)
        same = "the same weights" if now.weights == was.weights else "other weights"
        print(f"{name}: {same}; AP {now.ap['ap']} now, {was.ap['ap']} in {LINES.name} ({was.machine}, {was.commit})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
