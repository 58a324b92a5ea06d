"""Brings what the methods look at into the store, in a thread of its own. Knows files and the store. Knows no rows.

Each file is read at once, and named by its digest, so that a row can say that it is expected before it is put: the
collector finds it also if the worker dies in between. A file is small, and nobody waits for a store that is away.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from api.core.store.names import Blob, BlobStore
from fgd.events import Focused
from fgd.focus_files import MAX_PHOTOS_BYTES
from worker.running_attempt import is_away

logger = logging.getLogger(__name__)

MAX_WAITING = 100
"""Files; then the oldest is given up."""
AGAIN_S = 2.0
"""Between two tries while the store is away."""


@dataclass(frozen=True)
class FocusFile:
    told: Focused
    content: bytes

    @property
    def blob(self) -> Blob:
        return Blob(self.told.sha256, len(self.content))


def read_focus(told: Focused, out: Path) -> FocusFile:
    """The file as the event names it. out: the trainer's folder, outside of which nothing is read. Raises OSError or
    ValueError."""
    path = Path(told.path).resolve()
    if not path.is_relative_to(out.resolve()):
        raise ValueError(f"{path} is not below {out}")
    with path.open("rb") as file:
        content = file.read(MAX_PHOTOS_BYTES + 1)
    if len(content) > MAX_PHOTOS_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_PHOTOS_BYTES} bytes")
    if hashlib.sha256(content).hexdigest() != told.sha256:
        raise ValueError(f"{path.name} is not the file that the event names")
    return FocusFile(told, content)


class FocusUploader:
    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._waiting: deque[FocusFile] = deque()
        self._stored: list[FocusFile] = []
        self._complaints: list[str] = []
        self._changed = threading.Condition()
        self._busy = self._closed = False
        self._thread: threading.Thread | None = None

    def keep(self, files: Iterable[FocusFile]) -> None:
        """Returns at once; `taken` gives them back when they are in the store."""
        with self._changed:
            self._waiting.extend(files)
            while len(self._waiting) > MAX_WAITING:
                self._complain(self._waiting.popleft(), "too many others are waiting")
            if self._waiting and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="focus", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def taken(self) -> list[FocusFile]:
        """What has come into the store since this was asked last, in order."""
        with self._changed:
            stored, self._stored = self._stored, []
            return stored

    def complaints(self) -> list[str]:
        """What was not kept since this was asked last, in words."""
        with self._changed:
            told, self._complaints = self._complaints, []
            return told

    @property
    def idle(self) -> bool:
        """Nothing is on its way, and all that was stored was taken."""
        with self._changed:
            return not (self._busy or self._waiting or self._stored)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not (self._waiting or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                file = self._waiting.popleft()
                self._busy = True
            try:
                self._store.put_bytes(file.content)
            except Exception as error:
                with self._changed:
                    if isinstance(error, OSError) and is_away(error) and not self._closed:
                        logger.warning("what a method looks at is waiting for the store: %s", error)
                        self._waiting.appendleft(file)
                        self._changed.wait_for(lambda: self._closed, AGAIN_S)
                    else:
                        self._complain(file, str(error))
                continue
            with self._changed:
                self._stored.append(file)

    def _complain(self, file: FocusFile, why: str) -> None:
        what = "the photos" if file.told.step is None else f"the maps of step {file.told.step}"
        self._complaints.append(f"{what} that show what the methods look at were not stored: {why}")
