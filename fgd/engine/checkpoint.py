"""One file that a training can go on from, to the byte. Knows nothing of losses or data.

Order, augmentation and noise are functions of (seed, epoch, image) and (seed, step), and the learning rate of the
step, so the step number is all the position there is.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgd.errors import UserError
from fgd.failpoint import reach
from fgd.types import Calibration

FORMAT = "fgd-checkpoint/1"


@dataclass
class State:
    """Where a training stands, besides weights and optimiser."""

    step: int = 0
    """Steps done."""
    evaluated_step: int = -1
    """The last step after which the validation images were scored."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of that evaluation."""
    best_ap: float = -1.0
    best_step: int = -1
    sums: dict[str, float] = field(default_factory=dict)
    """Of every logged value over this epoch's steps."""
    summed_steps: int = 0
    counted_ap: float = -1.0
    """The last AP that was an improvement in the sense of `early_stop`."""
    stale: int = 0
    """Evaluations since then."""


def save(path: Path, contents: dict[str, Any], state: State, calibration: Calibration | None, spec_digest: str) -> str:
    """Write atomically (temporary, fsync, rename, fsync of the folder); the file's sha256."""
    reach("before_checkpoint_file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    whole = {
        "format": FORMAT,
        "spec_digest": spec_digest,
        "state": asdict(state),
        "calibration": asdict(calibration) if calibration else None,
        **contents,
    }
    with partial.open("wb") as file:
        torch.save(whole, file)
        file.flush()
        os.fsync(file.fileno())
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    reach("checkpoint_file_unnamed")
    partial.rename(path)
    sync_folder(path.parent)
    reach("after_checkpoint_file")
    return digest


def load(path: Path, spec_digest: str, device: torch.device) -> tuple[dict[str, Any], State, Calibration | None]:
    """Raises UserError for a file that is no checkpoint of this spec."""
    try:
        whole = torch.load(path, map_location=device, weights_only=True)
        known = whole["format"] == FORMAT
    except Exception as error:  # torch.load raises whatever the damaged bytes lead it to
        raise UserError(f"{path.name}: not a readable checkpoint ({type(error).__name__}: {error})") from error
    if not known:
        raise UserError(f"{path.name}: checkpoint format {whole['format']!r}; this version reads {FORMAT!r}")
    if whole["spec_digest"] != spec_digest:
        raise UserError(f"{path.name}: belongs to another spec; start without --resume, or give the spec it came from")
    calibration = Calibration(**whole["calibration"]) if whole["calibration"] else None
    return whole, State(**whole["state"]), calibration


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes by name: equal for equal students, whatever the file."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
