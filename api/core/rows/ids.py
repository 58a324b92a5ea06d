"""Ids: a prefix and a UUIDv7 (RFC 9562) in hex, so that they sort by birth. Knows nothing else."""

from __future__ import annotations

import re
import secrets
import threading
import time

ID_PATTERN = "_[0-9a-f]{32}"
"""What follows the prefix."""
_ID = re.compile(f"[a-z]{{2,4}}{ID_PATTERN}")
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """`job` -> `job_` + 32 hex digits; rising within one process."""
    return f"{prefix}_{_uuid7():032x}"


def is_id(prefix: str, text: str) -> bool:
    return _ID.fullmatch(text) is not None and text.startswith(f"{prefix}_")


def _uuid7() -> int:
    """48 bits of milliseconds, 12 bits of the fraction (RFC 9562, 6.2 method 3), 62 random bits."""
    global _last
    with _lock:
        nanoseconds = time.time_ns()
        _last = ticks = max(_last + 1, ((nanoseconds // 1_000_000) << 12) | ((nanoseconds % 1_000_000) * 4096 // 10**6))
    milliseconds, fraction = ticks >> 12, ticks & 0xFFF
    return milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
