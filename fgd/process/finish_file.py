"""How a running trainer is asked to finish early: a file in its output folder. Knows no torch and no service.

A file and no signal: it can be asked before the trainer listens, every rank of it can look, and asking twice is asking
once. SIGTERM stays the word for "save a checkpoint and end".
"""

from __future__ import annotations

from pathlib import Path

FINISH = "finish"


def ask_to_finish(out: Path) -> None:
    """The training in `out` ends after its current step, and exports. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    (out / FINISH).touch()


def asked_to_finish(out: Path) -> bool:
    return (out / FINISH).exists()


def forget(out: Path) -> None:
    """The wish was granted, or is an earlier run's."""
    (out / FINISH).unlink(missing_ok=True)
