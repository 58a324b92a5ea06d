"""What a distillation costs beside the least it could: one table an item, in Markdown, all from one run.

    python tests/studies/bench.py --data path/to/coco --quick

Items: loss, step, cache (of the teacher's maps), pipeline, start (with evaluation's share and memory). Candidates of an
item run in turn, in random order, within each round, so that whatever else runs on the machine meets them alike; those
of the pipeline in processes of their own. Ratios are of the same round, medians with the 95 % interval of a bootstrap.
"cpu" is processor time of the process: it depends less on neighbours than the clock. The teacher has random weights,
which cost as much as trained ones. Without --data, digits are composed. With --device cuda step and pipeline run on a
GPU; "cpu" is then what the processor spends to keep it busy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bench_loss import Maps, commit, header, learn, ratio, row
from bench_loss import measure as measure_loss
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_tensor

from fgd.data.digits import compose
from fgd.data.formats import open_index
from fgd.data.loader import Dataset, train_batches
from fgd.detector_specs import FCOS
from fgd.detectors import Detector, build
from fgd.engine import device, prepare, step, weights
from fgd.engine.distill import Teacher
from fgd.engine.optimise import make_optimizer
from fgd.engine.prepare import Training
from fgd.engine.teacher_cache import TeacherCache
from fgd.presets import resolve
from fgd.recipe import Recipe
from fgd.result_files import WEIGHTS
from fgd.spec import JobSpec
from fgd.types import Batch, View

ITEMS = ("loss", "step", "cache", "pipeline", "start")
Times = dict[str, list[tuple[float, float]]]
"""Candidate -> (seconds on the clock, seconds of the processor) of each round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", nargs="+", choices=ITEMS, default=ITEMS)
    parser.add_argument("--data", type=Path, help="a COCO folder")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--min-size", type=int, default=320)
    parser.add_argument("--max-size", type=int, default=448)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of step and pipeline")
    parser.add_argument("--images", type=int, default=32, help="of an epoch of pipeline and cache, at most")
    parser.add_argument("--precisions", nargs="+", default=["float32", "auto"], help="of pipeline and cache")
    parser.add_argument("--epochs", type=int, default=5, help="of the cache")
    parser.add_argument("--quick", action="store_true", help="few rounds: under five minutes on two cores")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.epochs = min(arguments.rounds, 5), min(arguments.epochs, 3)
        arguments.min_size, arguments.max_size = min(arguments.min_size, 160), min(arguments.max_size, 224)
    torch.set_num_threads(arguments.threads)
    device.keep_freed_memory()  # as the trainer does; plain scripts run in processes of their own
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{device.processor_name()}, torch {torch.__version__}, commit {commit()}, {arguments.threads} threads,")
    print(f"{arguments.rounds} rounds, load before the run {load}\n")
    with tempfile.TemporaryDirectory(prefix="fgd-bench-") as folder:
        bench = Bench(arguments, Path(folder))
        for item in arguments.items:
            getattr(bench, item)()
    print("load after the run " + ", ".join(f"{each:.1f}" for each in os.getloadavg()))


