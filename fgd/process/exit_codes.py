"""The exit codes of our programs, and which one an error ends with. Knows neither HTTP nor torch.

One rule for all of them: the code follows from the cause. REFUSED: the request cannot be right (a path that leads
nowhere, a spec that makes no sense). FAILED: it was tried, and came to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from fgd.errors import ArgumentError, CheckpointForeign, SpecError

DONE, FAILED, REFUSED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

LEADS_NOWHERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
WRONG_REQUEST = (ArgumentError, SpecError, CheckpointForeign, *LEADS_NOWHERE)


def exit_code(error: BaseException) -> int:
    """FAILED or REFUSED."""
    return REFUSED if any(isinstance(each, WRONG_REQUEST) for each in _causes(error)) else FAILED


def message_of(error: BaseException) -> str:
    """What happened, file first. Python's own words for a path begin with a number that says nothing to people."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
