"""An inspection: a child counts and times the networks of a job, and draws pictures, on a GPU where one is free."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import tasks
from api.core.inspections import DATASET
from api.core.rows.tables import Inspection
from fgd.inspected import InspectionResult
from worker.child_answer import Refused
from worker.host import Host
from worker.leased_child import ChildEnd
from worker.memory import available
from worker.staging import InputGone, stage_files
from worker.task import ANSWER, ChildFile, TaskChild

logger = logging.getLogger(__name__)

PICTURES = ChildFile("pictures", "pictures.json", "application/json")
MOST_S = 3600.0


class InspectionChild(TaskChild):
    kind = Inspection
    result = InspectionResult
    files = (PICTURES,)
    log_level = logging.DEBUG

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        asked, blobs = self.claim.request, self.claim.blobs
        networks = {
            role: stage_files(host.store, blobs[role], folder / f"network{number}")
            for number, role in enumerate(asked["networks"])
        }
        options = {
            "--split": asked["split"],
            "--min-size": asked["min_size"],
            "--max-size": asked["max_size"],
            "--memory": available(),
            "--pictures": folder / PICTURES.name,
            "--out": folder / ANSWER,
        }
        with ExitStack() as held:
            try:
                options["--dataset"] = held.enter_context(host.cache.dataset(blobs[DATASET]["archive"]))
            except InputGone as error:  # the rest of the report does not need it
                logger.warning("%s: no pictures: %s", self.claim.id, error)
            told = [str(part) for option in options.items() for part in option]
            yield [sys.executable, "-m", "fgd.inspection", *told, *(f"{r}={n}" for r, n in networks.items())]

    def most_s(self, host: Host) -> float:  # noqa: ARG002
        return MOST_S

    def late(self, most_s: float) -> ChildEnd:
        return self.refused(Refused("stalled", f"it took longer than {most_s:.0f} s"))


def claim(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> InspectionChild | None:
    claimed = tasks.claim(s, Inspection, worker_id, devices, lease_s)
    return InspectionChild(claimed) if claimed is not None else None
