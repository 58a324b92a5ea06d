"""What a job's report shows of its networks beside AP: `python -m fgd.inspection ROLE=FOLDER... --split val`.

Each FOLDER has student.safetensors and recipe.json, and detections.npz if what the network finds is known. Counts the
operations of one image, times batches of 1 and of 8 images, one network after the other in turn, and draws a few images
of the split with what each network finds. Prints one JSON object, {"result": {...}}.

Exit codes: 0; 1 it cannot be done, 2 a path leads nowhere: {"error": {"code", "message", "pointer"}} says why.
"""

# N images, C channels, H x W pixels

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fgd.errors import DatasetError, UserError
from fgd.inspected import (
    MAX_PICTURES_BYTES,
    InspectedNetwork,
    InspectionResult,
    Picture,
    PicturedBox,
    PicturedDetection,
    PicturedNetwork,
    Pictures,
    Speed,
)
from fgd.process import answer
from fgd.statistics.per_image import IOU, Paired, apart, counts, pair

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fgd.budget import Latency
    from fgd.data.loader import Dataset
    from fgd.data.transforms import Transform
    from fgd.detectors import Detector
    from fgd.engine.operations import Run
    from fgd.statistics.detections import SplitDetections

BATCHES = (1, 8)
ROUNDS, ROUNDS_S, FEWEST = 30, 20.0, 3
"""Of each batch size: so many runs of each network, or as often as that goes in so many seconds, but a few."""
PICTURES = 6
SIDES = (480, 320, 160)
"""Longest side of a picture; smaller where they are too large together."""
MOST_BYTES = 600_000
"""Of the pictures' JPEGs."""
SCORE = 0.3
MOST_BOXES = 100
SPARE = 1.3
"""A larger batch is timed where so many times its memory is free."""
NO_DATA = "the data set is no longer there"


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    return answer.answered(arguments, lambda: {"result": inspected(arguments).model_dump(mode="json")})


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fgd.inspection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", metavar="ROLE=FOLDER", help="student, control, teacher, ...")
    parser.add_argument("--dataset", type=Path, help="a data set of any format; default: no pictures are drawn")
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--min-size", type=int, required=True, help="shorter side after resizing")
    parser.add_argument("--max-size", type=int, required=True, help="longest side after resizing")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--memory", type=int, help="bytes that may be used; default: what the machine has free")
    parser.add_argument("--pictures", type=Path, help="file for the pictures")
    answer.add_options(parser)
    return parser.parse_args(argv)


def inspected(asked: argparse.Namespace) -> InspectionResult:
    """Raises FGDError if it cannot be done; whatever torch raises if there is too little memory for one image."""
    from fgd.data.formats import open_index
    from fgd.data.loader import Dataset
    from fgd.data.transforms import Transform
    from fgd.engine import device
    from fgd.engine.weights import load_detector
    from fgd.spec import Resources

    began = time.monotonic()
    folders = dict(_named(each) for each in asked.networks)
    machine = device.choose(Resources(device=asked.device), "float32")
    detectors = {role: load_detector(folder).eval() for role, folder in folders.items()}
    for each in detectors.values():
        each.module.to(machine.device)
    known = {role: found for role, folder in folders.items() if (found := _detections(folder, asked.split))}
    transform = Transform(asked.min_size, asked.max_size)
    images, reason = None, NO_DATA
    if asked.dataset is not None:
        index, root = open_index(asked.dataset)
        try:
            images = Dataset(index, asked.split, root)
        except DatasetError as error:
            reason = str(error)
    image_1CHW = _image(images, known, transform).to(machine.device)
    networks, not_timed = _timed(detectors, image_1CHW, _memory(asked.memory, machine.device))
    pictures = _pictures(images, detectors, known, asked, machine.device) if images is not None else None
    if pictures is not None and asked.pictures is not None:
        asked.pictures.write_text(pictures.model_dump_json())
    height, width = image_1CHW.shape[2:]
    return InspectionResult(
        input=(height, width),
        device=machine.device_name,
        threads=machine.threads,
        networks=networks,
        not_timed=not_timed,
        pictures=len(pictures.pictures) if pictures is not None else 0,
        pictures_reason=reason if pictures is None else None if pictures.pictures else "none of the images decodes",
        seconds=time.monotonic() - began,
    )


def _named(told: str) -> tuple[str, Path]:
    role, named, folder = told.partition("=")
    if not named or not role:
        raise UserError(f"{told!r} is not ROLE=FOLDER")
    return role, Path(folder)


