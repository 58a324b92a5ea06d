"""Everything the library raises on purpose.

    FGDError                      base; `code` is one of the service's failure codes
    +-- UserError                 what was asked for cannot be done; fix the request          user_error
    |   +-- ArgumentError         what was typed or passed: an address, a file, a folder
    |   +-- SpecError             a spec, or a pair of specs, that makes no sense
    |   +-- DatasetError          a data set, an image or a box
    |   +-- WeightsError          weights that do not fit the network they were named for
    |   +-- CheckpointUnreadable  a file that this training cannot go on from
    |       +-- CheckpointForeign     whole, but of another spec
    +-- TeacherUnfit              the teacher detects almost nothing on the validation images teacher_unfit
    +-- Diverged                  a loss is not finite                                        loss_non_finite
    +-- Stopped                   asked to stop; a checkpoint was written                     preempted

To add one: subclass, set `code`, keep every argument in `args` (errors cross process borders and must survive
pickling), and say in the message what is wrong and what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FGDError(Exception):
    code: ClassVar[str] = "protocol"

    @property
    def data(self) -> dict[str, Any]:
        """The message's figures, for programs; travels with the code into a job's failure."""
        return {}


class UserError(FGDError):
    code: ClassVar[str] = "user_error"


class ArgumentError(UserError, ValueError):
    """An address, a key, a file or a folder that cannot be used."""


class SpecError(UserError, ValueError):
    """`pointer` is the JSON pointer of the field at fault, "" for the whole."""

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(message, pointer)
        self.message = message
        self.pointer = pointer

    def __str__(self) -> str:
        return f"{self.pointer}: {self.message}" if self.pointer else self.message


class DatasetError(UserError, ValueError):
    pass


class WeightsError(UserError, ValueError):
    pass


class CheckpointUnreadable(UserError):
    """`data` tells the supervisor, which then tries an older one."""

    @property
    def data(self) -> dict[str, Any]:
        return {"checkpoint": "unreadable"}


class CheckpointForeign(CheckpointUnreadable):
    """Nothing is torn: where all of a job's checkpoints say so, something is wrong with what the job is now."""

    @property
    def data(self) -> dict[str, Any]:
        return {**super().data, "why": "another_spec"}


class TeacherUnfit(FGDError):
    code: ClassVar[str] = "teacher_unfit"

    def __init__(self, message: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(message, figures)
        self.figures = figures or {}

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def data(self) -> dict[str, Any]:
        return self.figures


class Diverged(FGDError):
    """A loss term stopped being finite at `step`."""

    code: ClassVar[str] = "loss_non_finite"

    def __init__(self, step: int, term: str, value: float) -> None:
        super().__init__(step, term, value)
        self.step = step
        self.term = term
        self.value = value

    @property
    def data(self) -> dict[str, Any]:
        return {"step": self.step, "term": self.term}

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.term} is {self.value}; "
            "lower schedule.optimizer.lr or the method's weights, or set schedule.clip_norm"
        )


class Stopped(FGDError):
    code: ClassVar[str] = "preempted"
