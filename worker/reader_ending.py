"""What the exit code of a reader says: a child that reads what a stranger brought, a data set or a model's file."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.leased_child import MAX_MESSAGE, ChildBroken, last_line
from worker.reader_codes import NOTHING_THERE, TRY_AGAIN

ASK_FOR_MORE = "Leave out what is not needed, split it, or raise FGD_IMPORT_MINUTES on the worker"


@dataclass(frozen=True)
class Rejected:
    error: str
    report: Any = None
    """Of the noun's own type."""


def ended_badly(code: int, folder: Path, what: str) -> Rejected | ChildBroken | None:
    """What every reader's exit code says; None: it came to its end."""
    if code == 0:
        return None
    if code == NOTHING_THERE:
        return Rejected((folder / "error.txt").read_text()[:MAX_MESSAGE])
    if code == -signal.SIGXCPU:
        return Rejected(f"reading {what} takes more processor time than an import may use. {ASK_FOR_MORE}")
    last = last_line(folder)
    if code == TRY_AGAIN:
        return ChildBroken(f"the worker's host failed: {last}")
    if code < 0:  # by the kernel as memory ran out, by a person, or by a file that crashes the reader: it will repeat
        return ChildBroken(f"the reader was ended by signal {-code}. {last}".strip())
    return Rejected(f"reading {what} failed with exit code {code}; the file breaks the reader. {last}".strip())


def took_too_long(most_s: float, what: str) -> Rejected:
    return Rejected(
        f"reading {what} takes longer than {most_s / 60:g} minutes, the limit for an import. {ASK_FOR_MORE}"
    )


def upload_gone(error: str) -> Rejected:
    return Rejected(f"the upload is missing from the store, or was changed there; upload it again: {error}")
