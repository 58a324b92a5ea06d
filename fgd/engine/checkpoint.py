"""One file that a training can go on from, to the byte. Knows nothing of losses or data.

Order, augmentation and noise are functions of (seed, epoch, image) and (seed, step), and the learning rate of the
step, so the step number is all the position there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fgd.errors import CheckpointForeign, CheckpointUnreadable
from fgd.process.failpoints import reach
from fgd.types import Calibration

FORMAT = "fgd-checkpoint/1"
KEEP_CHECKPOINTS = 2
"""Files in the output folder of a training: this many, the newest."""


@dataclass
class TrainingState:
    """Where a training stands, besides weights and optimiser."""

    step: int = 0
    """Steps done."""
    evaluated_step: int = -1
    """The last step after which the validation images were scored."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of that evaluation."""
    best_ap: float = -1.0
    best_step: int = -1
    best_scores: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    """Steps that were not finite and left out."""
    skipped_in_a_row: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of every logged value over this epoch's steps."""
    summed_steps: int = 0
    counted_ap: float = -1.0
    """The last AP that was an improvement in the sense of `early_stop`."""
    stale: int = 0
    """Evaluations since then."""
    balance: dict[str, float] = field(default_factory=dict)
    """<method>/<term> -> factor, of methods with `rho`: see `fgd.engine.balance`."""
    warned: list[str] = field(default_factory=list)
    """Codes of what is warned of once."""


def save(
    path: Path,
    contents: dict[str, Any],
    state: TrainingState,
    calibrations: Mapping[str, Calibration],
    spec_digest: str,
) -> str:
    """Write atomically (temporary, fsync, rename, fsync of the folder).

    The sha256 is of what was handed to the disk, not of what was read back: a page that went bad on its way is found.
    """
    reach("before_checkpoint_file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    whole = {
        "format": FORMAT,
        "spec_digest": spec_digest,
        "state": asdict(state),
        **told_calibrations(calibrations),
        **contents,
    }
    try:
        with partial.open("wb") as file:
            hashed = HashingWriter(file)
            torch.save(whole, hashed)  # type: ignore[arg-type]  # write and flush are all that it calls
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk: what was written would only keep it full
        partial.unlink(missing_ok=True)
        raise
    reach("checkpoint_file_unnamed")
    partial.rename(path)
    sync_folder(path.parent)
    reach("after_checkpoint_file")
    return hashed.sha256.hexdigest()


class HashingWriter:
    """A file that is hashed while it is written; torch writes front to back."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def check(path: Path) -> None:
    """Raises CheckpointUnreadable for a file that no training could go on from."""
    with reading(path):
        found = torch.load(path, map_location="cpu", weights_only=True)["format"]
    if found != FORMAT:
        raise _other_format(path, found)


def load(
    path: Path, spec_digests: Collection[str], device: torch.device
) -> tuple[dict[str, Any], TrainingState, dict[str, Calibration]]:
    """Raises CheckpointUnreadable for a file that is no checkpoint; CheckpointForeign for one that is not of this spec,
    by any of its digests."""
    with reading(path):
        whole = torch.load(path, map_location=device, weights_only=True)
        format, belongs_to = whole["format"], whole["spec_digest"]
    if format != FORMAT:
        raise _other_format(path, format)
    if belongs_to not in spec_digests:
        message = (
            "belongs to a different spec, or to other data; give those that made it (numbers left out may have had "
            "other defaults in an earlier version: write them into the spec), or start over"
        )
        raise CheckpointForeign(f"{path.name}: {message}")
    with reading(path):
        told = ({"": whole["calibration"]} if whole["calibration"] else {}) | whole.get("calibrations", {})
        return whole, TrainingState(**whole["state"]), {name: Calibration(**each) for name, each in told.items()}


def told_calibrations(calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
    """As checkpoints and manifests have them: that of `teacher`, and beside it those of `teachers`."""
    own = calibrations.get("")
    named = {name: asdict(each) for name, each in calibrations.items() if name}
    return {"calibration": asdict(own) if own else None} | ({"calibrations": named} if named else {})


def _other_format(path: Path, found: object) -> CheckpointUnreadable:
    return CheckpointUnreadable(f"{path.name}: checkpoint format {found!r}; this version reads {FORMAT!r}")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault, but for a want of memory, which is the host's."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        if "can't allocate memory" in str(error):
            raise
        raise CheckpointUnreadable(
            f"{path.name}: not a readable checkpoint ({type(error).__name__}: {error})"
        ) from error


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
