"""The passes of `fgd.methods.maps` in C++, compiled for this very processor when a training starts.

Nothing compiled is kept: it takes about two seconds, and code that lies in a folder would have to be trusted.
"""

# N images, C channels, P cells of one level

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fgd.errors import UserError
from fgd.methods.maps import Plane, Softmax

SOURCE = Path(__file__).with_name("maps.cpp")
FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
)
LIMIT_S = 120


class _Maps(ctypes.Structure):
    """`Maps` of maps.cpp."""

    _fields_ = (
        ("student", ctypes.c_void_p),
        ("teacher", ctypes.c_void_p),
        ("images", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("cells", ctypes.c_int64),
        ("channels_last", ctypes.c_bool),
        ("threads", ctypes.c_int),
    )


class Native:
    """Maps of other types or layouts than the kernels' are copied first: float32, dense, both laid out as the
    student's. As many threads as torch has."""

    def __init__(self) -> None:
        """Raises UserError if there is no compiler, or it fails."""
        self._library = compiled()
        if (run := torchs_threads()) is not None:
            self._library.run_by(run)

    def magnitudes(
        self,
        student_NCP: Tensor,
        teacher_NCP: Tensor,
        valid_NP: Tensor,
        student_attend_NC: Tensor,
        teacher_attend_NC: Tensor,
    ) -> tuple[Tensor, ...]:
        NP, NC = valid_NP, student_attend_NC
        out = [torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (NP, NC, NP, NC, NP, NP)]
        self._walk("magnitudes", student_NCP, teacher_NCP, valid_NP, student_attend_NC, teacher_attend_NC, *out)
        return tuple(out)

    def differences(
        self,
        student_NCP: Tensor,
        teacher_NCP: Tensor,
        valid_NP: Tensor,
        attention_NC: Tensor,
        student_share_NP: Tensor,
        teacher_share_NP: Tensor,
    ) -> tuple[Tensor, ...]:
        NP, NC = valid_NP, attention_NC
        out = [torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (NP, NP, NC, NC, NC)]
        shares = student_share_NP, teacher_share_NP
        self._walk("differences", student_NCP, teacher_NCP, valid_NP, attention_NC, *shares, *out)
        return tuple(out)

    def gradients(
        self,
        student_NCP: Tensor,
        teacher_NCP: Tensor,
        scale: Plane,
        slope: Plane,
        attend_NC: Tensor,
        difference_NC: Tensor,
        student: Softmax,
        teacher: Softmax,
    ) -> tuple[Tensor, ...]:
        dense_NCP = dense(student_NCP, channels_last(student_NCP))
        gradient_NCP = torch.empty_like(dense_NCP)  # keeps a dense layout
        of_attend_NC = [scale.channel_NC.new_zeros(scale.channel_NC.shape) for _ in range(2)]
        given = (*scale, *slope, attend_NC, difference_NC, *student, *teacher)
        self._walk("gradients", dense_NCP, teacher_NCP, *given, gradient_NCP, *of_attend_NC)
        return gradient_NCP.to(student_NCP.dtype), *of_attend_NC

    def _walk(self, name: str, student_NCP: Tensor, teacher_NCP: Tensor, *arrays: Tensor) -> None:
        last = channels_last(student_NCP)
        student, teacher = dense(student_NCP, last), dense(teacher_NCP, last)
        maps = _Maps(student.data_ptr(), teacher.data_ptr(), *student.shape, last, torch.get_num_threads())
        given = [each if each.dim() == 3 else each.contiguous() for each in arrays]  # alive until the walk is done
        getattr(self._library, name)(ctypes.byref(maps), *(ctypes.c_void_p(each.data_ptr()) for each in given))


def torchs_threads() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP that torch runs, where it is GNU's."""
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.cast(
            ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel, ctypes.c_void_p
        )
    return None


def channels_last(map_NCP: Tensor) -> bool:
    return map_NCP.stride(1) < map_NCP.stride(2)


def dense(map_NCP: Tensor, last: bool) -> Tensor:
    """The map as the kernels read it: itself where it is so already."""
    map_NCP = map_NCP.float()
    return map_NCP.mT.contiguous().mT if last else map_NCP.contiguous()


def compiler() -> str:
    """Raises UserError if there is none."""
    asked = os.environ.get("CXX")
    found = next(
        (path for name in ([asked] if asked else ["c++", "g++", "clang++"]) if (path := shutil.which(name))), None
    )
    if found is None:
        raise UserError(
            f"resources.compile is true, which needs a C++ compiler on the worker, and there is no "
            f"{asked or 'c++, g++ or clang++'} on its PATH: install one, or leave resources.compile out"
        )
    return found


def compiled() -> ctypes.CDLL:
    program = compiler()
    with tempfile.TemporaryDirectory(prefix="fgd-kernels-") as folder:  # of this user alone; a loaded file may go
        library = Path(folder) / "maps.so"
        command = [program, *FLAGS, "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            complaint = ran.stderr.strip()[-2000:] if ran.returncode else ""
            if not complaint and not ran.returncode:
                return ctypes.CDLL(str(library))
        except (OSError, subprocess.TimeoutExpired) as error:
            complaint = str(error)
    raise UserError(
        f"resources.compile is true, but {program} failed; mend it on the worker, or leave resources.compile out:\n"
        f"{complaint}"
    )
