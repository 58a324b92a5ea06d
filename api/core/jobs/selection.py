"""Which jobs a list shows: filters on state, name, labels, time and study. Knows rows. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import select

from api.core.lifecycle import State
from api.core.rows.db import Query
from api.core.rows.named import is_called
from api.core.rows.tables import Job, StudyJob


@dataclass(frozen=True)
class Selection:
    """Everything given must hold; of several states one."""

    states: frozenset[State] = frozenset()
    """Empty: any."""
    name: str | None = None
    """See `is_called`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the job's metadata; compared whole."""
    created_after: datetime | None = None
    """Inclusive, so that adjacent intervals share no job and miss none."""
    created_before: datetime | None = None
    """Exclusive."""
    study: str | None = None
    """Its id."""

    def of(self, query: Query) -> Query:
        if self.states:
            query = query.where(Job.state.in_(sorted(self.states)))
        if self.name is not None:
            query = query.where(is_called(Job.name, self.name))
        for key, value in self.labels.items():
            query = query.where(Job.labels[key].as_string() == value)
        if self.created_after is not None:
            query = query.where(Job.created_at >= self.created_after)
        if self.created_before is not None:
            query = query.where(Job.created_at < self.created_before)
        if self.study is not None:
            query = query.where(Job.id.in_(select(StudyJob.job_id).where(StudyJob.study_id == self.study)))
        return query

    @property
    def bounded(self) -> bool:
        """An index leads to the newest of these jobs, so that no more are read than are shown."""
        whole_name = self.name is not None and not self.name.startswith("*") and not self.name.endswith("*")
        by_name = self.name is None or (whole_name and not self.states)
        return by_name and len(self.states) <= 1 and not self.labels and self.study is None

    def digest(self) -> str:
        """Equal for equal selections, "" for no filter at all; goes into the cursor."""
        told = {
            "states": sorted(self.states),
            "name": self.name,
            "labels": dict(self.labels),
            "after": _utc(self.created_after),
            "before": _utc(self.created_before),
            **({"study": self.study} if self.study is not None else {}),
        }
        if not any(told.values()):
            return ""
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


EVERY = Selection()


def _utc(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at is not None else None
