"""What an error's text gives away about its cause. One list for the trainer, which has the exception, and the
supervisor, which may have nothing but the last lines of a log. Knows no torch."""

from __future__ import annotations

import errno
import re

GPU_MEMORY = (
    r"CUDA out of memory|torch\.OutOfMemoryError|CUDA error: out of memory|cudaErrorMemoryAllocation"
    r"|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
)
HOST_MEMORY = (
    r"^MemoryError|std::bad_alloc|Cannot allocate memory|DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|Unable to allocate .* for an array"
)
NO_SPACE = r"No space left on device|\[Errno 28\]|Disk quota exceeded"


def code_of(error: BaseException) -> str:
    """One of the service's failure codes. What an error was raised from, or while handling, counts as well: torch says
    "unexpected pos" of a checkpoint on a full disk."""
    found = (_code_of_one(each) for each in _chain(error))
    return next((code for code in found if code is not None), "protocol")


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _code_of_one(error: BaseException) -> str | None:
    text = f"{type(error).__name__}: {error}"
    if type(error).__name__ == "OutOfMemoryError" or re.search(GPU_MEMORY, text):  # torch's, without importing torch
        return "gpu_out_of_memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no_space"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or re.search(HOST_MEMORY, text):
        return "host_out_of_memory"
    return "no_space" if re.search(NO_SPACE, text) else None
