"""A prediction: a confined child finds objects in a picture that somebody sent."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import tasks
from api.core.predictions import PICTURE
from api.core.rows.tables import Prediction
from fgd.predicted import PredictionResult
from worker.child_answer import Refused
from worker.host import Host
from worker.leased_child import ChildBroken, ChildEnd
from worker.slots import Slot
from worker.staging import fetched, stage_files
from worker.task import ANSWER, TaskChild

MOST_S = 600.0
OWN = "own"
"""All that the child may write to: beside it lie links to files of the store."""


class PredictionChild(TaskChild):
    kind = Prediction
    result = PredictionResult
    log_level = logging.DEBUG

    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:
        with suppress(FileNotFoundError):
            (folder / OWN / ANSWER).replace(folder / ANSWER)
        return super().ended(host, slot, folder, code)

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        blobs = self.claim.blobs
        networks = {
            each["role"]: stage_files(host.store, blobs[each["role"]], folder / f"network{number}")
            for number, each in enumerate(self.claim.request["networks"])
        }
        (folder / OWN).mkdir(exist_ok=True)
        with fetched(host.store, blobs[PICTURE][PICTURE], folder) as picture:
            told = ["--score", str(self.claim.request["score"]), "--out", str(folder / OWN / ANSWER), str(picture)]
            told += [f"{role}={network}" for role, network in networks.items()]
            yield [sys.executable, "-m", "worker.prediction_child", *told]

    def most_s(self, host: Host) -> float:  # noqa: ARG002
        return MOST_S

    def late(self, most_s: float) -> ChildEnd:
        return self.refused(Refused("stalled", f"it took longer than {most_s:.0f} s; send a smaller picture"))


def claim(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> PredictionChild | None:
    claimed = tasks.claim(s, Prediction, worker_id, devices, lease_s)
    return PredictionChild(claimed) if claimed is not None else None
