"""What intervals over images need of each run: its AP on resamples of its images. Knows the store; knows no rows.

That takes seconds for a run, so no request waits for it: one child process after the other works it out, once for each
file, and what it found is kept in memory. The same resamples are drawn for all runs of the same images.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import numpy as np

from api.core.store.names import BlobStore, StoreAway
from fgd.process import children
from fgd.statistics.intervals import Drawn

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""Of a run's detections."""
MOST_S = 600.0
"""Of one child."""
KEPT = 2000
"""Runs in memory, of some kilobytes each."""

Key = tuple[str, str]
"""Digest of the detections, and the split."""


class Resampler:
    """Of one server process. Works inside `with`; the thread begins with the first question."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._lock = threading.Condition()
        self._found: OrderedDict[Key, Drawn | str] = OrderedDict()
        self._asked: deque[Key] = deque()
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
            self._lock.notify_all()

    def ask(self, digests: Iterable[str], split: str) -> dict[str, Drawn | str]:
        """What is known by now, by digest; text: why there will be nothing. The others are worked on from now on."""
        with self._lock:
            known: dict[str, Drawn | str] = {}
            for digest in digests:
                key = (digest, split)
                if key in self._found:
                    self._found.move_to_end(key)
                    known[digest] = self._found[key]
                elif key not in self._asked:
                    self._asked.append(key)
            if self._asked and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="resampler", daemon=True)
                self._thread.start()
            self._lock.notify_all()
            return known

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._asked or self._closed)
                if self._closed:
                    return
                key = self._asked[0]
            found: Drawn | str | None
            try:
                found = self._resample(*key)
            except StoreAway as error:
                logger.warning("the detections %s cannot be resampled now: %s", key[0], error)
                found = None  # whoever asks again has it tried again
            except Exception:
                logger.exception("the detections %s could not be resampled", key[0])
                found = "it could not be worked out; the server's log says why"
            with self._lock:
                self._asked.popleft()
                if found is not None:
                    self._found[key] = found
                while len(self._found) > KEPT:
                    self._found.popitem(last=False)

    def _resample(self, digest: str, split: str) -> Drawn | str:
        try:
            if (size := self._store.size(digest)) > MOST_BYTES:
                return f"a run's detections are {size} bytes; intervals over images are for up to {MOST_BYTES}"
            with self._store.local(digest) as file:
                return self._run(children.command("api.core.resample_child", str(file), split))
        except FileNotFoundError:
            return "a run's detections are no longer in the store"

    def _run(self, argv: list[str]) -> Drawn | str:
        with self._lock:
            if self._closed:
                return "the server goes down"
            child = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=children.environment())
            self._child = child
        try:
            said, _ = child.communicate(timeout=MOST_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return f"resampling a run's images took longer than {MOST_S:.0f} s"
        finally:
            self._child = None
        if child.returncode != 0:
            return f"resampling a run's images ended with status {child.returncode}; the server's log says why"
        told = json.loads(said)
        if "error" in told:
            return str(told["error"])
        values = np.array([np.nan if value is None else value for value in told["values"]], np.float64)
        return Drawn(np.nan if told["once"] is None else told["once"], values, told["images"])
