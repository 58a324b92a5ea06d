"""How an attempt ended, from what is known when its trainer is gone. Pure.

succeeded   exit 0, and the last event names the result
as asked    someone asked for a cancel or a pause, and the trainer did not finish before
handed back the worker is going down, or the trainer was asked to make room: nobody's fault, not counted
failed      everything else, with a code that says whether trying again makes sense; a job that used up its
            limits.max_runtime_s is `preempted`: it did nothing wrong, and another attempt would have no time left
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from dataclasses import field as member
from enum import Enum, auto
from typing import Any

from api.core.lifecycle import FailureCode, signal_name
from fgd.events import EXIT_STOPPED, Failed, Finished
from fgd.process import error_causes


class EndCause(Enum):
    """Why the supervisor ended the trainer, if it was the supervisor."""

    by_itself = auto()
    cancelled = auto()
    paused = auto()
    worker_stops = auto()
    stalled = auto()
    out_of_time = auto()
    survived_kill = auto()


@dataclass(frozen=True)
class TrainerEnd:
    returncode: int | None
    ended: EndCause = EndCause.by_itself
    last: Finished | Failed | None = None
    tail: str = ""
    """The last of the log."""
    oom_kills: int = 0
    """Processes that the kernel killed because memory ran out in our control group while it ran."""


@dataclass(frozen=True)
class Succeeded:
    result: Finished


@dataclass(frozen=True)
class AsAsked:
    """Cancelled or paused: the row knows what is asked by now."""


@dataclass(frozen=True)
class HandedBack:
    reason: str


@dataclass(frozen=True)
class Failure:
    code: FailureCode
    message: str
    data: dict[str, Any] = member(default_factory=dict)


Verdict = Succeeded | AsAsked | HandedBack | Failure

LOG_SIGNS: tuple[tuple[re.Pattern[str], FailureCode, str], ...] = (
    (re.compile(error_causes.GPU_MEMORY), FailureCode.gpu_out_of_memory, "the GPU ran out of memory"),
    (re.compile(error_causes.NO_SPACE), FailureCode.no_space, "the worker's disk is full"),
    (re.compile(error_causes.HOST_MEMORY, re.M), FailureCode.host_out_of_memory, "the worker's host ran out of memory"),
)
"""What the last lines of a log give away, most telling first."""


def verdict(end: TrainerEnd) -> Verdict:
    """What the attempt comes to. A finished training is a success whatever was asked meanwhile."""
    if end.returncode == 0 and isinstance(end.last, Finished):
        return Succeeded(end.last)
    match end.ended:
        case EndCause.cancelled | EndCause.paused:
            return AsAsked()
        case EndCause.worker_stops:
            return HandedBack("the worker is shutting down")
        case EndCause.stalled:
            return Failure(FailureCode.stalled, "the trainer reported nothing for too long and was killed")
        case EndCause.out_of_time:
            message = "it reached limits.max_runtime_s and was stopped"
            return Failure(FailureCode.preempted, message, {"limit": "max_runtime_s"})
        case EndCause.survived_kill:
            return Failure(FailureCode.host_wedged, "the trainer survives SIGKILL; check the host")
        case EndCause.by_itself:
            return _own_end(end)


def _own_end(end: TrainerEnd) -> Verdict:
    if isinstance(end.last, Failed):
        return Failure(known_code(end.last.code), end.last.message, end.last.data)
    if end.returncode == EXIT_STOPPED:
        return HandedBack("the trainer was asked to stop")
    for pattern, code, message in LOG_SIGNS:
        if end.returncode != 0 and (found := pattern.search(end.tail)):
            return Failure(code, message, {"log": _line_around(end.tail, found.start())})
    if end.returncode is not None and end.returncode < 0:
        return _killed(end, -end.returncode)
    if end.returncode == 0:
        return Failure(FailureCode.protocol, "the trainer ended without a result")
    last_line = end.tail.strip().rpartition("\n")[2][:500]
    return Failure(
        FailureCode.protocol, f"the trainer ended with exit code {end.returncode}: {last_line}", {"log": last_line}
    )


def _killed(end: TrainerEnd, number: int) -> Failure:
    if number == signal.SIGKILL and end.oom_kills:
        return Failure(
            FailureCode.host_out_of_memory,
            "the kernel killed the trainer because memory ran out",
            {"signal": number},
        )
    return Failure(FailureCode.trainer_killed, f"the trainer was ended by {signal_name(number)}", {"signal": number})


def known_code(code: str) -> FailureCode:
    """A trainer newer than we are may say codes we do not know."""
    return FailureCode(code) if code in set(FailureCode) else FailureCode.protocol


def _line_around(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0][:500]
