"""What this worker still has free. Knows no database: how to ask for work is a function it is given.

Bell and poller both come through here, so devices are never overfilled, and the question "is there work?" is asked
under the lock: a bell that finds another one asking waits for its answer instead of missing the job in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cpu", "cuda", "import", "plan", "quick", "evaluation"]
BESIDE: dict[Kind, int] = {"plan": 1, "import": 2, "quick": 2, "evaluation": 1}
"""What is done beside trainings, and how many at once on a host: while one import reads something large, the small one
behind it goes on. An evaluation may take hours, and so may an export in INT8, which evaluates; other exports and
predictions, which are quick, wait for none."""


@dataclass(frozen=True)
class Slot:
    """Room for one thing; for a training on several devices: that of as many slots."""

    kind: Kind
    gpu: str | None = None
    """Index or UUID of the card, several separated by commas; for cuda only."""
    count: int = 1

    def each(self) -> list[Slot]:
        gpus = self.gpu.split(",") if self.gpu else [None] * self.count
        return [Slot(self.kind, gpu) for gpu in gpus]


@dataclass
class Slots:
    """Device slots for trainings; and apart from them, the lanes of BESIDE. None waits for another."""

    slots: list[Slot]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def on_host(cls, cpu: int, gpus: Sequence[str]) -> Slots:
        """One slot a GPU, `cpu` slots for trainings on the processor."""
        trainings = [Slot("cuda", gpu) for gpu in gpus] + [Slot("cpu")] * cpu
        return cls([*trainings, *(Slot(kind) for kind, count in BESIDE.items() for _ in range(count))])

    def free(self, kind: Kind) -> int:
        return sum(slot.kind == kind for slot in self.slots)

    @contextmanager
    def asking(self, *kinds: Kind) -> Iterator[Callable[..., Slot] | None]:
        """Gives the function that takes a slot of a kind, or several as one; None if no slot of `kinds` is free.

        Nobody else asks or takes meanwhile. What is taken must be given back with `give`.
        """
        with self._lock:
            yield self._take if any(self.free(kind) for kind in kinds) else None

    def _take(self, kind: Kind, count: int = 1) -> Slot:
        taken = [slot for slot in self.slots if slot.kind == kind][:count]
        assert len(taken) == count, f"{count} slots of {kind} asked, {len(taken)} free"
        for slot in taken:
            self.slots.remove(slot)
        return Slot(kind, ",".join(slot.gpu for slot in taken if slot.gpu) or None, count)

    def give(self, slot: Slot) -> None:
        with self._lock:
            self.slots.extend(slot.each())