class Bench:
    """The items, on one set of data and one teacher."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder, self.rounds = arguments, folder, int(arguments.rounds)
        self.data = arguments.data or folder / "digits"
        if arguments.data is None:
            compose(self.data, counts={"train": 64, "val": 16, "test": 8}, size=arguments.max_size)
        self.classes = open_index(self.data)[0].classes

    @functools.cached_property
    def teacher(self) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights.export(self.folder / "teacher", build(self.recipe("resnet50", 256)), {}, None)
        return self.folder / "teacher"

    def recipe(self, backbone: Any, channels: int) -> Recipe:
        detector = FCOS(backbone=backbone, fpn_channels=channels)
        a = self.arguments
        return Recipe(detector=detector, classes=self.classes, min_size=a.min_size, max_size=a.max_size)

    def spec(self, *, distilled: bool, epochs: int = 2, **schedule: Any) -> JobSpec:
        a = self.arguments
        sizes = {"epochs": epochs, "batch_size": a.batch, "min_size": a.min_size, "max_size": a.max_size}
        plain = {
            "name": "bench",
            "teacher": {"path": str(self.teacher), "allow_unfit": True} if distilled else None,
            "methods": [{"kind": "fgd"}] if distilled else [],
            "student": {"kind": "fcos", "backbone": "resnet18", "fpn_channels": 128},
            "dataset": {"path": str(self.data.resolve())},
            "schedule": sizes | schedule,
            "resources": {"device": a.device, "threads": a.threads},
        }
        return resolve(JobSpec.model_validate_json(json.dumps(plain)))

    def parts(self, spec: JobSpec) -> tuple[Training, torch.optim.Optimizer]:
        machine = device.choose(spec.resources, spec.schedule.precision)
        parts, _, _ = prepare.prepare(spec, machine, None, lambda _: None, lambda: None, rehearsal_images=4)
        parts.distill.train()
        return parts, make_optimizer([parts.distill], spec.schedule.optimizer)

    # --- the items ---

    def loss(self) -> None:
        title("The loss: five levels of 800x1344, 256 channels, 2 images, 60 boxes each")
        print(header())
        print(f"| {row(measure_loss(60, 'contiguous', min(self.rounds, 15)))} |\n")

    def step(self) -> None:
        parts, optimizer = self.parts(self.spec(distilled=True))
        batches = [device.to_device(batch, parts.machine.device) for batch in some_batches(parts, 4)]
        title(f"The step: FCOS R50 to R18, {size_of(batches[0])}, {parts.machine.precision}")
        bare, bare_optimizer = self.parts(self.spec(distilled=True))
        loaded, loaded_optimizer = self.parts(self.spec(distilled=True))
        loaded = dataclasses.replace(loaded, teachers={"": AsLoaded(self.teacher, loaded.machine.device)})
        maps = {id(batch): maps_of(bare, batch) for batch in batches}
        candidates: dict[str, Callable[[Batch], object]] = {
            "ours": lambda batch: step.step(parts, optimizer, [batch], 1, 100),
            "comparison": lambda batch: step.step(loaded, loaded_optimizer, [batch], 1, 100),
            "floor": lambda batch: bare_step(bare, bare_optimizer, batch),
            "student": lambda batch: student_step(bare, bare_optimizer, batch),
            "loss": lambda batch: loss_step(parts.distill.methods["fgd"], *maps[id(batch)], batch),
            "adapters": lambda batch: adapter_step(parts.distill.methods["fgd"], maps[id(batch)][0]),
        }
        times = in_turn(candidates, batches, self.rounds)
        table(times, "teacher as loaded (float32, not folded)", "teacher's neck, student, update")
        print(f"\nOf the floor the student alone: {cells(times['student'])} (clock / cpu).\n")
        print("| forward and backward, on maps that are there | ms (clock / cpu) | of a step, clock | cpu |")
        print("|---" * 4 + "|")
        for name in ("loss", "adapters"):
            told = {"loss": "loss with its adapters", "adapters": "the adapters alone"}[name]
            shares = [fine(*([pair[k] for pair in times[each]] for each in (name, "ours"))) for k in (0, 1)]
            print(f"| {told} | {cells(times[name])} | {' | '.join(shares)} |")
        print()

    def cache(self) -> None:
        """Whole epochs with and without it, in turn; nothing of one epoch is a repetition of another."""
        a = self.arguments
        title("The teacher's cache, same networks and size")
        print("Milliseconds a step (clock / cpu); ratios of the clock; floor: the teacher's maps are there already.\n")
        names = "ours: with | comparison: without | floor | comparison / ours | ours / floor"
        print(f"| precision | flip | epoch | hits | {names} | MiB an entry |")
        print("|---" * 10 + "|")
        for precision, flip in itertools.product(a.precisions, ("none", "horizontal")):
            some = self.parts(self.spec(distilled=True, precision=precision, flip=flip))
            other, optimizer = self.parts(self.spec(distilled=True, precision=precision, flip=flip))
            assert other.teacher is not None
            kept = TeacherCache(other.teacher, self.folder, max_bytes=2**34, keep_free=2**30, emit=print)
            bare, bare_optimizer = self.parts(self.spec(distilled=True, precision=precision, flip=flip))
            candidates = {
                "ours": (dataclasses.replace(other, cache=kept), optimizer),
                "comparison": some,
                "floor": (dataclasses.replace(bare, teachers={"": Remembered(bare.teacher)}), bare_optimizer),
            }
            cost_of_epoch(*candidates["floor"], 0, a.images)  # it remembers
            for epoch in range(a.epochs):
                times = {}
                for name in random.Random(epoch).sample(list(candidates), len(candidates)):
                    times[name] = cost_of_epoch(*candidates[name], epoch, a.images)
                hits = kept.figures()["teacher/cache_hits"]
                ours, without, floor = (times[name] for name in candidates)
                told = [other.machine.precision, flip, str(epoch + 1), f"{100 * hits:.0f} %"]
                told += [" / ".join(f"{1000 * each:.0f}" for each in pair) for pair in (ours, without, floor)]
                told += [f"{without[0] / ours[0]:.2f}", f"{ours[0] / floor[0]:.2f}"]
                told += [f"{kept.file.end / 2**20 / len(kept.entries):.2f}"]
                print(f"| {' | '.join(told)} |", flush=True)
            kept.close()
        print()

    def pipeline(self) -> None:
        title("The whole job: plain training of R18, same size, images per second against torchvision's tutorial loop")
        print("Images per second; floor: forward, backward and update alone, on batches that are there already.\n")
        names = "ours | comparison: tutorial | floor | ours / comparison, clock | cpu | ours / floor, clock | cpu"
        print(f"| precision | {names} | wait for data |")
        print("|---" * 9 + "|")
        for precision in self.arguments.precisions:
            runners = {
                kind: Runner(kind, self.arguments, self.folder, precision) for kind in ("ours", "tutorial", "floor")
            }
            epochs: dict[str, list[Epoch]] = {kind: [] for kind in runners}
            for round_ in range(-1, max(2, self.rounds // 5)):  # the first only warms up
                for kind in random.Random(round_).sample(list(runners), len(runners)):
                    done = runners[kind].one_epoch()
                    if round_ >= 0:
                        epochs[kind].append(done)
            for runner in runners.values():
                runner.end()
            rates = [f"{each[0].images / statistics.median(e.clock_s for e in each):.1f}" for each in epochs.values()]
            ratios = [
                fine(*([getattr(e, time_) for e in epochs[name]] for name in pair))
                for pair in (("tutorial", "ours"), ("floor", "ours"))
                for time_ in ("clock_s", "cpu_s")
            ]
            wait = f"{100 * statistics.median(e.wait for e in epochs['ours']):.1f} %"
            print(f"| {' | '.join([epochs['ours'][0].precision, *rates, *ratios, wait])} |", flush=True)
        print()

    def start(self) -> None:
        """Real trainings in processes of their own: their start, memory and evaluation."""
        os.environ["FGD_TEACHER_CACHE"] = str(self.folder / "known")
        bare_s = took(lambda: subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True))
        plain, first, again = (self.train(self.spec(distilled=each)) for each in (False, True, True))
        title("Start: seconds from the process to the first step")
        names = list(first.start)
        floor = f"floor: a bare import ({bare_s:.2f} s), data, check, calibration"
        print(f"| | {' | '.join(names)} (ours) | {floor} | over it |")
        print("|---" * (len(names) + 3) + "|")
        for name, run in (("plain", plain), ("distillation", first), ("the same again", again)):
            asked = ("data", "teacher check", "calibration")
            least_s = bare_s + sum(run.start.get(each, 0.0) for each in asked)
            seconds = [*(run.start.get(each, 0.0) for each in names), least_s, run.start["total"] - least_s]
            print(f"| {name} | {' | '.join(f'{each:.2f}' for each in seconds)} |")
        print()
        title("Memory, evaluation and data of these trainings")
        teacher_mb = (self.teacher / WEIGHTS).stat().st_size / 2**20
        names = (
            "ours: distillation, MiB | comparison: plain, MiB | floor: plain + the teacher's file, MiB | ours / floor"
        )
        print(f"| {names} | evaluation's share | wait for data after epoch 1 |")
        print("|---" * 6 + "|")
        room = plain.peak_mb + teacher_mb
        peaks = f"{first.peak_mb:.0f} | {plain.peak_mb:.0f} | {room:.0f} | {first.peak_mb / room:.2f}"
        print(f"| {peaks} | {100 * first.evaluation:.1f} % | {100 * first.wait:.1f} % |\n")

    def train(self, spec: JobSpec) -> Told:
        file = self.folder / "spec.json"
        file.write_text(spec.model_dump_json())
        argv = [sys.executable, "-m", "fgd.train", str(file), "--out", str(self.folder / "out")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        return Told.of([json.loads(line) for line in done.stdout.splitlines()])


@dataclasses.dataclass(frozen=True)
class Told:
    """What a training said of itself."""

    start: dict[str, float]
    peak_mb: float
    evaluation: float
    wait: float

    @classmethod
    def of(cls, events: list[dict[str, Any]]) -> Told:
        notes = {event["code"]: event["data"] for event in events if event["type"] == "note"}
        stepped = [event for event in events if event["type"] == "stepped"]
        later = [event["values"]["data/wait_share"] for event in stepped if event["epoch"] > 1]
        peak = max(event["values"]["device/memory_peak_mb"] for event in stepped)
        return cls(notes["started_in"], peak, notes["evaluation_cost"]["share"], statistics.median(later))


# --- what is compared -----------------------------------------------------------------------------------------


class AsLoaded:
    """A teacher as it lies in its file: float32, batch norms apart, torch's own layout."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.detector: Detector = weights.load_detector(folder).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def view(self, batch: Batch) -> View:
        return View(self.detector.features(batch.images_NCHW))


