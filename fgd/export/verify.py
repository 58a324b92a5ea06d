"""Whether onnxruntime finds in an exported file what torch finds, and how long both take."""

# N images, H x W pixels, D detections

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from fgd.data.transforms import STRIDE
from fgd.detectors import Detector
from fgd.export.write import OUTPUTS
from fgd.process import stopwatch
from fgd.types import Batch, Detections, Target

SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE_PX = 1e-2
"""Up to sides of 1000 pixels; in proportion above, as float32 is."""
PASSES, WARM_UP, LIMIT_S = 20, 2, 20.0


@dataclass
class Agreement:
    """Of two sets of detections, or of several pairs of them."""

    detections: int = 0
    """Of torch, those that were compared."""
    box_px: float = 0.0
    score: float = 0.0
    """The largest differences among those that have a counterpart."""
    problems: list[str] = field(default_factory=list)

    def add(self, other: Agreement) -> None:
        self.detections += other.detections
        self.box_px, self.score = max(self.box_px, other.box_px), max(self.score, other.score)
        self.problems += other.problems


def session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # a race on equal terms
    options.log_severity_level = 3
    return options


def open_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])


@torch.no_grad()
def torchs(detector: Detector, images_NCHW: Tensor) -> list[Detections]:
    """What the library finds in images of that very size: torchvision's own selection and suppression."""
    count, _, height, width = images_NCHW.shape
    mean, std = (
        torch.tensor(each).reshape(1, 3, 1, 1) for each in (detector.recipe.image_mean, detector.recipe.image_std)
    )
    right, down = -width % STRIDE, -height % STRIDE
    padded_NCHW = torch.nn.functional.pad((images_NCHW - mean) / std, (0, right, 0, down))
    sizes = ((height, width),) * count
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    batch = Batch(padded_NCHW, sizes, sizes, (nothing,) * count, tuple(range(count)))
    return detector.detect(detector.predict(detector.features(batch.images_NCHW), batch), batch)


def onnxs(session: onnxruntime.InferenceSession, images_NCHW: Tensor) -> list[Detections]:
    found = [torch.from_numpy(each) for each in session.run(list(OUTPUTS), {"images": images_NCHW.numpy()})]
    return [
        Detections(boxes_D4[scores_D > 0], scores_D[scores_D > 0], labels_D[scores_D > 0])
        for boxes_D4, scores_D, labels_D in zip(*found, strict=True)
    ]


def agreement(theirs: Detections, ours: Detections, limit: int, side_px: int) -> Agreement:
    """theirs: torch's. limit: the number of detections at which both stop; which of equal scores is last is chance."""
    found = Agreement()
    last = [float(each.scores_K.min()) for each in (theirs, ours) if len(each.scores_K) >= limit]
    certain = max(last, default=0.0) + (SCORE_TOLERANCE if last else 0.0)
    box_tolerance_px = BOX_TOLERANCE_PX * max(1.0, side_px / 1000)
    free = torch.ones(len(ours.scores_K), dtype=torch.bool)
    for box_4, score, label in zip(theirs.boxes_K4, theirs.scores_K, theirs.labels_K, strict=True):
        apart_D = (ours.boxes_K4 - box_4).abs().amax(1)
        off_D = (ours.scores_K - score).abs()
        fits_D = free & (ours.labels_K == label) & (apart_D <= box_tolerance_px) & (off_D <= SCORE_TOLERANCE)
        if bool(fits_D.any()):
            at = int(torch.where(fits_D, apart_D, torch.inf).argmin())
            free[at] = False
            found.detections += 1
            found.box_px, found.score = max(found.box_px, float(apart_D[at])), max(found.score, float(off_D[at]))
        elif score > certain:
            found.detections += 1
            found.problems.append(f"torch alone finds {_told(box_4, score, label)}{_nearest(ours, apart_D, label)}")
    for at in torch.where(free & (ours.scores_K > certain))[0].tolist():
        found.problems.append(
            f"onnxruntime alone finds {_told(ours.boxes_K4[at], ours.scores_K[at], ours.labels_K[at])}"
        )
    return found


def _told(box_4: Tensor, score: Tensor, label: Tensor) -> str:
    return f"label {int(label)} with score {float(score):.5f} at {[round(x, 3) for x in box_4.tolist()]}"


def _nearest(ours: Detections, apart_D: Tensor, label: Tensor) -> str:
    same_D = torch.where(ours.labels_K == label, apart_D, torch.inf)
    if not bool(same_D.isfinite().any()):
        return ""
    at = int(same_D.argmin())
    return f"; onnxruntime's nearest is {float(same_D[at]):.3g} px away with score {float(ours.scores_K[at]):.5f}"


def race_ms(*runners: Callable[[], object]) -> list[float]:
    """Median milliseconds of each, without waiting for a core. They take turns, so that whatever else the machine does
    meets all alike."""
    times: list[list[float]] = [[] for _ in runners]
    until = time.monotonic() + LIMIT_S
    for turn in range(WARM_UP + PASSES):
        if turn > WARM_UP and time.monotonic() > until:
            break
        for run, taken in zip(runners, times, strict=True):
            taken.append(stopwatch.timed(run).ms)
    return [statistics.median(taken[WARM_UP:]) for taken in times]


def synthetic(height: int, width: int) -> Tensor:
    """An image of bright and dark rectangles over a gradient, the same everywhere: 3 x H x W in 0..1."""
    random = np.random.default_rng(0)
    down_HW1, across_HW1 = (
        np.broadcast_to(each, (height, width))[..., None] for each in np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    )
    pixels_HWC = (0.3 + 0.4 * np.concatenate((down_HW1, across_HW1, 1 - down_HW1), axis=2)).astype(np.float32)
    for _ in range(12):
        y, x = random.integers(0, height), random.integers(0, width)
        tall, wide = random.integers(4, max(5, height // 3)), random.integers(4, max(5, width // 3))
        pixels_HWC[y : y + tall, x : x + wide] = random.random(3, dtype=np.float32)
    pixels_HWC += random.normal(0, 0.02, pixels_HWC.shape).astype(np.float32)
    return torch.from_numpy(pixels_HWC.clip(0, 1)).permute(2, 0, 1).contiguous()
