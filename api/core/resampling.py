"""What is worked out of the detections of a run: its AP on resamples of its images, which intervals over images need,
and its figures. Knows the store; knows no rows.

That takes seconds for a run, minutes for one of thousands of images, so no request waits for it: one child process
after the other works it out, once for each file. What it found is kept in memory, and in a folder for the next start of
the server. The same resamples are drawn for all runs of the same images.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from api.core.store.names import BlobStore, StoreAway
from fgd.evaluated import SplitFigures
from fgd.process import children
from fgd.statistics.intervals import Drawn

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""Of a run's detections."""
MOST_S = 600.0
"""Of one child."""
FORMAT = 1
"""Of the files in the folder. Raise it where a child would answer otherwise: older files are left aside then."""
MOST_FILES = 5000
"""In the folder; beyond that the oldest go."""


@dataclass(frozen=True)
class Work:
    """Something that is worked out of a file of detections."""

    child: str
    """The module that does it: `python -m CHILD DETECTIONS SPLIT`."""
    read: Callable[[Mapping[str, Any]], Any]
    """Of the child's answer, what is kept."""
    kept: int
    """Runs in memory."""


def _drawn(told: Mapping[str, Any]) -> Drawn:
    values = np.array([np.nan if value is None else value for value in told["values"]], np.float64)
    return Drawn(np.nan if told["once"] is None else told["once"], values, told["images"])


DRAWN = Work("api.core.resample_child", _drawn, 2000)
"""Some kilobytes each."""
FIGURES = Work("api.core.figures_child", json.dumps, 100)
"""Kept as text, which takes a tenth of the room: up to some hundred kilobytes each."""

Key = tuple[str, str]
"""Digest of the detections, and the split."""


@dataclass(frozen=True)
class _Found:
    """One of the two."""

    value: Any = None
    why_not: str | None = None


class Resampler:
    """Of one server process. Works inside `with`; the thread begins with the first question."""

    def __init__(self, store: BlobStore, folder: Path | None = None) -> None:
        """folder: for answers that outlive the process; it is made if need be."""
        self._store = store
        self._folder = folder
        self._lock = threading.Condition()
        self._found: Mapping[Work, OrderedDict[Key, _Found]] = {DRAWN: OrderedDict(), FIGURES: OrderedDict()}
        self._asked: deque[tuple[Work, Key]] = deque()
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
        known = self._known(DRAWN, digests, split)
        return {digest: found.why_not or found.value for digest, found in known.items()}

    def figures(self, digests: Iterable[str], split: str) -> dict[str, SplitFigures | str]:
        """The same of their figures."""
        known = self._known(FIGURES, digests, split)
        return {
            digest: found.why_not or SplitFigures.model_validate_json(found.value) for digest, found in known.items()
        }

    def _known(self, work: Work, digests: Iterable[str], split: str) -> dict[str, _Found]:
        with self._lock:
            known: dict[str, _Found] = {}
            for digest in digests:
                key = (digest, split)
                if key in self._found[work]:
                    self._found[work].move_to_end(key)
                    known[digest] = self._found[work][key]
                elif (work, key) not in self._asked:
                    self._asked.append((work, key))
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
                work, key = self._asked[0]
            found: _Found | None
            try:
                found = self._worked_out(work, *key)
            except StoreAway as error:
                logger.warning("the detections %s cannot be resampled now: %s", key[0], error)
                found = None  # it is tried again for who asks again
            except Exception:
                logger.exception("the detections %s could not be resampled", key[0])
                found = _Found(why_not="it could not be worked out; the server's log says why")
            with self._lock:
                self._asked.popleft()
                if found is not None:
                    self._found[work][key] = found
                while len(self._found[work]) > work.kept:
                    self._found[work].popitem(last=False)

    def _worked_out(self, work: Work, digest: str, split: str) -> _Found:
        if (told := self._kept(work, digest, split)) is not None:
            return _Found(work.read(told))
        try:
            if (size := self._store.size(digest)) > MOST_BYTES:
                return _Found(
                    why_not=f"a run's detections are {size} bytes; intervals and figures are for up to {MOST_BYTES}"
                )
            with self._store.local(digest) as file:
                found, answer = self._run(work, children.command(work.child, str(file), split))
            if answer is not None:
                self._keep(work, digest, split, answer)
            return found
        except FileNotFoundError:
            return _Found(why_not="a run's detections are no longer in the store")

    def _file(self, work: Work, digest: str, split: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{work.child.rpartition('.')[2]}-{FORMAT}-{digest}-{split}.json"

    def _kept(self, work: Work, digest: str, split: str) -> Mapping[str, Any] | None:
        """What an earlier process found; a file that is damaged is as good as none."""
        if (file := self._file(work, digest, split)) is None:
            return None
        try:
            told = json.loads(file.read_bytes())
            work.read(told)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return told if isinstance(told, dict) else None

    def _keep(self, work: Work, digest: str, split: str, told: bytes) -> None:
        if (file := self._file(work, digest, split)) is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(told)
            part.replace(file)
            old = sorted(file.parent.iterdir(), key=lambda each: each.stat().st_mtime)[:-MOST_FILES]
            for each in old:
                each.unlink(missing_ok=True)
        except OSError as error:  # it is worked out again after the next start
            logger.warning("what was worked out of %s cannot be kept: %s", digest, error)

    def _run(self, work: Work, argv: list[str]) -> tuple[_Found, bytes | None]:
        """And the child's answer, if it is to be kept."""
        with self._lock:
            if self._closed:
                return _Found(why_not="the server goes down"), None
            child = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=children.environment())
            self._child = child
        try:
            said, _ = child.communicate(timeout=MOST_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return _Found(why_not=f"working on a run's detections took longer than {MOST_S:.0f} s"), None
        finally:
            self._child = None
        if child.returncode != 0:
            status = f"status {child.returncode}"
            return _Found(why_not=f"working on a run's detections ended with {status}; the server's log says why"), None
        told = json.loads(said)
        if "error" in told:
            return _Found(why_not=str(told["error"])), None
        return _Found(work.read(told)), said
