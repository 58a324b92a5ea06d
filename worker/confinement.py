"""From now on this process can neither open a socket nor run a program: a seccomp filter, which nothing takes back.

Needs no privilege. For a process that reads what strangers wrote: should its reader be tricked, there is nothing to
be called. Linux on x86_64 and aarch64; elsewhere it does nothing and says so.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
"""From linux/prctl.h and linux/seccomp.h."""
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Of classic BPF: load a word of seccomp_data, compare it, end."""
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
NUMBER_AT, ARCH_AT = 0, 4
"""Offsets in seccomp_data."""
X32 = 0x40000000
"""x86_64's second set of numbers for the same calls begins here."""
CALLS = {
    # AUDIT_ARCH, then socket, socketpair, connect, execve, execveat, ptrace, io_uring_setup
    "x86_64": (0xC000003E, (41, 53, 42, 59, 322, 101, 425)),
    "aarch64": (0xC00000B7, (198, 199, 203, 221, 281, 117, 425)),
}


def confine_process() -> bool:
    """True if the filter stands, for all threads that this one starts from now on."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return False
    arch, calls = CALLS[platform.machine()]
    program = _program(arch, calls)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, where they lie
    header = ctypes.create_string_buffer(struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 16)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(header), 0, 0) == 0)


def _program(arch: int, calls: tuple[int, ...]) -> bytes:
    """Another architecture's calls are refused as a whole; so are those named; all others pass."""
    steps = [(LOAD, 0, 0, ARCH_AT), (JUMP_IF_EQUAL, 1, 0, arch), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, NUMBER_AT)]
    left = len(calls)
    steps.append((JUMP_IF_AT_LEAST, left + 1, 0, X32))
    for call in calls:
        steps.append((JUMP_IF_EQUAL, left, 0, call))
        left -= 1
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
