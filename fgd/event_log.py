"""A training's events in words, a line each: the log of a trainer that runs under a worker. Knows only events."""

from __future__ import annotations

import re
import time
from typing import TextIO

from fgd.events import Evaluated, Event, Failed, Finished, Note, Phase, Saved, Started, Stepped
from fgd.text.printable import printable

EVERY_S = 60.0
"""Seconds between two lines of steps, but for the first and the last of an epoch."""


_OURS = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*\n?", re.MULTILINE)


def without_events(log: str) -> str:
    """What else stands in a log: for finding out why a trainer ended, which its own good news do not say."""
    return _OURS.sub("", log)


class EventLog:
    """Writes to `stream`; a line of steps at the first report, at each epoch's end, and about every minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stepped: float | None = None
        self._total = 0

    def add(self, event: Event) -> None:
        if (words := self._words(event)) is not None:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            print(f"{at} {printable(words)}", file=self._stream, flush=True)

    def _words(self, event: Event) -> str | None:
        """None: nothing that is worth a line."""
        match event:
            case Started():
                self._total = event.total_steps
                machine = f"{event.device}, {event.threads} threads, {event.precision}"
                return f"training from step {event.step} of {event.total_steps}, {event.epochs} epochs, on {machine}"
            case Phase():
                return event.phase
            case Note():
                return f"{'warning: ' if event.level == 'warning' else ''}{event.message}"
            case Stepped():
                return self._stepped_words(event)
            case Evaluated() if "ap" in event.values:
                ap, ap50 = shown(event.values["ap"]), shown(event.values.get("ap50"))
                return f"step {event.step}, epoch {event.epoch}: {event.split} AP {ap}, AP50 {ap50}"
            case Saved():
                return f"saved step {event.step}, {event.size} bytes{', the best so far' if event.best else ''}"
            case Finished():
                return f"finished after step {event.step}: {', '.join(sorted(event.files))}"
            case Failed():
                return None  # its emitter prints it too
            case _:
                return None

    def _stepped_words(self, event: Stepped) -> str | None:
        now, ends_epoch = time.monotonic(), any(name.startswith("epoch/") for name in event.values)
        if self._stepped is not None and not ends_epoch and now - self._stepped < EVERY_S:
            return None
        self._stepped = now
        loss, rate = shown(event.values.get("loss/total")), shown(event.values.get("images_per_s"))
        return f"step {event.step} of {self._total}, epoch {event.epoch}: loss {loss}, {rate} images/s"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
