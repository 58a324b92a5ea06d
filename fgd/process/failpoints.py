"""Named places at which a test may kill or stop the process that reaches them. Off, and then they cost one comparison.

    FGD_FAILPOINTS=after_claim=kill,before_checkpoint_row=stop@2    where, what, and at which time it is reached there
    FGD_FAILPOINTS_TEST=folder                                      says that this is a test, and keeps what struck

`kill` is SIGKILL to the process itself: nothing is cleaned up, as when the machine dies. `stop` is SIGSTOP: the
test does something meanwhile and sends SIGCONT. `wait` holds one thread only, until PLACE.go is in the folder.
Each place strikes once per folder, whatever process reaches it first. Without the second variable a process that has
the first refuses to run. Knows no torch and no job.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

PLACES = "FGD_FAILPOINTS"
TEST = "FGD_FAILPOINTS_TEST"
POINTS = frozenset(
    {
        "before_claim", "claim_uncommitted", "after_claim",
        "before_staging", "after_staging",
        "before_checkpoint_file", "checkpoint_file_unnamed", "after_checkpoint_file",
        "before_checkpoint_blob", "after_checkpoint_blob",
        "before_checkpoint_row", "checkpoint_row_uncommitted", "after_checkpoint_row",
        "before_artifact_blob", "after_artifact_blob",
        "before_final_state", "final_state_uncommitted", "after_final_state",
        "before_requeue", "requeue_uncommitted", "after_requeue",
        "before_sweep_requeue", "after_sweep_requeue",
    }
)  # fmt: skip
"""Every place there is. `uncommitted`: written in a transaction that is still open. The rows of a result and the
job's final state are one transaction."""
_DEEDS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "wait": None}


class NotATest(RuntimeError):
    """Failpoints were asked for outside a test, or ones that do not exist."""


@dataclass
class _Armed:
    deed: signal.Signals | None
    nth: int
    folder: Path
    reached: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def strike(self, name: str) -> None:
        with self.lock:
            self.reached += 1
            due = self.reached >= self.nth
        if not due:
            return
        try:
            (self.folder / name).open("x").close()
        except FileExistsError:  # it struck before
            return
        if self.deed is not None:
            os.kill(os.getpid(), self.deed)
            return
        while not (self.folder / f"{name}.go").exists():
            time.sleep(0.01)


def reach(name: str) -> None:
    """This process is at the place `name`."""
    if _armed and name in _armed:
        _armed[name].strike(name)


def environment() -> dict[str, str]:
    """What a child must be told so that its places are armed too; {} outside tests."""
    return {name: os.environ[name] for name in (PLACES, TEST)} if _armed else {}


def _arm(places: str, test: str) -> dict[str, _Armed]:
    if not places:
        return {}
    if not test:
        raise NotATest(f"{PLACES} kills this process on purpose and is only for tests, which also set {TEST}. Unset it")
    armed = {}
    for place in places.split(","):
        name, _, what = place.partition("=")
        deed, _, nth = what.partition("@")
        if name not in POINTS or deed not in _DEEDS or not (nth or "1").isdigit():
            raise NotATest(
                f"{PLACES}: {place!r} is not PLACE=kill, PLACE=stop or PLACE=wait, with @N; places: {sorted(POINTS)}"
            )
        armed[name] = _Armed(_DEEDS[deed], int(nth or 1), Path(test))
    return armed


_armed = _arm(os.environ.get(PLACES, ""), os.environ.get(TEST, ""))
