"""Do our methods give their authors' numbers? Checks a file of golden figures.

    python -m fgd.parity tests/parity/fgd_reference.npz tests/parity/fgd_reference.json

The .json lists cases (name, shapes, weights, other settings), the .npz holds per case NAME the inputs and what the
authors' code made of them: values, totals, gradients. Which method it is follows from the settings that the cases have;
what the keys of each are is in `fgd/parity/of_<method>.py`. Prints the error of every figure; exit status 1 if one is
beyond the tolerance, or if anything is missing, unknown or malformed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic import ValidationError as Invalid
from pydantic_core import from_json

from fgd.parity import of_crosskd as crosskd
from fgd.parity.figures import Arrays, Case, Figure, Malformed, check, matched, read_arrays
from fgd.parity.of_cwd import CWDCase
from fgd.parity.of_defeat import DeFeatCase
from fgd.parity.of_fgd import FGDCase
from fgd.parity.of_fgfi import FGFICase
from fgd.parity.of_fkd import FKDCase
from fgd.parity.of_frs import FRSCase
from fgd.parity.of_gid import GIDCase
from fgd.parity.of_ld import LDCase
from fgd.parity.of_mgd import MGDCase
from fgd.parity.of_pkd import PKDCase
from fgd.process.exit_codes import exit_code

CASES: tuple[tuple[type[Case], ...], ...] = (
    (FGDCase,),
    (PKDCase,),
    (CWDCase,),
    (MGDCase,),
    (FKDCase,),
    (DeFeatCase,),
    (FGFICase,),
    (FRSCase,),
    crosskd.KINDS,
    (LDCase,),
    (GIDCase,),
)
"""Of each method what its cases hold; where there are several kinds, `family` tells which."""
ALIKE = 0.3
"""Share of settings in common below which a file is no method's."""


def load(npz: Path, settings: Path) -> list[tuple[Case, Arrays]]:
    """The cases and their arrays, keys without the case's name. Raises Malformed, naming every key at fault."""
    return matched(npz, read_cases(settings), read_arrays(npz))


def read_cases(settings: Path) -> list[Case]:
    try:
        text = settings.read_bytes()
        document = from_json(text)
    except OSError as error:
        raise Malformed(f"{settings}: {error.strerror}") from error
    except ValueError as error:
        raise Malformed(f"{settings}: not JSON ({error})") from error
    kinds = kinds_of(document, settings)
    try:
        cases = adapter(kinds).validate_json(text)
    except Invalid as error:
        problems = "; ".join(f"{'/'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise Malformed(f"{settings}: as cases of {kinds[0].method}: {problems}") from error
    names = [case.name for case in cases]
    if len(names) != len(set(names)):
        raise Malformed(f"{settings}: needs each case to have a different name; got {names}")
    return list(cases)


def adapter(kinds: tuple[type[Case], ...]) -> TypeAdapter[list[Case]]:
    if len(kinds) == 1:
        return TypeAdapter(list[kinds[0]])  # type: ignore[valid-type]
    return TypeAdapter(list[Annotated[reduce(or_, kinds), Field(discriminator="family")]])  # type: ignore[arg-type, misc]


def kinds_of(document: object, settings: Path) -> tuple[type[Case], ...]:
    """Of the method whose settings the cases have."""
    if not isinstance(document, list) or not document or not all(isinstance(each, Mapping) for each in document):
        raise Malformed(f"{settings}: needs a list with at least one case, each an object")
    alike = {kinds: min(max(common(kind, each) for kind in kinds) for each in document) for kinds in CASES}
    best = max(alike, key=lambda kinds: alike[kinds])
    if alike[best] < ALIKE:
        known = ", ".join(kinds[0].method for kinds in CASES)
        raise Malformed(f"{settings}: these are no settings of {known}; got {', '.join(map(repr, document[0]))}")
    return best


def common(case: type[Case], settings: Mapping[str, Any]) -> float:
    """Share of the settings that both have, of all that either has."""
    known = {field.alias or name for name, field in case.model_fields.items()}
    return len(known & set(settings)) / len(known | set(settings))


def figures_of(case: Case, arrays: Arrays) -> list[Figure]:
    """Raises Malformed where nothing can be computed of what is there."""
    try:
        return check(case, arrays)
    except (RuntimeError, ValueError, ArithmeticError, IndexError) as error:
        why = " ".join(str(error).split())
        raise Malformed(f"{case.name}: settings and arrays do not fit together: {why}") from error


def table(method: str, figures: Sequence[Figure]) -> str:
    """One line a figure, and a verdict."""
    case_width = max(len(figure.case) for figure in figures)
    quantity_width = max(len(figure.quantity) for figure in figures)
    lines = [f"{'case':{case_width}}  {'quantity':{quantity_width}}  {'error':>8}"]
    for figure in figures:
        verdict = "" if figure.good else f"  beyond {figure.limit:g}"
        lines.append(f"{figure.case:{case_width}}  {figure.quantity:{quantity_width}}  {figure.error:8.1e}{verdict}")
    beyond = sum(not figure.good for figure in figures)
    lines.append(
        f"{len(figures)} figures of {method}, " + (f"{beyond} beyond the tolerance" if beyond else "all agree")
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 if every figure agrees, else 1; 2 for a wrong command line, or a file that is not there."""
    if len(arguments) != 2:
        print("usage: python -m fgd.parity FILE.npz FILE.json", file=sys.stderr)
        return 2
    try:
        cases = load(Path(arguments[0]), Path(arguments[1]))
        figures = [figure for case, arrays in cases for figure in figures_of(case, arrays)]
    except Malformed as error:
        print(error, file=sys.stderr)
        return exit_code(error)
    print(table(cases[0][0].method, figures))
    return 0 if all(figure.good for figure in figures) else 1