def _detections(folder: Path, split: str) -> SplitDetections | None:
    from fgd.result_files import DETECTIONS
    from fgd.statistics import detections

    with contextlib.suppress(FileNotFoundError, detections.DetectionsUnreadable):
        return detections.read(folder / DETECTIONS).get(split)
    return None


# --- what is counted and timed --------------------------------------------------------------------------------


def _image(images: Dataset | None, known: Mapping[str, SplitDetections], transform: Transform) -> Tensor:
    """One of the usual size, 1 x 3 x H x W in 0..1; noise of this size where the data set is gone."""
    import torch

    from fgd.export.latency import usual_image

    if images is not None:
        with contextlib.suppress(DatasetError):  # none decodes
            return usual_image(images, transform)
    height, width = transform.min_size, transform.max_size
    for found in known.values():
        if len(found):
            width, height = np.median(found.size, axis=0).astype(int).tolist()
    size = transform.size_of(height, width)
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


def _timed(
    detectors: Mapping[str, Detector], image_1CHW: Tensor, free: int | None
) -> tuple[tuple[InspectedNetwork, ...], str | None]:
    """And why larger batches were not timed."""
    from fgd.engine import operations

    speeds: dict[str, list[Speed]] = {role: [] for role in detectors}
    reason = None
    counted: dict[str, float] = {}
    one_image = 0
    for batch in BATCHES:
        images_NCHW = image_1CHW.expand(batch, -1, -1, -1).contiguous()
        runs = {role: operations.one_pass(each, images_NCHW) for role, each in detectors.items()}
        try:
            if not counted:
                with _peak(image_1CHW.device) as grown:  # of the first run: what is freed stays with the process
                    counted = {role: operations.gflops(run) for role, run in runs.items()}
                one_image = max([image_1CHW.nbytes, *grown])
            elif free is not None and one_image * batch * SPARE > free:
                reason = (
                    f"batches of {batch} need about {one_image * batch / 1e9:.1f} GB of memory, and "
                    f"{free / 1e9:.1f} GB are free"
                )
                break
            for role, time_ in _in_turn(runs).items():
                speeds[role].append(Speed(batch=batch, time=time_))
        except RuntimeError as error:  # of one image alone: it says itself what it lacks
            if batch == 1 or "memory" not in str(error):
                raise
            reason = f"batches of {batch} need more memory than there is"
            break
    return (
        tuple(InspectedNetwork(role=role, gflops=counted[role], speeds=tuple(found)) for role, found in speeds.items()),
        reason,
    )


def _in_turn(runs: Mapping[str, Run]) -> dict[str, Latency]:
    from fgd.budget import Latency
    from fgd.process import stopwatch
    from fgd.student_search import in_turn

    times = in_turn(
        runs,
        most=ROUNDS,
        until=time.perf_counter() + ROUNDS_S,
        clock=time.perf_counter,
        stopwatch=stopwatch.timed,
        tell=lambda _: None,
        least=FEWEST,
        warm_up=1,
    )
    return {role: Latency.of(found) for role, found in times.items()}


@contextlib.contextmanager
def _peak(device: torch.device) -> Iterator[list[int]]:
    """The list has the bytes by which memory grew, once the context has ended; it stays empty where nobody counts."""
    import torch

    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device) - before)
        return
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        refs.write_text("5")  # the high-water mark begins again
        before = _kilobytes(status, "VmRSS")
    except (OSError, ValueError):
        yield found
        return
    yield found
    with contextlib.suppress(OSError, ValueError):
        found.append(max(0, _kilobytes(status, "VmHWM") - before) * 1024)


def _kilobytes(status: Path, name: str) -> int:
    lines = (line.split() for line in status.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[:1] == [f"{name}:"])


def _memory(asked: int | None, device: torch.device) -> int | None:
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return asked if asked is not None else int(psutil.virtual_memory().available)


# --- pictures -------------------------------------------------------------------------------------------------


