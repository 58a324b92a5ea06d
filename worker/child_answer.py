"""What a child says that answers with one JSON object: the answer, or {"error": {"code", "message", "pointer"}}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.leased_child import MAX_MESSAGE, ChildBroken, last_line

MAX_ANSWER = 1 << 20


@dataclass(frozen=True)
class Refused:
    """It cannot be done so; no other try would help."""

    code: str
    message: str
    pointer: str = ""


def answer_of(code: int, file: Path) -> dict[str, Any] | Refused | ChildBroken:
    """code: the child's exit status, 0 for an answer. file: the answer, in the work folder."""
    last = last_line(file.parent)
    if code < 0:  # memory ran out, a person, or a crash
        return ChildBroken(f"it was ended by signal {-code}; perhaps there was too little memory. {last}".strip())
    try:
        if file.stat().st_size > MAX_ANSWER:
            raise ValueError("too long")
        told: dict[str, Any] = dict(json.loads(file.read_bytes()))
        if code == 0:
            return told
        error = told["error"]
        return Refused(str(error["code"]), str(error["message"])[:MAX_MESSAGE], str(error.get("pointer", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ChildBroken(f"it failed with exit code {code}. {last}".strip())
