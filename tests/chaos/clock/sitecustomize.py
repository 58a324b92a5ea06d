"""Shifts the clock of the process it is started in, as an administrator or a bad time server would: by the seconds that
the file FGD_TEST_CLOCK holds, which may change at any time. Wall clock only; the monotonic one is nobody's to set.

`datetime.now` asks the system itself and is not shifted; our code asks the database, or `time`. (Under libfaketime
0.9.10 a worker did not get far in 20 s, clock shifted or not, and nobody found out why; so this hook has to do.)
"""

import os
import sys
import time
from pathlib import Path

_true, _true_ns = time.time, time.time_ns
_told = 0.0


def _shift(file: Path) -> float:
    global _told
    try:
        shift = float(file.read_text() or 0)
    except (OSError, ValueError):
        return _told
    if shift != _told:
        _told = shift
        print(f"clock shifted by {shift:g} s", file=sys.stderr, flush=True)
    return shift


if "FGD_TEST_CLOCK" in os.environ:
    _file = Path(os.environ["FGD_TEST_CLOCK"])
    time.time = lambda: _true() + _shift(_file)
    time.time_ns = lambda: _true_ns() + int(_shift(_file) * 1e9)
