"""What every spec is made of: numbers and names that are checked, the base of all specs, references. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, Strict, StringConstraints, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

# A number is a number: neither "3" nor true. Each numeric field is made of these four.
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]
PositiveInt = Annotated[Int, Field(gt=0, lt=2**53)]
NonNegativeInt = Annotated[Int, Field(ge=0, lt=2**53)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Seconds = Annotated[Float, Field(gt=0, le=10 * 365 * 86_400)]
"""A time span of up to ten years."""

INVISIBLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Control characters and what turns the direction of writing: in a name they could only deceive."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=rf"^[^{INVISIBLE}]+$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-f]{32}$")]
DatasetId = Annotated[str, StringConstraints(pattern=r"^ds_[0-9a-f]{32}$")]
ModelId = Annotated[str, StringConstraints(pattern=r"^mdl_[0-9a-f]{32}$")]
Path = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]


class Spec(BaseModel):
    """Frozen, closed, finite: a typo in a field is an error with its path, never a silent default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    retired: ClassVar[Mapping[str, str]] = {}
    """Fields that an earlier version had -> what to do instead, which is said to a request that names one. What was
    stored with one is read by `fgd.stored`."""

    @model_validator(mode="before")
    @classmethod
    def _names_nothing_retired(cls, values: Any) -> Any:
        for name, instead in cls.retired.items():
            if isinstance(values, dict) and name in values:
                about = {"at": name, "instead": instead}
                raise PydanticCustomError("retired_field", "the field '{at}' was removed: {instead}", about)
        return values

    def but(self, **changes: Any) -> Self:
        """A checked copy with some fields changed."""
        values = {**dict(self), **changes}
        fields = type(self).model_fields
        return type(self).model_validate({_as_sent(fields, name): value for name, value in values.items()})


def is_none(value: object) -> bool:
    """Of a field that is left out where it says nothing, as in documents from before there was one."""
    return value is None


def is_empty(value: Sized) -> bool:
    """The same of a collection."""
    return not value


def _as_sent(fields: Mapping[str, FieldInfo], name: str) -> str:
    return (fields[name].alias if name in fields else None) or name


def members(union: Any) -> list[type[Any]]:
    """The spec classes of a union told apart by `kind`; a single class counts as a union of one."""
    if isinstance(union, type):
        return [union] if issubclass(union, Spec) else []
    return [member for part in get_args(union) for member in members(part)]


# --- references -----------------------------------------------------------------------------------------------


class FromJob(Spec):
    """The student that a finished job of this service trained."""

    job: JobId


class FromModel(Spec):
    """A model of this service: uploaded, or promoted from a job."""

    model: ModelId


class FromPath(Spec):
    """A folder; in the service it must be below FGD_DATA_ROOTS."""

    path: Path


class TeacherFromJob(FromJob):
    allow_unfit: Bool = False
    """Teach even if the teacher's AP50 on the validation images is under 5."""


class TeacherFromModel(FromModel):
    allow_unfit: Bool = False
    """Teach even if the teacher's AP50 on the validation images is under 5."""


class TeacherFromPath(FromPath):
    allow_unfit: Bool = False
    """Teach even if the teacher's AP50 on the validation images is under 5."""


TeacherName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_\-]{0,31}$")]
"""Lower-case letters, digits, "_" and "-"; it is part of the names of terms."""
TeacherRef = TeacherFromJob | TeacherFromModel | TeacherFromPath
WeightsRef = FromJob | FromModel | FromPath
DatasetRef = DatasetId | FromPath
