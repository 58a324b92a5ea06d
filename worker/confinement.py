"""Where strangers' files are read: should a reader be tricked, there is nothing that it could call or reach.

A seccomp filter refuses the network, programs, and every way to other processes; Landlock bounds the files. Neither
needs a privilege, and nothing takes them back. seccomp: Linux on x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from fgd.process import capabilities, children, landlock

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
SECCOMP_SET_MODE_FILTER, ALL_THREADS = 1, 1
"""From linux/prctl.h and linux/seccomp.h."""
LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Of classic BPF: load a word of seccomp_data, compare it, end."""
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16
"""Offsets in seccomp_data; of an argument the lower half, where the machine stores that first."""
X32 = 0x40000000
"""x86_64's second set of numbers for the same calls begins here."""
NAMESPACES = 0x7E020000
"""CLONE_NEW*: in a namespace of its own a process has powers that it lacks here."""
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""AUDIT_ARCH, and the column of the numbers below."""
REFUSED = {
    # the network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # programs
    "execve": (59, 221), "execveat": (322, 281),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # namespaces, mounts, files without a name
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # what the kernel has had most faults in
    "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104),
}  # fmt: skip
"""System calls, with their numbers on each of ARCHITECTURES."""
ONLY_ITSELF = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
"""Calls whose first argument is a process: this one, or 0, which is this one or its own group."""
CLONE, CLONE3 = (56, 220), (435, 435)
"""clone3's flags lie in memory, where no filter looks; without it the C library takes clone."""
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/proc", "/sys")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")


def confine_files(own: Path, reads: Iterable[Path | int]) -> bool:
    """From now on this process writes only below `own`, and reads only there, in `reads` and in what Python and its
    libraries consist of. Call it before any thread is started. False where the kernel has no Landlock."""
    os.environ["TMPDIR"] = str(own.resolve())  # torch looks for one when it is loaded
    capabilities.keep_only((capabilities.DAC_OVERRIDE, capabilities.DAC_READ_SEARCH))  # what lies below a data root
    return landlock.restrict([own, Path("/dev/null")], [*reads, *libraries()])


def libraries() -> list[Path]:
    """Where this interpreter may look for modules and their shared libraries."""
    ours = Path(children.our_folder())
    found = [*map(Path, _SYSTEM), *map(Path, _FILES), ours / "fgd", ours / "worker", ours / "api"]
    found += [Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)]
    found += [Path(entry) for entry in sys.path if entry and Path(entry) != ours]
    found += [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    return [place for place in found if place != Path("/")]


def confine_process() -> bool:
    """Refuse the calls above to all threads of this process. True if the filter stands."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    program = _program(*ARCHITECTURES[platform.machine()], os.getpid())
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, where they lie
    header = ctypes.create_string_buffer(struct.pack("@HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 16)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    number = (317, 277)[ARCHITECTURES[platform.machine()][1]]
    if libc.syscall(number, SECCOMP_SET_MODE_FILTER, ALL_THREADS, ctypes.byref(header)) == 0:
        return True
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(header), 0, 0) == 0)


def _program(arch: int, column: int, pid: int) -> bytes:
    """Another architecture's calls are refused as a whole; so are those named; all others pass."""
    steps = [(LOAD, 0, 0, ARCH_AT), (JUMP_IF_EQUAL, 1, 0, arch), (RETURN, 0, 0, REFUSE), (LOAD, 0, 0, NUMBER_AT)]
    steps += [(JUMP_IF_AT_LEAST, 0, 1, X32), (RETURN, 0, 0, REFUSE)]
    for numbers in REFUSED.values():
        steps += [(JUMP_IF_EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, REFUSE)]
    steps += [(JUMP_IF_EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, ABSENT)]
    for numbers in ONLY_ITSELF.values():
        steps += [(JUMP_IF_EQUAL, 0, 5, numbers[column]), (LOAD, 0, 0, FIRST_ARGUMENT_AT), (JUMP_IF_EQUAL, 2, 0, 0)]
        steps += [(JUMP_IF_EQUAL, 1, 0, pid), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    steps += [(JUMP_IF_EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT_AT)]
    steps += [(JUMP_IF_ANY, 0, 1, NAMESPACES), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
