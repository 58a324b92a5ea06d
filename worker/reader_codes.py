"""The exit codes of the readers of strangers' files, besides 0."""

from __future__ import annotations

NOTHING_THERE = 2
"""It is refused; error.txt says why."""
TRY_AGAIN = 75
"""The host refused, and another try may go well. EX_TEMPFAIL of sysexits.h."""
