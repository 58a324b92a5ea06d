"""One line of JSON for each finished run: what it was, on what, and what came of it. Lines are only ever added."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finished:
    """A run that has ended. AP is 0-100."""

    name: str
    """SETTING/ARM/SEED."""
    spec: dict[str, Any]
    """As the trainer was given it; paths are relative to the study's folder."""
    commit: str
    machine: str
    precision: str
    seconds: float
    """Of the training process, other work of the machine included: for a forecast, not for a comparison."""
    steps: int
    ap: dict[str, float | None]
    """Of the last checkpoint on `test`, or on `val` of a set without: as the trainer names them."""
    curve: tuple[tuple[int, float], ...]
    """Step and AP on `val`."""
    images: str
    """Digest of the images that `ap` is of."""
    drawn: tuple[float, ...]
    """AP on resamples of them, the same in every run of a set (`fgd.statistics.intervals.drawn`): with these an
    interval can be computed when the detections are gone."""
    warnings: tuple[str, ...]
    """Codes of the warnings."""
    teacher: str | None
    """Digest of the teacher's weights."""
    weights: str
    """Digest of the student's."""
    notes: dict[str, Any]
    """Calibration and balance."""


def load(path: Path) -> dict[str, Finished]:
    """By name; of a run that stands there twice, the last."""
    if not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text().splitlines() if line)
    return {line["name"]: Finished(**line) for line in lines}


def add(path: Path, finished: Finished) -> None:
    """Whole or not at all, though several processes add."""
    line = json.dumps(asdict(finished), sort_keys=True, separators=(",", ":")) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def rounded(values: Mapping[str, float | None], digits: int = 3) -> dict[str, float | None]:
    return {name: None if value is None else round(value, digits) for name, value in values.items()}
