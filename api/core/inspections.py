"""Inspections: what the report of a job shows of its networks beside AP, worked out for the first
who asks for the report.

One for each job and split. Where something else is to be looked at, such as a control that was trained meanwhile, a new
one takes its place. The verbs are those of all tasks. Knows rows and the store; no files and no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.core import tasks
from api.core.errors import Busy
from api.core.lifecycle import TaskState
from api.core.rows import db
from api.core.rows.crowd import expect_place
from api.core.rows.swept import Moment, SweepResult
from api.core.rows.tables import Inspection
from api.core.settings import Settings

DATASET = "dataset"
"""Its place in the row's blobs; the others are roles."""
TRY_AGAIN = timedelta(hours=1)
"""After one that failed."""


@dataclass(frozen=True)
class Subject:
    """What is to be looked at."""

    job: str
    split: str
    networks: Mapping[str, Mapping[str, str]]
    """By role, the student's among them: its files."""
    archive: str
    """Of the data set."""
    min_size: int
    max_size: int
    device: str

    def digest(self) -> str:
        told = [self.networks, self.archive, self.min_size, self.max_size]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def of_job(s: Session, job_id: str, split: str) -> Inspection | None:
    return s.scalar(select(Inspection).where(Inspection.job_id == job_id, Inspection.split == split))


def is_wanted(there: Inspection | None, subject: Subject, at: Any) -> bool:
    """Whether another one is to be made."""
    if there is None or there.subject != subject.digest():
        return True
    return there.state == TaskState.failed and there.finished_at is not None and at - there.finished_at > TRY_AGAIN


def ask(engine: Engine, settings: Settings, project_id: str, subject: Subject) -> str | None:
    """A new one in place of the last, unless somebody else was quicker: its id; ring for it. None: there is no place
    for another now, or the job was deleted."""
    try:
        with db.transaction(engine) as s:
            if not is_wanted(of_job(s, subject.job, subject.split), subject, db.now(s)):
                return None
            expect_place(s, Inspection, project_id, settings.max_waiting_tasks, "FGD_MAX_WAITING_TASKS")
            s.execute(
                delete(Inspection)
                .where(Inspection.job_id == subject.job, Inspection.split == subject.split)
                .execution_options(synchronize_session=False)
            )
            request = {"split": subject.split, "min_size": subject.min_size, "max_size": subject.max_size}
            made = tasks.insert(
                s,
                Inspection,
                "ins",
                project_id,
                {**request, "networks": list(subject.networks)},
                {**subject.networks, DATASET: {"archive": subject.archive}},
                subject.device,
                job_id=subject.job,
                split=subject.split,
                subject=subject.digest(),
            )
            return made.id
    except (Busy, IntegrityError):
        return None


def sweep(s: Session, moment: Moment) -> SweepResult:
    return tasks.sweep(s, Inspection, moment)
