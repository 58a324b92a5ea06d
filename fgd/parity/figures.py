"""What golden files hold and how figures are compared. Knows no method."""

from __future__ import annotations

import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fgd.errors import UserError
from fgd.types import Batch, Calibration, Target

TOLERANCE = 1e-5
"""Of max|a - b| / max|b|."""
NOTHING = 1e-9
"""Figures below this are rounding noise of a zero (a gradient of what a softmax does not see); ours must be below it
too."""
NO_CALIBRATION = Calibration(teacher_rms={}, boxes_per_image=0.0)
"""Officially nothing is measured."""

Few = Annotated[int, Field(gt=0, le=1024)]
"""Images, or convolutions: of each there are keys."""
Raw = dict[str, NDArray[Any]]
Arrays = Mapping[str, Tensor]
"""Of one case, by key without its name."""


class Malformed(UserError, ValueError):
    """A file that does not hold what the golden format asks for."""


@dataclass(frozen=True)
class Shape:
    """What an array must be."""

    sizes: tuple[int | None, ...]
    """None: any number."""
    whole: bool = False
    """Integers or truth values; else float."""

    def fits(self, array: NDArray[Any]) -> bool:
        return len(array.shape) == len(self.sizes) and all(
            want in (None, have) for have, want in zip(array.shape, self.sizes, strict=True)
        )


def floats(*sizes: int | None) -> Shape:
    return Shape(sizes)


def wholes(*sizes: int | None) -> Shape:
    return Shape(sizes, whole=True)


class Case(BaseModel):
    """The settings of one case; how its inputs were drawn (seed, boxes, ...) does not matter here."""

    model_config = ConfigDict(allow_inf_nan=False, extra="ignore", frozen=True)

    method: ClassVar[str]
    """Whose golden figures these are."""

    name: str = Field(min_length=1)

    @abstractmethod
    def inputs(self) -> dict[str, Shape]:
        """Every key that the figures are made of."""

    @abstractmethod
    def results(self) -> dict[str, Shape]:
        """Every key that is compared."""

    @abstractmethod
    def figures(self, arrays: Arrays) -> dict[str, Tensor]:
        """Ours for the keys of `results`; one that is missing counts as 0."""

    def limit(self, quantity: str) -> float:  # noqa: ARG002
        return TOLERANCE

    def shapes(self) -> dict[str, Shape]:
        return self.inputs() | self.results()


@dataclass(frozen=True)
class Figure:
    """One compared array: max|a - b| / max|b|, or max|a| where the reference is nothing but noise."""

    case: str
    quantity: str
    error: float
    limit: float

    @property
    def good(self) -> bool:
        return self.error <= self.limit  # false for NaN


def check(case: Case, arrays: Arrays) -> list[Figure]:
    """Our figures for the inputs of `case`, each compared with the reference's."""
    ours = case.figures(arrays)
    unknown = set(ours) - set(case.results())
    assert not unknown, unknown
    return [
        compare(case.name, key, ours.get(key, torch.zeros(())).detach(), arrays[key], case.limit(key))
        for key in case.results()
    ]


def compare(case: str, quantity: str, ours: Tensor, reference: Tensor, limit: float = TOLERANCE) -> Figure:
    """The largest difference, against the largest value of the reference. Whole numbers agree exactly."""
    if not reference.is_floating_point():
        same = ours.shape == reference.shape
        wrong = float((ours.to(reference) != reference).sum()) if same else float("inf")
        return Figure(case, quantity, wrong, 0.0)
    if not reference.numel():
        return Figure(case, quantity, 0.0 if not ours.numel() else float("inf"), limit)
    largest = reference.abs().max().item()
    if largest < NOTHING:
        return Figure(case, quantity, ours.abs().max().item(), NOTHING)
    return Figure(case, quantity, (ours - reference).abs().max().item() / largest, limit)


def read_arrays(npz: Path) -> Raw:
    try:
        with npz.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise Malformed(f"{npz}: not a readable .npz file ({' '.join(str(error).split())})") from error


def matched(npz: Path, cases: Sequence[Case], raw: Raw) -> list[tuple[Case, Arrays]]:
    """The arrays of each case, keys without its name. Raises Malformed, naming every key at fault."""
    try:
        shapes = {f"{case.name}/{key}": shape for case in cases for key, shape in case.shapes().items()}
    except RuntimeError as error:
        raise Malformed(f"{npz}: the settings have sizes that no array has: {error}") from error
    known = {key: raw[key] for key in shapes if key in raw}
    faults = {
        "not floating point": [
            f"{key} ({array.dtype})"
            for key, array in known.items()
            if array.dtype.kind != "f" and not shapes[key].whole
        ],
        "not whole numbers": [
            f"{key} ({array.dtype})"
            for key, array in known.items()
            if array.dtype.kind not in "iub" and shapes[key].whole
        ],
        "missing": [key for key in shapes if key not in raw],
        "in no case": [key for key in raw if key not in shapes],
        "of the wrong shape": [key for key, array in known.items() if not shapes[key].fits(array)],
        "not finite": [key for key, array in known.items() if array.dtype.kind == "f" and not np.isfinite(array).all()],
    }
    if any(faults.values()):
        raise Malformed(f"{npz}: " + "; ".join(f"{fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys))
    return [
        (case, {key: _tensor(raw[f"{case.name}/{key}"], shape) for key, shape in case.shapes().items()})
        for case in cases
    ]


def _tensor(array: NDArray[Any], shape: Shape) -> Tensor:
    return torch.from_numpy(array.astype(np.int64 if shape.whole else np.float32))


def batch_of(size: tuple[int, int], boxes: Sequence[Tensor]) -> Batch:
    """Images of nothing but geometry: one size, no padding."""
    images = len(boxes)
    return Batch(
        images_NCHW=torch.zeros(()).expand(images, 3, *size),  # only its size is looked at
        image_sizes=(size,) * images,
        original_sizes=(size,) * images,
        targets=tuple(Target(each, torch.ones(len(each), dtype=torch.int64)) for each in boxes),
        image_ids=tuple(range(images)),
    )


def gradients(total: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """Of a total that may depend on none of them."""
    tied = total + torch.stack([0.0 * each.sum() for each in of]).sum()
    return list(torch.autograd.grad(tied, of))


def shapes_of(make: Callable[[], nn.Module], named: Callable[[str], str]) -> dict[str, Shape]:
    """The parameters of a module by the names that the reference has for them. None of it is allocated."""
    with torch.device("meta"):
        module = make()
    return {named(name): floats(*parameter.shape) for name, parameter in module.named_parameters()}


def load_parameters(module: nn.Module, named: Callable[[str], str], arrays: Arrays) -> dict[str, Tensor]:
    """Ours with the reference's values, by its names."""
    parameters: dict[str, Tensor] = {named(name): parameter for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(arrays[f"module/{name}"])
    return parameters


def prefixed(prefix: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {f"{prefix}/{name}": shape for name, shape in shapes.items()}
