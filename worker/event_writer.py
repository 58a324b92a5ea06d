"""What a trainer says, on its way to the database: in batches, in order, kept while the database is away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from api.core.errors import Fenced
from api.core.jobs import attempts, record
from fgd.events import Event, Failed, Finished, Focused, Note, Saved
from fgd.process.failpoints import reach
from worker.checkpoint_uploader import CheckpointUploader, Complaint, StoredCheckpoint
from worker.focus_uploader import FocusFile, FocusUploader, read_focus
from worker.host import DATABASE_AWAY, DISK_FULL, Host, os_error_behind

logger = logging.getLogger(__name__)

MAX_KEPT = 20_000
"""Events waiting for the database; then the trainer's pipe fills, and it waits."""

PROMPT_S = 0.1
"""A fast store has a checkpoint after so long, and its row is written at once; a slow one is not waited for."""


class EventWriter:
    def __init__(self, host: Host, claim: attempts.Claim, out: Path) -> None:
        self._host = host
        self._claim = claim
        self._keeper = CheckpointUploader(host.store, out, f"jobs/{claim.job_id}/a{claim.attempt}")
        self._out = out
        self._focus = FocusUploader(host.store)
        self._looked: list[FocusFile] = []
        """Files of which the database does not know yet that they are about to be put."""
        self._shown: list[FocusFile] = []
        """Files in the store that no row names yet."""
        self._events: list[Event] = []
        self._log = b""
        self._saved: list[StoredCheckpoint] = []
        self._torn: list[str] = []
        self._unreadable: list[str] = []
        self.last: Finished | Failed | None = None
        """How the trainer says that it ended."""

    @property
    def full(self) -> bool:
        return len(self._events) >= MAX_KEPT

    def add(self, events: Sequence[Event], log: bytes = b"") -> None:
        for event in events:
            if isinstance(event, Saved):
                self._keeper.keep(event)
            elif isinstance(event, Focused):
                self._look(event)
            elif isinstance(event, Finished | Failed):
                self.last = event
            else:
                self._events.append(event)
        self._log += log

    def _look(self, event: Focused) -> None:
        try:
            self._looked.append(read_focus(event, self._out))
        except (OSError, ValueError) as error:
            self._log += f"[worker] what the methods look at was not kept: {error}\n".encode()

    def pass_over(self, key: str, *, torn: bool) -> None:
        """The attempt goes on without this checkpoint, of torn bytes or whole and not readable; it is forgotten when
        there is one of the attempt's own, or the result."""
        (self._torn if torn else self._unreadable).append(key)

    def write(self) -> bool:
        """One transaction for all that waits. False: the database is away, nothing was lost. Raises Fenced."""
        self._keeper.wait(PROMPT_S)
        for complaint in self._keeper.complaints():
            self._complain(complaint)
        self._saved += self._keeper.taken()
        for message in self._focus.complaints():
            self._events.append(Note(code="focus_not_kept", message=message[:1000], level="warning"))
        self._shown += self._focus.taken()
        passes = bool(self._torn or self._unreadable) and (bool(self._saved) or isinstance(self.last, Finished))
        if not (self._events or self._log or self._saved or self._looked or self._shown or passes):
            return True
        try:
            superseded = self._host.write(lambda s: self._store(s, passes))
        except DATABASE_AWAY as error:
            logger.warning("%d events are waiting for the database: %s", len(self._events), error)
            return False
        except Fenced:
            self._keeper.drop(stored.key for stored in self._saved)  # no row will ever name them
            raise
        if self._saved:
            reach("after_checkpoint_row")
        self._focus.keep(self._looked)
        self._events, self._log, self._saved, self._looked, self._shown = [], b"", [], [], []
        if passes:
            self._torn, self._unreadable = [], []
        self._keeper.drop(superseded)
        return True

    @property
    def keeping(self) -> bool:
        """A checkpoint is on its way into the store."""
        return not self._keeper.idle

    @property
    def showing(self) -> bool:
        """What the methods look at is on its way into the store."""
        return bool(self._looked or self._shown) or not self._focus.idle

    def close(self) -> None:
        """Nothing more will be written. What no write ever named goes; what one may have named is the collector's."""
        self._keeper.close()
        self._focus.close()

    def _store(self, s: Session, passes: bool) -> list[str]:
        job, attempt = self._claim.job_id, self._claim.attempt
        record.record(s, job, attempt, self._events, self._log)
        for file in self._looked:
            attempts.expect(s, job, attempt, file.blob)
        for file in self._shown:
            attempts.looked_at(s, job, attempt, file.told.step, file.told.epoch, file.blob)
        if self._saved:
            reach("before_checkpoint_row")
        superseded = attempts.pass_over(s, job, attempt, self._torn, self._unreadable) if passes else []
        for each in self._saved:
            saved = each.saved
            superseded += attempts.checkpoint(
                s, job, attempt, saved.step, each.key, saved.sha256, saved.size, best=saved.best
            )
        if self._saved:
            reach("checkpoint_row_uncommitted")
        return superseded

    def _complain(self, complaint: Complaint) -> None:
        message = f"the checkpoint of step {complaint.step} was not stored: {complaint.error}"
        self._log += f"[worker] {message}\n".encode()
        data = {"step": complaint.step}
        self._events.append(Note(code="checkpoint_not_kept", message=message[:1000], data=data, level="warning"))
        if getattr(os_error_behind(complaint.error), "errno", None) in DISK_FULL:
            self._host.found_full()
