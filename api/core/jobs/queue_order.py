"""Which job a worker takes next: what fits it, by priority, then age. Reads rows, writes none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, not_, or_, select, true
from sqlalchemy.orm import Session

from api.core.lifecycle import State
from api.core.rows.tables import Job

RESERVE_S = 600.0
"""A job for several devices that has waited so long is overtaken no more."""

DEVICES = func.coalesce(Job.spec[("resources", "devices")].as_integer(), 1)
"""How many of a host's devices a job takes. Absent in what the first versions stored."""


@dataclass(frozen=True)
class Free:
    """What a worker can take now: jobs on the processor, jobs on a GPU.

    gpu_host: the host has a GPU, so a job with device "auto" waits for one rather than run on the processor.
    """

    cpu: int
    cuda: int
    gpu_host: bool = False
    cores: int | None = None
    """Processor cores of the host; a job that wants more threads is not for it. None: not told."""
    of: Free | None = None
    """The same with nothing taken, so that a job for several devices can be waited for. None: not told."""

    def most(self) -> dict[str, int]:
        """resources.device -> how many of them a job can have."""
        return {"cpu": self.cpu, "cuda": self.cuda, "auto": self.cuda if self.gpu_host else max(self.cpu, self.cuda)}

    def devices(self) -> list[str]:
        return [device for device, free in self.most().items() if free > 0]

    def fits(self) -> ColumnElement[bool]:
        """Whether a job's row fits in here."""
        return or_(*(and_(Job.device == device, free >= DEVICES) for device, free in self.most().items()))


def not_after_the_starved(s: Session, at: datetime, free: Free, enough: ColumnElement[bool]) -> ColumnElement[bool]:
    """Where a job that would fit this host, were it empty, has waited RESERVE_S: of those that take the same kind of
    device, only what goes before it. enough: whether the host has the cores for a job."""
    if free.of is None or max(free.of.most().values()) < 2:
        return true()
    since = at - timedelta(seconds=RESERVE_S)
    waits = and_(
        Job.state == State.queued, Job.not_before <= since, DEVICES > 1, free.of.fits(), not_(free.fits()), enough
    )
    lanes = (("cpu",), ("cuda", "auto")) if free.gpu_host else (("cpu", "cuda", "auto"),)
    return and_(true(), *(_not_after_one_that(s, waits, lane) for lane in lanes))


def _not_after_one_that(s: Session, waits: ColumnElement[bool], lane: Sequence[str]) -> ColumnElement[bool]:
    first = select(Job).where(waits, Job.device.in_(lane)).order_by(Job.priority.desc(), Job.created_at, Job.id)
    starved = s.scalars(first.limit(1)).first()
    if starved is None:
        return true()
    return or_(
        Job.device.not_in(lane),
        Job.priority > starved.priority,
        and_(Job.priority == starved.priority, Job.created_at < starved.created_at),
    )
