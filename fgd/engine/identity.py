"""What a training is, as a digest: a checkpoint must agree with it. Knows no files but those it hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fgd.detector_specs import KIND_IF_UNSAID
from fgd.spec import JobSpec, Schedule
from fgd.spec_fields import Spec

APART = {"name", "teacher", "teachers", "dataset", "resources", "latency_budget_ms", "latency"}
"""Of a spec what does not decide the weights, or is identified by its content."""


def checkpoint_digest(spec: JobSpec, identity: dict[str, Any], *, by_batches: bool = False) -> str:
    """What a checkpoint must agree with. Defaults are left out: a later version's new field is no other spec.

    by_batches: as versions before `on_out_of_memory` told it, to which four batches of 2 were no step of 8.
    """
    return digest_of_json({**identity, "spec": lean_spec(spec, by_batches=by_batches)})


def lean_spec(spec: JobSpec, *, by_batches: bool = False) -> dict[str, Any]:
    """What of a resolved spec a checkpoint must agree with."""
    lean = without_defaults(spec, leave_out=APART)
    lean["student"] = student_alone(lean["student"])
    if "methods" in lean:
        lean["methods"] = [{k: v for k, v in method.items() if (k, v) != ("rho", 0.0)} for method in lean["methods"]]
    if not by_batches and (schedule := steps_alone(lean.pop("schedule", {}), spec.schedule)):
        lean["schedule"] = schedule
    return lean


def steps_alone(lean: dict[str, Any], schedule: Schedule) -> dict[str, Any]:
    """With the images of a step, however many batches it takes: a job that ran out of memory goes on in smaller ones.
    As if unsaid where they are as many as by default."""
    images = schedule.batch_size * schedule.accumulate
    rest = {name: value for name, value in lean.items() if name not in ("batch_size", "accumulate")}
    return rest if images == type(schedule).model_fields["batch_size"].default else rest | {"batch_size": images}


def without_defaults(spec: Spec, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The fields that are not at their defaults, and each part's `kind`: without it two schedules would look alike."""

    def lean(value: object) -> object:
        if isinstance(value, Spec):
            return without_defaults(value)
        return [lean(each) for each in value] if isinstance(value, tuple) else value

    fields = type(spec).model_fields
    told = {name: value for name, value in spec if name == "kind" or value != fields[name].default}
    return {name: lean(value) for name, value in told.items() if name not in leave_out}


def student_alone(student: dict[str, Any]) -> dict[str, Any]:
    """Without the folders that it begins from, whose digests are told apart. `kind` and `norm` as if unsaid in what the
    first version's checkpoints knew."""
    unsaid = {"kind": KIND_IF_UNSAID, "norm": "batch"}
    named = {key: value for key, value in student.items() if key != "inherit" and unsaid.get(key) != value}
    return {key: value for key, value in named.items() if key != "weights" or isinstance(value, str)}


def digest_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
