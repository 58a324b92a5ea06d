"""Does our FGD give the reference's numbers? Checks a file of golden figures.

    python -m fgd.parity tests/parity/fgd_reference.npz tests/parity/fgd_reference.json

The .json lists cases (name, shapes, input size, temperature, weights); the .npz holds per case NAME the inputs
(NAME/student, NAME/teacher, NAME/boxes/<image>, NAME/module/<parameter>) and what the reference made of them
(NAME/raw/<term>, NAME/total, NAME/grad_student, NAME/grad/<parameter>). Prints the error of every figure; exit
status 1 if one is beyond the tolerance, or if anything is missing, unknown or malformed.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter
from pydantic import ValidationError as Invalid
from torch import Tensor

from fgd.errors import UserError
from fgd.method_specs import FGD
from fgd.methods.base import Pair
from fgd.methods.fgd import FGDLoss
from fgd.process.exit_codes import exit_code
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, Target, View

TOLERANCE = 1e-5
"""Of max|a - b| / max|b|."""
NOTHING = 1e-9
"""Figures below this are rounding noise of a zero (the gradients of conv_mask_*.bias); ours must be below it too."""

TERMS = ("fg", "bg", "attention", "global")
LEVEL = "level"
PARAMETERS = {
    f"align.{LEVEL}": "align",
    f"student_context.{LEVEL}.attend": "conv_mask_s",
    f"teacher_context.{LEVEL}.attend": "conv_mask_t",
    f"student_context.{LEVEL}.transform": "channel_add_conv_s",
    f"teacher_context.{LEVEL}.transform": "channel_add_conv_t",
}
"""Our modules and the reference's names of them."""

Arrays = dict[str, NDArray[np.float32]]


class Malformed(UserError, ValueError):
    """A file that does not hold what the golden format asks for."""


class LossWeights(BaseModel):
    alpha_fgd: NonNegativeFloat
    beta_fgd: NonNegativeFloat
    gamma_fgd: NonNegativeFloat
    lambda_fgd: NonNegativeFloat


class Case(BaseModel):
    """The settings of one case; how its inputs were drawn (boxes, scale, ...) does not matter here."""

    model_config = ConfigDict(allow_inf_nan=False, extra="ignore", frozen=True)

    name: str = Field(min_length=1)
    n: PositiveInt
    cs: PositiveInt
    ct: PositiveInt = Field(ge=2)
    h: PositiveInt
    w: PositiveInt
    ih: PositiveInt
    iw: PositiveInt
    temp: PositiveFloat
    loss_weights: LossWeights

    def method(self, weights: LossWeights) -> FGDLoss:
        """FGD as the reference computes it, on a pyramid of one level."""
        spec = FGD(
            alpha=weights.alpha_fgd,
            beta=weights.beta_fgd,
            gamma=weights.gamma_fgd,
            temperature=self.temp,
            compat="official",
        ).but(lambda_=weights.lambda_fgd)
        pair = Pair.alike({LEVEL: 1}, self.cs, self.ct)
        return FGDLoss(spec, pair, Calibration(teacher_rms={}, boxes_per_image=0.0), Schedule())

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Every key the case must have, without its name, and the shape of its array; None: any number."""
        with torch.device("meta"):  # only shapes: nothing is allocated for a case with absurd ones
            method = self.method(UNWEIGHTED)
        parameters = {golden_name(name): tuple(parameter.shape) for name, parameter in method.named_parameters()}
        return {
            "student": (self.n, self.cs, self.h, self.w),
            "teacher": (self.n, self.ct, self.h, self.w),
            **{f"boxes/{image}": (None, 4) for image in range(self.n)},
            **{f"module/{name}": shape for name, shape in parameters.items()},
            **{f"raw/{term}": () for term in TERMS},
            "total": (),
            "grad_student": (self.n, self.cs, self.h, self.w),
            **{f"grad/{name}": shape for name, shape in parameters.items()},
        }


UNWEIGHTED = LossWeights(alpha_fgd=1, beta_fgd=1, gamma_fgd=1, lambda_fgd=1)


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


def golden_name(parameter: str) -> str:
    """The reference's name of one of our parameters."""
    module = next(ours for ours in PARAMETERS if parameter.startswith(f"{ours}."))
    return PARAMETERS[module] + parameter.removeprefix(module)


