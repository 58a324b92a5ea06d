"""Landlock: what this process, and all that it starts, may reach of the file system from now on. Nothing takes it back.

Needs no privilege, and Linux 5.13. It counts for threads that are started afterwards: call it first. A process under it
can neither trace another one that is not, nor read its memory and environment through /proc; the superuser can
neither, once it has given up its own ways (capabilities.OTHERS_MEMORY).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from fgd.process import capabilities

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""System calls; the same numbers on every architecture."""
_PR_SET_NO_NEW_PRIVS = 38
# Rights, from linux/landlock.h.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << bit for bit in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = (1 << bit for bit in range(13, 16))
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = (_WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG) | _REFER | _TRUNCATE
_ALL = (1 << 16) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_SINCE = {1: 13, 2: 14, 3: 15, 4: 15}
"""Version of the interface -> how many rights it knows; later ones know all 16."""
_TCP, _SCOPES = 3, 3
"""Binding and connecting, since 4; abstract sockets and signals, since 6."""


def restrict(writable: Iterable[Path | int], readable: Iterable[Path | int]) -> bool:
    """From now on files are written only below `writable` and read only below these and `readable` (a path, or a
    descriptor of what was opened); no TCP, and no signal to other processes. False where the kernel has no Landlock."""
    version = _version()
    if version < 1:
        return False
    handled = _known(version)
    network, scopes = _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0
    rules = [(place, _READ) for place in readable] + [(place, _READ | _WRITE) for place in writable]
    return _enforce(version, handled, rules, network, scopes)


def keep_apart() -> bool:
    """From now on this process and its children cannot read the memory and the environment of any other process; they
    reach as many files as before. False where the kernel has no Landlock, or it would be in the way.

    It takes set-user-ID programs their power, and one of those makes the devices of a GPU when it is used first.
    """
    capabilities.give_up(capabilities.OTHERS_MEMORY)
    version = _version()
    if version < 2 or (os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/nvidia-uvm")):
        return False
    return _enforce(version, _MAKE_CHAR | _MAKE_BLOCK | _REFER, [(Path("/"), _REFER)])


def _version() -> int:
    """0 where there is none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1)))


def _known(version: int) -> int:
    return (1 << _SINCE[version]) - 1 if version in _SINCE else _ALL


def _enforce(
    version: int, handled: int, rules: Iterable[tuple[Path | int, int]], network: int = 0, scopes: int = 0
) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", handled, network, scopes)
    ruleset = libc.syscall(_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        for place, rights in rules:
            with contextlib.suppress(OSError):  # what is not there needs no rule
                _add(libc, ruleset, place, rights & handled)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _add(libc: ctypes.CDLL, ruleset: int, place: Path | int, rights: int) -> None:
    opened = place if isinstance(place, int) else os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{opened}"):
            rights &= _OF_FILES
        rule = ctypes.c_char_p(struct.pack("=Qi", rights, opened))
        if libc.syscall(_ADD, ruleset, 1, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))
    finally:
        if not isinstance(place, int):
            os.close(opened)
