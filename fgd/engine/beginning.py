"""Where a training that a person starts begins: at the last checkpoint in its folder, or with the first step.

The same command typed again goes on, and never takes away what an earlier one made: another spec in the same folder is
refused. A worker says itself what to go on from, and is not asked. Loads torch only to read a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fgd.engine.identity import lean_spec
from fgd.errors import CheckpointUnreadable, SpecError
from fgd.events import Emit, Note
from fgd.presets import resolve
from fgd.result_files import WEIGHTS
from fgd.spec import JobSpec

SPEC = "job.json"
"""In the folder: what was trained there last."""
CHECKPOINTS, RESULT = "checkpoints", "result"
TOLD = 5
"""Differences named in a message."""


def last_checkpoint(spec: JobSpec, out: Path, emit: Emit) -> Path | None:
    """The newest checkpoint of this spec that can be read; None: `out` holds nothing. Raises SpecError if it holds
    something that this spec cannot go on from."""
    files = sorted((out / CHECKPOINTS).glob("step-*.pt"), reverse=True)
    if not files and not (out / RESULT / WEIGHTS).exists():
        return None
    if differences := differences_from(spec, out / SPEC):
        raise _not_ours(out, f"another spec: {'; '.join(differences)}")
    if not files:
        raise _not_ours(out, "a result without the checkpoints to go on from")
    from fgd.engine.checkpoint import check

    for file in files:
        try:
            check(file)
        except CheckpointUnreadable as error:
            emit(Note(code="checkpoint_corrupt", message=f"{error}; the one before it is tried", level="warning"))
        else:
            return file
    raise _not_ours(out, f"{len(files)} checkpoints, none of which can be read")


def remember(spec: JobSpec, out: Path) -> None:
    """Leave the spec beside what it makes, every number in it: a later version may have other defaults."""
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{SPEC}.{os.getpid()}"
    partial.write_text(resolve(spec).model_dump_json(indent=2, by_alias=True) + "\n")
    partial.rename(out / SPEC)


def differences_from(spec: JobSpec, file: Path) -> list[str]:
    """What `spec` says otherwise than the spec in the file, where that matters to a checkpoint; [] if there is no such
    file, or a later version wrote it."""
    try:
        before = JobSpec.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return []
    found = list(_differences(lean_spec(resolve(before)), lean_spec(resolve(spec))))
    return found[:TOLD] + ([f"and {len(found) - TOLD} more"] if len(found) > TOLD else [])


def _differences(there: Any, here: Any, pointer: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(key), here.get(key), f"{pointer}/{key}")
    elif there != here:
        yield f"{pointer} is {_said(there)} there, {_said(here)} here"


def _said(value: Any) -> str:
    return "the default" if value is None else str(value)[:80]


def _not_ours(out: Path, what: str) -> SpecError:
    return SpecError(f"{out} contains {what}. Use another --out, or --overwrite to start over and delete what is there")