class Remembered:
    """A teacher whose maps are there already: those of the first batch of each size."""

    def __init__(self, teacher: Teacher | None) -> None:
        assert teacher is not None
        self.teacher, self.views = teacher, dict[tuple[int, ...], View]()

    def view(self, batch: Batch) -> View:
        size = tuple(batch.images_NCHW.shape)
        if size not in self.views:
            self.views[size] = self.teacher.view(batch)
        return self.views[size]


def bare_step(parts: Training, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    assert parts.teacher is not None
    with torch.no_grad():
        parts.teacher.features(batch)
    student_step(parts, optimizer, batch)


def maps_of(parts: Training, batch: Batch) -> tuple[Maps, Maps]:
    """The student's, as leaves that take a gradient, and the teacher's."""
    assert parts.teacher is not None
    student = {
        level: each.detach().requires_grad_() for level, each in parts.student.features(batch.images_NCHW).items()
    }
    return student, parts.teacher.shared_features(batch)


def loss_step(method: nn.Module, student: Maps, teacher: Maps, batch: Batch) -> None:
    forget(method, student)
    learn(method(View(student), View(teacher), batch))


def adapter_step(method: nn.Module, student: Maps) -> None:
    forget(method, student)
    wide = [method.get_submodule(f"align.{level}")(each) for level, each in student.items()]
    torch.autograd.backward(wide, [each.detach() for each in wide])


def forget(method: nn.Module, maps: Maps) -> None:
    method.zero_grad(set_to_none=True)
    for each in maps.values():
        each.grad = None


def student_step(parts: Training, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad(set_to_none=True)
    features = parts.student.features(batch.images_NCHW)
    learn(parts.student.losses(parts.student.predict(features, batch), batch))
    optimizer.step()


@dataclasses.dataclass(frozen=True)
class Epoch:
    images: int
    precision: str
    clock_s: float
    cpu_s: float
    wait: float
    """Share of the time that it waited for data, where that is known."""


class Runner:
    """A candidate of the pipeline in a process of its own, which is set up as it would be alone: the trainer keeps
    freed memory, a plain script does not know of it. It trains an epoch when it is told."""

    def __init__(self, kind: str, arguments: argparse.Namespace, folder: Path, precision: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=epochs_when_told, args=(theirs, kind, arguments, folder, precision))
        self.process.start()

    def one_epoch(self) -> Epoch:
        self.pipe.send(True)
        done: Epoch = self.pipe.recv()
        return done

    def end(self) -> None:
        self.pipe.send(False)
        self.process.join()


def epochs_when_told(pipe: Connection, kind: str, arguments: argparse.Namespace, folder: Path, precision: str) -> None:
    torch.set_num_threads(arguments.threads)
    if kind != "tutorial":
        device.keep_freed_memory()
    bench = Bench(arguments, folder)
    parts, optimizer = bench.parts(bench.spec(distilled=False, precision=precision))
    some = parts.train.with_images(parts.train.images[: arguments.images], parts.train.classes)
    parts = dataclasses.replace(parts, train=some)
    tutorial = Tutorial(parts, bench.recipe("resnet18", 128)) if kind == "tutorial" else None
    batches = list(train_batches(some, parts.transform, parts.spec.schedule, 0, 0)) if kind == "floor" else []
    batches = [device.to_device(batch, parts.machine.device) for batch in batches]
    images, number, wait = len(some) // arguments.batch * arguments.batch, 0, 0.0
    while pipe.recv():
        clock, processor = time.perf_counter(), time.process_time()
        if tutorial is not None:
            tutorial.one_epoch()
        elif kind == "floor":
            for batch in batches:
                student_step(parts, optimizer, batch)
        else:
            wait = one_epoch(parts, optimizer, number)
        settle()
        number += 1
        spent = time.perf_counter() - clock, time.process_time() - processor
        pipe.send(Epoch(images, parts.machine.precision, *spent, wait))


def one_epoch(parts: Training, optimizer: torch.optim.Optimizer, epoch: int) -> float:
    """As the loop does it; the share of the time that it waited for data."""
    waited_s, began = 0.0, time.perf_counter()
    batches = train_batches(parts.train, parts.transform, parts.spec.schedule, 0, epoch)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited_s += time.perf_counter() - asked
        if batch is None:
            return waited_s / (time.perf_counter() - began)
        step.step(parts, optimizer, [batch], 1, 100)


def cost_of_epoch(parts: Training, optimizer: torch.optim.Optimizer, epoch: int, images: int) -> tuple[float, float]:
    """Seconds a step, of the clock and of the processor, as the loop does it."""
    some = parts.train.with_images(parts.train.images[:images], parts.train.classes)
    steps = len(some) // parts.spec.schedule.batch_size
    clock, processor = time.perf_counter(), time.process_time()
    for batch in train_batches(some, parts.transform, parts.spec.schedule, 0, epoch):
        step.step(parts, optimizer, [batch], epoch * steps + 1, 100 * steps)
    return (time.perf_counter() - clock) / steps, (time.process_time() - processor) / steps


class Tutorial:
    """The plain loop: a data set that opens each image, a loader in the training's own process, torchvision's model."""

    def __init__(self, parts: Training, recipe: Recipe) -> None:
        self.data, self.device = parts.train, parts.machine.device
        if self.device.type == "cuda":  # as a script finds it that asks for nothing
            torch.backends.cudnn.allow_tf32 = True
            torch.use_deterministic_algorithms(False)
        self.model = build(recipe).module.to(self.device).train()
        self.optimizer = make_optimizer([self.model], parts.spec.schedule.optimizer)
        self.loader: DataLoader[Any] = DataLoader(
            Opened(self.data),  # type: ignore[arg-type]
            batch_size=parts.spec.schedule.batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=lambda pairs: tuple(zip(*pairs, strict=True)),
        )

    def one_epoch(self) -> None:
        for images, targets in self.loader:
            images = [image.to(self.device) for image in images]
            targets = [{name: value.to(self.device) for name, value in target.items()} for target in targets]
            losses = self.model(images, targets)
            total = sum(losses.values())
            self.optimizer.zero_grad()
            total.backward()
            self.optimizer.step()


class Opened:
    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = self.data.images[position]
        with Pillow.open(self.data.root / image.file) as opened:
            pixels = to_tensor(opened.convert("RGB"))
        boxes = torch.tensor(image.boxes, dtype=torch.float32).reshape(-1, 4)
        return pixels, {"boxes": boxes, "labels": torch.tensor(image.labels, dtype=torch.int64)}


# --- measuring ------------------------------------------------------------------------------------------------


def some_batches(parts: Training, count: int) -> Iterator[Batch]:
    with contextlib.closing(train_batches(parts.train, parts.transform, parts.spec.schedule, 0, 0)) as batches:  # type: ignore[type-var]
        for _ in range(count):
            yield next(batches)


def in_turn(candidates: dict[str, Callable[[Batch], object]], batches: list[Batch], rounds: int) -> Times:
    times: Times = {name: [] for name in candidates}
    for round_ in range(-1, rounds):  # the first only warms up
        for name in random.Random(round_).sample(list(candidates), len(candidates)):
            clock, processor = time.perf_counter(), time.process_time()
            candidates[name](batches[round_ % len(batches)])
            settle()
            if round_ >= 0:
                times[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return times


def settle() -> None:
    """What was asked of a GPU is done before the clock is read."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def table(times: Times, comparison: str, floor: str) -> None:
    print(f"| time | ours, ms | {comparison}, ms | floor: {floor}, ms | comparison / ours | ours / floor |")
    print("|---|---|---|---|---|---|")
    for k, kind in enumerate(("clock", "cpu")):
        each = {name: [pair[k] for pair in pairs] for name, pairs in times.items()}
        medians = [f"{1000 * statistics.median(each[name]):.1f}" for name in ("ours", "comparison", "floor")]
        ratios = [fine(each["comparison"], each["ours"]), fine(each["ours"], each["floor"])]
        print("| " + " | ".join([kind, *medians, *ratios]) + " |")


def fine(numerator: list[float], denominator: list[float]) -> str:
    return ratio([100 * each for each in numerator], denominator) + " %"


def size_of(batch: Batch) -> str:
    """As it is padded: what the data make of min_size and max_size."""
    images, _, height, width = batch.images_NCHW.shape
    return f"batches of {images} of {height}x{width}"


def cells(pairs: list[tuple[float, float]]) -> str:
    return " / ".join(f"{1000 * statistics.median(each[k] for each in pairs):.1f} ms" for k in (0, 1))


def took(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def title(text: str) -> None:
    print(f"### {text}\n", flush=True)


if __name__ == "__main__":
    main()
