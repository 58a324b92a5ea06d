"""The passes of `fgd.methods.maps` by the Triton kernels of `fgd.methods.kernels`. Nothing here waits for the GPU."""

# N images, T tiles of cells, C channels, P cells of one level

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Any

import torch
from torch import Tensor

from fgd.errors import UserError
from fgd.methods.maps import Attend, Plane, Softmax, Wanted, compare

CHANNELS, CELLS = 32, 128
"""Of a tile's step: 4096 values of each map, cells together in memory or channels together."""


class OnGpu:
    def __init__(self, device: torch.device) -> None:
        """Compiles everything for `device`. Raises UserError if that fails."""
        if "TRITON_CACHE_DIR" not in os.environ:  # nobody else's code is run, and ours is left to nobody
            os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="fgd-kernels-")
            atexit.register(shutil.rmtree, os.environ["TRITON_CACHE_DIR"], ignore_errors=True)
        try:
            from fgd.methods import kernels

            self._kernels: Any = kernels
            self._try_out(device)
        except Exception as error:  # triton has many: no triton, no C compiler, no driver, a card it does not know
            raise UserError(
                "resources.compile is true, but triton, with a C compiler, does not work on the worker's GPU; mend "
                f"it, or leave resources.compile out: {error!r}"
            ) from error

    def magnitudes(
        self,
        student_NCP: Tensor,
        teacher_NCP: Tensor,
        valid_NP: Tensor,
        student_attend_NC: Tensor,
        teacher_attend_NC: Tensor,
    ) -> tuple[Tensor, ...]:
        student_NP, teacher_NP, student_logits_NP, teacher_logits_NP = _cells(student_NCP, 4)
        student_NTC, teacher_NTC = _by_tile(student_NCP, 2)
        out = (student_NP, student_NTC, teacher_NP, teacher_NTC, student_logits_NP, teacher_logits_NP)
        given = (valid_NP, student_attend_NC, teacher_attend_NC)
        self._launch(self._kernels.magnitudes, student_NCP, teacher_NCP, *given, *out)
        return student_NP, student_NTC.sum(1), teacher_NP, teacher_NTC.sum(1), student_logits_NP, teacher_logits_NP

    def differences(
        self,
        student_NCP: Tensor,
        teacher_NCP: Tensor,
        valid_NP: Tensor,
        attention_NC: Tensor,
        student_share_NP: Tensor,
        teacher_share_NP: Tensor,
    ) -> tuple[Tensor, ...]:
        of_cells_NP, of_channels_NTC = _cells(student_NCP, 2), _by_tile(student_NCP, 3)
        given = (valid_NP, attention_NC, student_share_NP, teacher_share_NP)
        self._launch(self._kernels.differences, student_NCP, teacher_NCP, *given, *of_cells_NP, *of_channels_NTC)
        return *of_cells_NP, *(each.sum(1) for each in of_channels_NTC)

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
        gradient_NCP, of_attend_NTC = torch.empty_like(student_NCP), _by_tile(student_NCP, 2)
        given = (*scale, *slope, attend_NC, difference_NC, *student, *teacher, *of_attend_NTC)
        self._launch(self._kernels.gradients, student_NCP, teacher_NCP, *given, gradient_NCP=gradient_NCP)
        return gradient_NCP, *(each.sum(1) for each in of_attend_NTC)

    def _launch(
        self,
        kernel: Any,
        student_NCP: Tensor,
        teacher_NCP: Tensor,
        *arrays: Tensor,
        gradient_NCP: Tensor | None = None,
    ) -> None:
        maps = (student_NCP, *student_NCP.stride(), teacher_NCP, *teacher_NCP.stride(), *student_NCP.shape[1:])
        gradient = () if gradient_NCP is None else (gradient_NCP, *gradient_NCP.stride())
        given = [each.contiguous() for each in arrays]  # those that are written are so already
        grid = (_tiles(student_NCP), len(student_NCP))
        kernel[grid](*maps, *gradient, *given, CHANNELS=CHANNELS, CELLS=CELLS)

    def _try_out(self, device: torch.device) -> None:
        student_NCP = torch.ones(1, 2, 3, device=device, requires_grad=True)
        valid_NP = torch.ones(1, 3, device=device)
        attend = Attend(*(torch.ones(size, device=device) for size in (2, 1, 2, 1)))
        sums = compare(student_NCP, student_NCP, valid_NP, Wanted(True, True, True, True), attend=attend, kernels=self)
        (sums.error_NP.sum() + sums.student_cells_NP.sum()).backward()  # type: ignore[no-untyped-call]


def _tiles(map_NCP: Tensor) -> int:
    return -(-map_NCP.shape[2] // CELLS)


def _cells(map_NCP: Tensor, how_many: int) -> list[Tensor]:
    images, _, cells = map_NCP.shape
    return [map_NCP.new_empty(images, cells, dtype=torch.float32) for _ in range(how_many)]


def _by_tile(map_NCP: Tensor, how_many: int) -> list[Tensor]:
    images, channels, _ = map_NCP.shape
    return [map_NCP.new_empty(images, _tiles(map_NCP), channels, dtype=torch.float32) for _ in range(how_many)]
