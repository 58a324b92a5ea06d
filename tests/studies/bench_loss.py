"""How long the FGD loss takes, forward and backward, beside the reference's structure and beside reading the maps.

    python tests/studies/bench_loss.py --rounds 15 --threads 2 1

Five levels of 800x1344 (P3-P7), 256 channels, 2 images. In each round every candidate runs once, in random order, so
that whatever else runs on the machine meets them all alike; ratios are of the same round. Three sets of boxes, since
the reference paints its masks box by box. Prints a table in Markdown: medians, and the ratios' medians with the 95 %
interval of a bootstrap over the rounds. The process keeps freed memory, as the trainer does, or fresh pages would drown
the rest. The reference also runs "alone", in a process that is set up as a plain script is: there freed memory goes
back to the system.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from reference_structure import reference_structure
from torch import Tensor

from fgd.engine.device import keep_freed_memory, processor_name
from fgd.method_specs import FGD
from fgd.methods.base import Pair
from fgd.methods.fgd import FGDLoss
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Target, View

HEIGHT, WIDTH, CHANNELS, IMAGES = 800, 1344, 256, 2
LEVELS = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
SPEC = FGD(alpha=1e-3, beta=5e-4, gamma=5e-4, temperature=0.5).but(lambda_=5e-6)
RESAMPLES = 2000

Maps = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--boxes", type=int, nargs="+", default=[60, 300], help="an image")
    parser.add_argument("--layouts", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--cpu", action="store_true", help="processor time, which depends less on the neighbours")
    arguments = parser.parse_args()
    keep_freed_memory()

    print(f"{processor_name()}, torch {torch.__version__}, commit {commit()}, {arguments.rounds} rounds\n")
    print(header("threads", "boxes", "layout"))
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for boxes in arguments.boxes:
            for layout in arguments.layouts:
                times = measure(boxes, layout, arguments.rounds, cpu=arguments.cpu)
                print(f"| {threads} | {boxes} | {layout} | {row(times)} |", flush=True)


def measure(boxes: int, layout: str, rounds: int, *, cpu: bool = False) -> dict[str, list[float]]:
    """Candidate -> seconds of each round, by the clock or of the processor."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = maps(generator, layout), maps(generator, layout)
    for map_NCHW in student.values():
        map_NCHW.requires_grad_()
    batch = make_batch(boxes, generator)
    ours = build(SPEC)
    reference = Reference(boxes)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    alone = context.Process(target=references_when_told, args=(theirs, boxes, torch.get_num_threads()), daemon=True)
    alone.start()
    candidates: dict[str, Callable[[], object]] = {
        "reference": reference,
        "ours": lambda: learn(ours(View(student), View(teacher), batch)),
        "reads": lambda: read_twice(student, teacher),
    }
    now = time.process_time if cpu else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in (*candidates, "alone")}
    for round_ in range(-1, rounds):  # the first only warms up
        for name in random.Random(round_).sample(list(candidates), len(candidates)):
            for map_NCHW in student.values():
                map_NCHW.grad = None
            began = now()
            candidates[name]()
            if round_ >= 0:
                times[name].append(now() - began)
        pipe.send(cpu)
        took_s = pipe.recv()
        if round_ >= 0:
            times["alone"].append(took_s)
    alone.terminate()
    return times


class Reference:
    """Its views need contiguous maps: it gets them whatever the layout of the others."""

    def __init__(self, boxes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.method = build(SPEC.but(compat="official"))
        self.student, self.teacher = maps(generator, "contiguous"), maps(generator, "contiguous")
        for map_NCHW in self.student.values():
            map_NCHW.requires_grad_()
        self.batch = make_batch(boxes, generator)

    def __call__(self) -> None:
        for map_NCHW in self.student.values():
            map_NCHW.grad = None
        learn(reference_structure(self.method, self.student, self.teacher, self.batch))


def references_when_told(pipe: Connection, boxes: int, threads: int) -> None:
    torch.set_num_threads(threads)
    reference = Reference(boxes)
    while True:
        now = time.process_time if pipe.recv() else time.perf_counter
        began = now()
        reference()
        pipe.send(now() - began)


def maps(generator: torch.Generator, layout: str) -> Maps:
    sizes = {level: (-(-HEIGHT // stride), -(-WIDTH // stride)) for level, stride in LEVELS.items()}
    dense = {level: torch.randn(IMAGES, CHANNELS, *size, generator=generator) for level, size in sizes.items()}
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return {level: map_NCHW.contiguous(memory_format=memory) for level, map_NCHW in dense.items()}


def make_batch(boxes: int, generator: torch.Generator) -> Batch:
    corner = torch.rand(IMAGES, boxes, 2, generator=generator) * torch.tensor([WIDTH - 144.0, HEIGHT - 144.0])
    size = 4 + 140 * torch.rand(IMAGES, boxes, 2, generator=generator)
    targets = [Target(each, torch.ones(boxes, dtype=torch.int64)) for each in torch.cat([corner, corner + size], 2)]
    sizes = ((HEIGHT, WIDTH),) * IMAGES
    return Batch(torch.zeros(()).expand(IMAGES, 3, HEIGHT, WIDTH), sizes, sizes, tuple(targets), tuple(range(IMAGES)))


def build(spec: FGD) -> FGDLoss:
    calibration = Calibration(dict.fromkeys(LEVELS, 1.0), boxes_per_image=7.3)
    return FGDLoss(spec, Pair.alike(LEVELS, CHANNELS, CHANNELS), calibration, Schedule(min_size=HEIGHT, max_size=WIDTH))


def learn(terms: dict[str, Tensor]) -> None:
    torch.stack(list(terms.values())).sum().backward()


def read_twice(student: Maps, teacher: Maps) -> None:
    """The least a loss can do whose masks wait for a statistic: both maps, twice."""
    for _ in range(2):
        for map_NCHW in (*student.values(), *teacher.values()):
            map_NCHW.detach().sum()


def header(*first: str) -> str:
    """Of a table of `row`s, with columns before them."""
    names = ["comparison: reference alone, ms", "comparison: reference, ms", "ours, ms", "floor: two reads, ms"]
    ratios = ["alone / ours", "reference / ours", "ours / two reads"]
    columns = [*first, *names, *ratios]
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def row(times: dict[str, list[float]]) -> str:
    names = ("alone", "reference", "ours", "reads")
    medians = [f"{1000 * statistics.median(times[name]):.1f}" for name in names]
    pairs = (("alone", "ours"), ("reference", "ours"), ("ours", "reads"))
    ratios = [ratio(*(times[each] for each in pair)) for pair in pairs]
    return " | ".join(medians + ratios)


def ratio(numerator: list[float], denominator: list[float]) -> str:
    """Median over rounds, and the bootstrap's 95 % interval."""
    each = [a / b for a, b in zip(numerator, denominator, strict=True)]
    draw = random.Random(0)
    resampled = sorted(statistics.median(draw.choices(each, k=len(each))) for _ in range(RESAMPLES))
    low, high = resampled[RESAMPLES // 40], resampled[-RESAMPLES // 40]
    return f"{statistics.median(each):.1f} ({low:.1f}-{high:.1f})"


def commit() -> str:
    """Of the checkout, and whether it has changes."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
