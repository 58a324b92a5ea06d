"""A training in words, a line for what matters: the log of a trainer that runs under a worker. Knows specs, events.

It begins with the spec, the machine and the versions. Then come a line of losses at the end of each epoch and about
once a minute, one for each evaluation, checkpoint and warning, and at the end how long it took. A long training may
have many epochs: past MOST_BYTES only evaluations, at most one a minute, and the end are written.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, TextIO

from pydantic import BaseModel

from fgd.events import Evaluated, Event, Failed, Finished, Note, Phase, Saved, Started, Stepped
from fgd.spec import JobSpec
from fgd.text.printable import printable

EVERY_S = 60.0
"""Seconds between two lines of steps, but for the first and the last of an epoch."""
MOST_BYTES = 2 * 2**20
"""Of lines; the trainer's own errors are not counted."""
MOST_OF_LINE = 4000
"""Characters of one line."""

_OURS = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*\n?", re.MULTILINE)


def without_events(log: str) -> str:
    """What else stands in a log: for finding out why a trainer ended, which its own good news do not say."""
    return _OURS.sub("", log)


class EventLog:
    """Writes to `stream`, each line with the time in UTC."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._room = MOST_BYTES
        self._told: float | None = None
        """When the last line was written that may be too many: of steps, and of evaluations where room is short."""
        self._began = clock()
        self._started: Started | None = None
        self._phases: set[str] = set()

    def add(self, event: Event) -> None:
        if self._room <= 0 and not self._matters(event):
            return
        if (words := self._words(event)) is not None:
            self.write(words)

    def begin(self, spec: JobSpec) -> None:
        """The first line: what is trained."""
        by = ", ".join(method.kind for method in spec.methods)
        how = f"taught by {by}" if by else "without a teacher"
        settings = json.dumps(asked(spec), ensure_ascii=False, default=str)
        self.write(f"job {spec.name}: {spec.student.title()}, {how}, seed {spec.seed}; beside the defaults: {settings}")

    def write(self, words: str) -> None:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        line = printable(words)
        if len(line) > MOST_OF_LINE:
            line = f"{line[:MOST_OF_LINE]} ... ({len(line) - MOST_OF_LINE} more characters)"
        print(f"{at} {line}", file=self._stream, flush=True)
        before, self._room = self._room, self._room - len(at) - len(line) - 2
        if before > 0 >= self._room:
            print(
                f"{at} the log is long: from here on it has evaluations and the end only", file=self._stream, flush=True
            )

    def _matters(self, event: Event) -> bool:
        """Whether it is written though there is no more room."""
        return isinstance(event, Finished | Failed) or (isinstance(event, Evaluated) and self._due())

    def _due(self) -> bool:
        now = self._clock()
        if self._told is not None and now - self._told < EVERY_S:
            return False
        self._told = now
        return True

    def _words(self, event: Event) -> str | None:
        """None: nothing that is worth a line."""
        match event:
            case Started():
                self._started, self._began = event, self._clock()
                machine = f"{event.device}, {event.threads} threads, {event.precision}"
                versions = ", ".join(f"{name} {version}" for name, version in event.versions.items())
                begins = f"training from step {event.step} of {event.total_steps}, {event.epochs} epochs"
                return f"{begins}, on {machine}; {versions}"
            case Phase() if event.phase not in self._phases:
                self._phases.add(event.phase)
                return event.phase
            case Note():
                return f"{'warning: ' if event.level == 'warning' else ''}{event.message}"
            case Stepped():
                return self._stepped_words(event)
            case Evaluated() if "ap" in event.values:
                figures = ", ".join(
                    f"{name.upper()} {shown(event.values.get(name))}" for name in ("ap", "ap50", "ap75")
                )
                return f"step {event.step}, epoch {event.epoch}: {event.split} {figures}"
            case Saved():
                best = ", the best so far" if event.best else ""
                return f"saved step {event.step}, {event.size / 2**20:.1f} MiB{best}"
            case Finished():
                files = ", ".join(sorted(event.files))
                return f"finished after step {event.step}, {duration(self._clock() - self._began)}: {files}"
            case _:  # how it failed, its emitter prints
                return None

    def _stepped_words(self, event: Stepped) -> str | None:
        ends_epoch = any(name.startswith("epoch/") for name in event.values)
        if not self._due() and not ends_epoch:
            return None
        self._told = self._clock()
        losses = losses_of(event.values, "epoch/loss/" if ends_epoch else "loss/")
        rate, speed = event.values.get("lr"), event.values.get("images_per_s")
        left = self._left(event.step)
        total = self._started.total_steps if self._started is not None else "?"
        return (
            f"step {event.step} of {total}, epoch {event.epoch}: {losses}"
            f"{f', lr {rate:.3g}' if rate is not None else ''}, {shown(speed)} images/s{left}"
        )

    def _left(self, step: int) -> str:
        """By what the steps of this attempt took, with its evaluations and checkpoints."""
        started = self._started
        if started is None or not started.step < step < started.total_steps:
            return ""
        each = (self._clock() - self._began) / (step - started.step)
        return f", about {duration(each * (started.total_steps - step))} left"


def losses_of(values: dict[str, float | None], begin: str) -> str:
    """The sum, and each addend in brackets; of the detection loss not also its parts."""
    losses = {name.removeprefix(begin): value for name, value in values.items() if name.startswith(begin)}
    total = losses.pop("total", None)
    terms = [f"{name} {shown(value)}" for name, value in losses.items() if not name.startswith("detection/")]
    return f"loss {shown(total)}" + (f" ({', '.join(terms)})" if len(terms) > 1 else "")


def asked(spec: BaseModel) -> dict[str, Any]:
    """What differs from the defaults; of references, which a worker has replaced by paths of its own, nothing."""
    found: dict[str, Any] = {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if name in ("dataset", "name") or (name != "kind" and value == field.get_default(call_default_factory=True)):
            continue
        found[field.alias or name] = _told(value)
    return found


def _told(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return "given" if "path" in type(value).model_fields else asked(value)
    return [_told(each) for each in value] if isinstance(value, tuple | list) else value


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
