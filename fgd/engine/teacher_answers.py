"""What earlier trainings found out about a teacher on the same data, so that the next one starts sooner.

A folder of small JSON files, one an answer, named by the digest of all that it follows from. Never needed and never
trusted half: a file that is torn, foreign or changed is no answer, and a folder that cannot be written keeps nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fgd.data.index import Image

FOLDER = "FGD_TEACHER_CACHE"
"""Environment variable with the folder; the service sets it. Without it nothing is remembered."""
VERSION = 1
"""Of the answers: higher once check or calibration compute something else."""
MOST = 1000
"""Answers kept; the oldest go first."""

Question = dict[str, Any]


class TeacherAnswers:
    """Answers by question, in `folder`; None: none, and none is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def from_environment(cls) -> TeacherAnswers:
        return cls(Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None)

    def answer(self, question: Question) -> Any:
        """What was kept; None if nothing whole is there."""
        if self.folder is None:
            return None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._file(question).read_bytes())
            if kept["digest"] == _digest([question, kept["answer"]]):
                return kept["answer"]
        return None

    def keep(self, question: Question, answer: Any) -> None:
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"answer": answer, "digest": _digest([question, answer])})
            with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix=".", suffix=".part", delete=False) as file:
                file.write(text)
            os.replace(file.name, self._file(question))
            self._forget()

    def _file(self, question: Question) -> Path:
        assert self.folder is not None
        return self.folder / f"{_digest(question)}.json"

    def _forget(self) -> None:
        assert self.folder is not None
        files = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for old in files[:-MOST]:
            old.unlink(missing_ok=True)


def content_of(images: Iterable[Image], root: Path) -> str:
    """Digest of images with their boxes and the bytes of their files."""
    sums = hashlib.sha256()
    for image in images:
        sums.update(image.model_dump_json().encode())
        with contextlib.suppress(OSError):  # reading it will report that
            sums.update(hashlib.sha256((root / image.file).read_bytes()).digest())
    return sums.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps([VERSION, value], sort_keys=True).encode()).hexdigest()
