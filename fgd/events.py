"""What a trainer says while it works: one JSON object a line, `type` first. Knows no torch.

A reader must accept types, phases and codes it does not know. Non-finite numbers travel as null. Nothing that is said
is dropped: what is too long for a line is spread over several, or says how much of it was cut.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

EXIT_STOPPED = 75
"""Exit code of a trainer that was told to end and saved a checkpoint; EX_TEMPFAIL of sysexits.h: try again later."""
RANK_EVENTS, RANK_EXIT = "FGD_RANK_EVENTS", "FGD_RANK_EXIT"
"""Environment variables: where one of several processes leaves its event lines, and its exit code, for
fgd/engine/launch.py, which started it."""
MAX_LINE = 64 * 1024
"""Bytes of one line at most; a longer one is not an event."""
MAX_MESSAGE = 8000
"""Characters of a message that are kept of an event that is too long."""
MAX_NAME = 1000
"""Characters of a number's name, likewise."""
OF_A_CLASS = "ap/"
"""Begins the names of the numbers that each class has."""
_FRAME, _NUMBER = 1024, 32
"""Bytes of a line without its numbers, and of a number with its comma, at most."""


def finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Event_(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Started(Event_):
    """The trainer stands; training begins at `step` of `total_steps`."""

    type: Literal["started"] = "started"
    step: int
    total_steps: int
    epochs: int
    device: str
    threads: int
    precision: str
    versions: dict[str, str]


class Phase(Event_):
    """staging, loading, checking_teacher, calibrating, training, evaluating, exporting, ..."""

    type: Literal["phase"] = "phase"
    phase: str


class Note(Event_):
    """Something a person should be able to read later: what was loaded, measured, warned about."""

    type: Literal["note"] = "note"
    code: str
    """A stable word: teacher_checked, calibration, inherited, warm_started, checkpoint_corrupt, resumed, ..."""
    message: str
    data: dict[str, Any] = {}
    level: Literal["info", "warning"] = "info"


class Stepped(Event_):
    """Means over the steps since the last such event."""

    type: Literal["stepped"] = "stepped"
    step: int
    epoch: int
    values: dict[str, float | None]
    """loss/total, loss/detection, loss/<method>/<term>, share/<method>/<term>, lr, images_per_s,
    device/memory_peak_mb (MiB since the start), device/utilisation (per cent), data/wait_share (of the time),
    checkpoint/share and evaluate/share (of the training time since this attempt began),
    teacher/cache_hits (share of the images whose teacher's maps were read), teacher/cache_mb, ..."""

    _finite = field_validator("values", mode="before")(
        lambda values: {name: finite_or_none(value) for name, value in values.items()}
    )


class Evaluated(Event_):
    """ap, ap50, ap75, ap_s, ap_m, ap_l, ap/<class>: 0-100, null where no box of that kind exists.

    Of some hundreds of classes and more an evaluation is reported in several: the first has all but the classes."""

    type: Literal["evaluated"] = "evaluated"
    step: int
    epoch: int
    split: str
    values: dict[str, float | None]

    _finite = field_validator("values", mode="before")(
        lambda values: {name: finite_or_none(value) for name, value in values.items()}
    )


class Alive(Event_):
    """Work that has no steps goes on. Nothing of it is kept."""

    type: Literal["alive"] = "alive"


class Saved(Event_):
    """A checkpoint lies complete at `path`, synced to disk."""

    type: Literal["saved"] = "saved"
    step: int
    path: str
    sha256: str
    size: int
    best: bool = False
    """Its step has the best validation AP so far."""


class Focused(Event_):
    """What the methods look at on a few validation images lies at `path` (fgd/focus_files.py)."""

    type: Literal["focused"] = "focused"
    step: int | None
    """None: these images themselves."""
    epoch: int | None
    path: str
    sha256: str
    size: int


class Finished(Event_):
    """The last line of a training that went well: the files of the result, by name, in `folder`."""

    type: Literal["finished"] = "finished"
    step: int
    folder: str
    files: dict[str, str]
    """File name -> sha256."""
    weights_digest: str
    """sha256 over the student's tensors (names, dtypes, shapes, bytes); equal for equal students."""


class Failed(Event_):
    """The last line of a training that went wrong."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    data: dict[str, Any] = {}


Event = Annotated[
    Started | Phase | Note | Stepped | Alive | Evaluated | Saved | Focused | Finished | Failed,
    Field(discriminator="type"),
]
Emit = Callable[[Event], None]

_event: TypeAdapter[Event] = TypeAdapter(Event)


def to_lines(event: Event) -> bytes:
    """One line, newline included; several, where one would be longer than MAX_LINE.

    Numbers are spread over events of the same step, each class's AP behind the rest. Of a note or a failure, which
    are for people, the end is cut and says so.
    """
    line = _line(event)
    if len(line) <= MAX_LINE:
        return line
    match event:
        case Stepped() | Evaluated():
            return b"".join(_line(event.model_copy(update={"values": part})) for part in _parts(event.values))
        case Note() | Failed():
            left_out = {"left_out": f"{len(line)} bytes are too many for an event; its data is not here"}
            message = event.message
            if len(message) > MAX_MESSAGE:
                message = f"{message[:MAX_MESSAGE]} ... ({len(message) - MAX_MESSAGE} more characters)"
            return _line(event.model_copy(update={"message": message, "data": left_out}))
        case _:
            return line


def _line(event: Event) -> bytes:
    return event.model_dump_json().encode() + b"\n"


def _parts(values: Mapping[str, float | None]) -> Iterator[dict[str, float | None]]:
    """At first what there is one of, then what each class has; of a size that a line holds."""
    ofs = [name for name in values if name.startswith(OF_A_CLASS)]
    part: dict[str, float | None] = {name: value for name, value in values.items() if not name.startswith(OF_A_CLASS)}
    yield part
    part, size = {}, 0
    for name in ofs:
        shown = name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
        needs = len(json.dumps(shown)) + _NUMBER
        if part and size + needs > MAX_LINE - _FRAME:
            yield part
            part, size = {}, 0
        part[shown] = values[name]
        size += needs
    yield part


def from_line(line: bytes) -> Event:
    """Raises ValueError (pydantic's ValidationError is one) for anything that is not an event."""
    if len(line) > MAX_LINE:
        raise ValueError(f"event line of {len(line)} bytes")
    return _event.validate_json(line)