def _pictures(
    images: Dataset,
    detectors: Mapping[str, Detector],
    known: Mapping[str, SplitDetections],
    asked: argparse.Namespace,
    device: torch.device,
) -> Pictures:
    from fgd.engine.evaluate import with_truth

    ids, differ = _chosen(images, known)
    by_id = {image.id: image for image in images.images}
    some = images.with_images([by_id[id] for id in ids if id in by_id], images.classes)
    found = dict(known)
    for role in detectors.keys() - known.keys():
        if (looked := _looked(detectors[role], some, asked, device)) is not None:
            found[role] = looked
    truth = known.get("student") or with_truth(some, {})
    pairs = {role: pair(truth, found[role], SCORE) for role in detectors if role in found}
    for side in SIDES:
        drawn = tuple(_drawn(some, place, truth, pairs, side) for place in range(len(some)))
        whole = Pictures(score=SCORE, iou=IOU, differ=differ, pictures=tuple(each for each in drawn if each))
        if sum(len(each.jpeg) for each in whole.pictures) <= MOST_BYTES:
            break
    if len(whole.model_dump_json()) > MAX_PICTURES_BYTES:
        whole = whole.model_copy(update={"pictures": ()})
    return whole


def _chosen(images: Dataset, known: Mapping[str, SplitDetections]) -> tuple[list[int], tuple[str, str] | None]:
    """Ids of images, and whose detections differ most on them."""
    from fgd.engine.focus import chosen_images

    against = next((role for role in ("control", "teacher", *known) if role in known and role != "student"), None)
    if "student" not in known or against is None:
        return [image.id for image in chosen_images(images.images, PICTURES)], None
    truth = known["student"]
    ours, theirs = (pair(truth, known[role], SCORE) for role in ("student", against))
    apart_I = apart(truth, ours, theirs, SCORE, ours.known_C & theirs.known_C)
    boxes_I = np.bincount(truth.truth_image[~truth.truth_crowd], minlength=len(truth))
    first = np.lexsort((truth.image_id, -boxes_I, -apart_I))[:PICTURES]
    return truth.image_id[first].tolist(), ("student", against)


def _looked(
    detector: Detector, some: Dataset, asked: argparse.Namespace, device: torch.device
) -> SplitDetections | None:
    """What it finds on these images, in their classes; None if it knows none of them."""
    from fgd.class_names import match_classes
    from fgd.data.transforms import Transform
    from fgd.engine.evaluate import evaluate
    from fgd.engine.teacher import relabelled
    from fgd.evaluation import of_shared

    recipe = detector.recipe
    match = match_classes(some.classes, recipe.classes)
    if not match.shared or not len(some):
        return None
    transform = Transform(asked.min_size, asked.max_size, recipe.image_mean, recipe.image_std)
    theirs = some.with_images(relabelled(some.images, match.labels), recipe.classes)
    return of_shared(evaluate(detector, theirs, transform, batch_size=1, device=device).detections, match)


def _drawn(some: Dataset, place: int, truth: SplitDetections, pairs: Mapping[str, Paired], side: int) -> Picture | None:
    """None: it does not decode."""
    from fgd.data.images import BadImage, decode

    image = some.images[place]
    at = np.flatnonzero(truth.image_id == image.id).tolist()
    try:
        picture = decode(some.root / image.file)
    except BadImage:
        return None
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    boxes = [
        PicturedBox(box=_rounded(box), name=some.classes[label - 1])
        for box, label, crowd in zip(image.boxes, image.labels, image.crowd, strict=True)
        if not crowd
    ]
    return Picture(
        name=image.name,
        width=image.width,
        height=image.height,
        jpeg=base64.b64encode(file.getvalue()).decode(),
        boxes=tuple(boxes[:MOST_BOXES]),
        networks=tuple(_pictured(role, paired, truth, at[0]) for role, paired in pairs.items() if at),
    )


def _pictured(role: str, paired: Paired, truth: SplitDetections, place: int) -> PicturedNetwork:
    mine = np.arange(len(paired.image_D))[paired.of_image(place)]
    mine = mine[~paired.ignored_D[mine]]
    seen = counts(truth, paired, SCORE, paired.known_C)
    return PicturedNetwork(
        role=role,
        detections=tuple(
            PicturedDetection(
                box=_rounded(paired.box_D4[n].tolist()),
                name=truth.classes[paired.label_D[n] - 1],
                score=round(float(paired.score_D[n]), 3),
                right=bool(paired.hit_D[n]),
            )
            for n in mine[:MOST_BOXES].tolist()
        ),
        right=int(seen.found_I[place]),
        wrong=int(seen.false_I[place]),
        missed=int(seen.missed_I[place]),
    )


def _rounded(box: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(float(edge), 1) for edge in box)
    return left, top, right, bottom


if __name__ == "__main__":
    sys.exit(main())
