"""What the exit code of a reader says: a child that reads what a stranger brought, a data set or a model's file."""

from __future__ import annotations

from pathlib import Path

from worker.importer import NOTHING_THERE, TRY_AGAIN
from worker.leased_child import MAX_ERROR, Broken, Rejected


def ended_badly(code: int, folder: Path, what: str) -> Rejected | Broken | None:
    """What every reader's exit code says; None: it came to its end."""
    if code == NOTHING_THERE:
        return Rejected((folder / "error.txt").read_text()[:MAX_ERROR])
    last = (folder / "tail.txt").read_text().strip().rpartition("\n")[2][:MAX_ERROR] if code else ""
    if code == TRY_AGAIN:
        return Broken(f"the worker's host failed: {last}")
    if code < 0:  # by the kernel for want of memory, by a person, or by a file that crashes the reader: it will repeat
        return Broken(f"the reader was ended by signal {-code}. {last}".strip())
    if code:
        return Rejected(f"reading {what} failed with exit code {code}; it breaks the reader. {last}".strip())
    return None
