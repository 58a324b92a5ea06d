"""Brings checkpoints into the store, and deletes those no longer needed, in a thread of its own, so that a slow store
keeps nobody from hearing, beating or cancelling. Knows files and the store. Knows no rows.

A file is linked aside at once, for the trainer deletes its older ones; who comes while one is on its way waits, and is
given up when a newer one comes, unless it is the best so far.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from api.core.store.names import BlobStore, StoreAway
from fgd.events import Saved
from fgd.process.failpoints import reach
from worker.running_attempt import is_away

logger = logging.getLogger(__name__)

GOODBYE_S = 1.0
"""For deletions at the end."""
AGAIN_S = 2.0
"""Between two tries while the store is away."""


@dataclass(frozen=True)
class StoredCheckpoint:
    key: str
    saved: Saved


@dataclass(frozen=True)
class Complaint:
    """A checkpoint that was not kept; the one before it still stands."""

    step: int
    error: Exception


class CheckpointUploader:
    def __init__(self, store: BlobStore, out: Path, prefix: str) -> None:
        """out: the trainer's folder, outside of which nothing is read. prefix: of the keys."""
        self._store = store
        self._out = out.resolve()
        self._aside = self._out.parent / "keeping"
        self._prefix = prefix
        self._waiting: deque[tuple[Path, Saved]] = deque()
        self._stored: list[StoredCheckpoint] = []
        self._complaints: list[Complaint] = []
        self._unneeded: deque[str] = deque()
        self._changed = threading.Condition()
        self._late: Saved | None = None
        """The one that the store did not take."""
        self._busy = self._closed = False
        self._thread: threading.Thread | None = None

    def keep(self, saved: Saved) -> None:
        """Returns at once; `taken` gives it back when it is in the store."""
        path = Path(saved.path).resolve()
        try:
            if not path.is_relative_to(self._out):
                raise ValueError(f"{path} is not below {self._out}")
            self._aside.mkdir(exist_ok=True)
            linked = self._aside / f"{saved.step}.pt"
            linked.unlink(missing_ok=True)
            os.link(path, linked)
        except (OSError, ValueError) as error:  # the trainer was faster: the one before still stands
            self._complain(saved, error)
            return
        with self._changed:
            given_up = [each for each in self._waiting if not each[1].best]
            for each in given_up:
                self._waiting.remove(each)
                each[0].unlink(missing_ok=True)
                if each[1] is self._late:
                    self._complaints.append(
                        Complaint(each[1].step, StoreAway("the store did not answer until there was a newer one"))
                    )
            self._waiting.append((linked, saved))
            self._start()

    def drop(self, keys: Iterable[str]) -> None:
        """No row names these any more, or ever will. Returns at once; what the store does not hear of now is left to
        the collector."""
        with self._changed:
            self._unneeded.extend(keys)
            if self._unneeded:
                self._start()

    def _start(self) -> None:
        """Or tell the thread that there is something to do. Under the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def taken(self) -> list[StoredCheckpoint]:
        """What has come into the store since this was asked last, in order."""
        with self._changed:
            stored, self._stored = self._stored, []
            return stored

    def complaints(self) -> list[Complaint]:
        """What was not kept since this was asked last."""
        with self._changed:
            told, self._complaints = self._complaints, []
            return told

    @property
    def idle(self) -> bool:
        """Nothing is on its way. What is stored may still be there to be taken."""
        with self._changed:
            return not (self._busy or self._waiting)

    def wait(self, seconds: float) -> None:
        """Until nothing is on its way, but no longer."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._busy or self._waiting), seconds)

    def close(self) -> None:
        """Give up what is still on its way: nobody will name it in a row. A store that answers gets to delete what it
        should; one that does not is not waited for."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._unneeded.extend(stored.key for stored in self._stored)
            self._stored.clear()
            if self._unneeded:
                self._start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._unneeded, GOODBYE_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not (self._waiting or self._unneeded or self._closed):
                    self._changed.wait()
                unneeded = self._unneeded[0] if self._unneeded and not self._waiting else None
                if unneeded is None:
                    if self._closed:
                        return
                    linked, saved = self._waiting.popleft()
                    self._busy = True
            if unneeded is not None:
                self._delete(unneeded)
                continue
            key = f"{self._prefix}/ckpt-{saved.step}.pt"
            try:
                reach("before_checkpoint_blob")
                self._store.put_object(key, linked)
                reach("after_checkpoint_blob")
            except Exception as error:
                if not self._waits_for_the_store(linked, saved, error):
                    linked.unlink(missing_ok=True)
                    self._complain(saved, error)  # a full disk, or a newer one has come: the one before still stands
                continue
            linked.unlink(missing_ok=True)
            with self._changed:
                if self._closed:
                    self._unneeded.append(key)
                else:
                    self._stored.append(StoredCheckpoint(key, saved))

    def _delete(self, key: str) -> None:
        """The first of those that are not needed; all of them are left to the collector where the store is away."""
        try:
            self._store.delete_object(key)
            gone = 1
        except Exception as error:
            gone = len(self._unneeded)
            logger.warning("could not delete %s: %s", key, error)
        with self._changed:
            for _ in range(gone):
                self._unneeded.popleft()
            self._changed.notify_all()

    def _waits_for_the_store(self, linked: Path, saved: Saved, error: Exception) -> bool:
        """The newest and the best are brought as soon as a store that is away answers again."""
        with self._changed:
            if (
                not (isinstance(error, OSError) and is_away(error))
                or self._closed
                or (self._waiting and not saved.best)
            ):
                return False
            logger.warning("the checkpoint of step %d is waiting for the store: %s", saved.step, error)
            self._waiting.appendleft((linked, saved))
            self._late = saved
            self._changed.wait_for(lambda: self._closed, AGAIN_S)
            return True

    def _complain(self, saved: Saved, error: Exception) -> None:
        with self._changed:
            self._complaints.append(Complaint(saved.step, error))