def load(npz: Path, json: Path) -> list[tuple[Case, Arrays]]:
    """The cases and their arrays, keys without the case's name. Raises Malformed, naming every key at fault."""
    cases = _read_cases(json)
    arrays = _read_arrays(npz)
    shapes = {f"{case.name}/{key}": shape for case in cases for key, shape in case.shapes().items()}
    faults = {
        "missing": [key for key in shapes if key not in arrays],
        "in no case": [key for key in arrays if key not in shapes],
        "of the wrong shape": [key for key in shapes if key in arrays and not _fits(arrays[key], shapes[key])],
        "not float32": [key for key, array in arrays.items() if array.dtype != np.float32],
        "not finite": [
            key for key, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()
        ],
    }
    if any(faults.values()):
        raise Malformed(f"{npz}: " + "; ".join(f"{fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys))
    return [(case, {key: arrays[f"{case.name}/{key}"] for key in case.shapes()}) for case in cases]


def check(case: Case, arrays: Arrays) -> list[Figure]:
    """Our figures for the inputs of `case`, each compared with the reference's."""
    student_NCHW = torch.tensor(arrays["student"], requires_grad=True)
    raw, _ = _terms(case, UNWEIGHTED, student_NCHW, arrays)
    terms, parameters = _terms(case, case.loss_weights, student_NCHW, arrays)
    # The first summand ties the total to the student even if the case switches every term off.
    total = torch.stack([0.0 * student_NCHW.sum(), *terms.values()]).sum()
    grad_student, *gradients = torch.autograd.grad(total, [student_NCHW, *parameters.values()])
    ours = {
        **{f"raw/{term}": value for term, value in raw.items()},
        "total": total,
        "grad_student": grad_student,
        **{f"grad/{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)},
    }
    compared = [key for key in arrays if key.startswith(("raw/", "total", "grad"))]
    # A term that is off has no parameters here, and gives the reference's no gradient.
    nothing = torch.zeros(())
    return [compare(case.name, key, ours.get(key, nothing), torch.from_numpy(arrays[key])) for key in compared]


def compare(case: str, quantity: str, ours: Tensor, reference: Tensor) -> Figure:
    """The largest difference, against the largest value of the reference."""
    largest = reference.abs().max().item()
    if largest < NOTHING:
        return Figure(case, quantity, ours.abs().max().item(), NOTHING)
    return Figure(case, quantity, (ours - reference).abs().max().item() / largest, TOLERANCE)


def table(figures: Sequence[Figure]) -> str:
    """One line a figure, and a verdict."""
    case_width = max(len(figure.case) for figure in figures)
    quantity_width = max(len(figure.quantity) for figure in figures)
    lines = [f"{'case':{case_width}}  {'quantity':{quantity_width}}  {'error':>8}"]
    for figure in figures:
        verdict = "" if figure.good else f"  beyond {figure.limit:g}"
        lines.append(f"{figure.case:{case_width}}  {figure.quantity:{quantity_width}}  {figure.error:8.1e}{verdict}")
    beyond = sum(not figure.good for figure in figures)
    lines.append(f"{len(figures)} figures, " + (f"{beyond} beyond the tolerance" if beyond else "all agree"))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 if every figure agrees, else 1; 2 for a wrong command line, or a file that is not there."""
    if len(arguments) != 2:
        print("usage: python -m fgd.parity FILE.npz FILE.json", file=sys.stderr)
        return 2
    try:
        cases = load(Path(arguments[0]), Path(arguments[1]))
    except Malformed as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    figures = [figure for case, arrays in cases for figure in check(case, arrays)]
    print(table(figures))
    return 0 if all(figure.good for figure in figures) else 1


def _terms(
    case: Case, weights: LossWeights, student_NCHW: Tensor, arrays: Arrays
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weighted terms, and the parameters behind them by the reference's names."""
    method = case.method(weights)
    parameters: dict[str, Tensor] = {golden_name(name): value for name, value in method.named_parameters()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(arrays[f"module/{name}"]))
    teacher_NCHW = torch.from_numpy(arrays["teacher"])
    terms = method(View({LEVEL: student_NCHW}), View({LEVEL: teacher_NCHW}), _batch(case, arrays))
    return terms, parameters


def _batch(case: Case, arrays: Arrays) -> Batch:
    boxes = [torch.from_numpy(arrays[f"boxes/{image}"]) for image in range(case.n)]
    return Batch(
        images_NCHW=torch.zeros(()).expand(case.n, 3, case.ih, case.iw),  # only its size is looked at
        image_sizes=((case.ih, case.iw),) * case.n,
        original_sizes=((case.ih, case.iw),) * case.n,
        targets=tuple(Target(each, torch.ones(len(each), dtype=torch.int64)) for each in boxes),
        image_ids=tuple(range(case.n)),
    )


def _read_cases(json: Path) -> list[Case]:
    try:
        cases = TypeAdapter(list[Case]).validate_json(json.read_bytes())
    except OSError as error:
        raise Malformed(f"{json}: {error.strerror}") from error
    except Invalid as error:
        problems = "; ".join(f"{'/'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise Malformed(f"{json}: {problems}") from error
    names = [case.name for case in cases]
    if not names or len(names) != len(set(names)):
        raise Malformed(f"{json}: needs at least one case, and each case a different name; got {names}")
    return cases


def _read_arrays(npz: Path) -> Arrays:
    try:
        with npz.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise Malformed(f"{npz}: not a readable .npz file ({' '.join(str(error).split())})") from error
    odd = [f"{key} ({array.dtype})" for key, array in arrays.items() if array.dtype.kind != "f"]
    if odd:
        raise Malformed(f"{npz}: not floating point: {', '.join(odd)}")
    return {key: array.astype(np.float32) for key, array in arrays.items()}


def _fits(array: NDArray[np.float32], shape: tuple[int | None, ...]) -> bool:
    return len(array.shape) == len(shape) and all(
        want in (None, have) for have, want in zip(array.shape, shape, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
