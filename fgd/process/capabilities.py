"""What the superuser may beyond files: given up by a process that reads what strangers made, or runs their job.

For any other user there is nothing to give up. Linux.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterable

DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER = 1, 2, 3
"""Other users' files; from linux/capability.h, as the next."""
SYS_PTRACE, SYS_ADMIN, PERFMON, BPF, CHECKPOINT_RESTORE = 19, 21, 38, 39, 40
OTHERS_MEMORY = (SYS_PTRACE, SYS_ADMIN, PERFMON, BPF, CHECKPOINT_RESTORE)
"""Each lets a process read the memory or the environment of others, by one way or another."""
_VERSION_3 = 0x20080522


def keep_only(capabilities: Iterable[int]) -> None:
    """Of this thread, and of those that it starts. Call it before there are others."""
    _mask(sum(1 << bit for bit in capabilities))


def give_up(capabilities: Iterable[int]) -> None:
    _mask((1 << 64) - 1 - sum(1 << bit for bit in capabilities))


def _mask(kept: int) -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    data = ctypes.create_string_buffer(24)  # effective, permitted, inheritable: the lower halves, then the upper ones
    if libc.capget(header, data) != 0:
        return
    low, high = kept & 0xFFFFFFFF, kept >> 32
    left = (has & mask for has, mask in zip(struct.unpack("=6I", data.raw[:24]), (low,) * 3 + (high,) * 3, strict=True))
    libc.capset(header, struct.pack("=6I", *left))
