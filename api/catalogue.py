"""Everything a job can be made of, with schemas, what each field does, and the presets' numbers. Built from the spec
itself, so a new method or detector shows up without an edit here."""

from __future__ import annotations

import hashlib
import inspect
import json
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from api.core.request_bodies import SubmitDataset, SubmitModel
from api.core.study_bodies import SubmitStudy
from fgd import presets
from fgd.data.format_list import FORMATS, Format
from fgd.detector_specs import DetectorSpec
from fgd.method_specs import Method_, families_for
from fgd.plugins import AnyMethod
from fgd.spec import LrSchedule, OptimizerSpec, Schedule, SubmitJob
from fgd.spec_fields import Spec, members


class Entry(BaseModel):
    """One thing that can be chosen by its `kind`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    kind: str
    summary: str
    needs: str
    """What it requires; "" for nothing."""
    json_schema: dict[str, Any]
    """JSON Schema; every property's `description` says what it does."""
    offers: list[str] = []
    """For a detector: what methods can use of it, as student and as teacher."""
    families: list[str] = []
    """For a method: the detectors that offer what it uses."""
    source: str = ""
    """For a method: the paper, and the authors' code that was followed."""
    golden: bool = False
    """For a method: whether `compat` "official" is checked against numbers that the authors' code gave. Otherwise it is
    checked against a slow loop written from the paper's formulas."""
    presets: dict[str, dict[str, Any]] = {}
    """Detector family -> the numbers used for what a request leaves out."""


class Catalogue(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    detectors: list[Entry]
    methods: list[Entry]
    optimizers: list[Entry]
    lr_schedules: list[Entry]
    formats: list[Entry]
    """Formats of data sets."""
    schedule: dict[str, Any]
    """JSON Schema of a job's schedule, with its defaults."""
    job: dict[str, Any]
    """JSON Schema of the body of POST /v1/jobs."""
    study: dict[str, Any]
    """JSON Schema of the body of POST /v1/studies."""
    dataset: dict[str, Any]
    """JSON Schema of the body of POST /v1/datasets."""
    model: dict[str, Any]
    """JSON Schema of the body of POST /v1/models."""


_METHOD_NEEDS = (
    "a teacher that knows at least one of the data set's classes by name, and has a pyramid stride in common with the "
    "student; only common classes and levels are distilled. Alone, and for features only, it may know none"
)
_FORMAT_NEEDS = "a folder below FGD_DATA_ROOTS on the server's host, or a zip of it to upload"


@cache
def catalogue() -> tuple[Catalogue, str]:
    """The catalogue, and the SHA-256 of its JSON."""
    made = Catalogue(
        detectors=[_entry(spec, offers=sorted(spec.offers)) for spec in members(DetectorSpec)],
        methods=[
            _entry(
                spec,
                needs=_needs(spec),
                families=families_for(spec),
                source=spec.source,
                golden=spec.golden,
                presets=_presets(spec),
            )
            for spec in members(AnyMethod)
        ],
        optimizers=[_entry(spec) for spec in members(OptimizerSpec)],
        lr_schedules=[_entry(spec) for spec in members(LrSchedule)],
        formats=[
            Entry(kind="auto", summary="Detected by content.", needs="", json_schema={}),
            *(_format_entry(name, format) for name, format in FORMATS.items()),
        ],
        schedule=Schedule.model_json_schema(),
        job=SubmitJob.model_json_schema(),
        study=SubmitStudy.model_json_schema(),
        dataset=SubmitDataset.model_json_schema(),
        model=TypeAdapter(SubmitModel).json_schema(),
    )
    text = json.dumps(made.model_dump(mode="json"), sort_keys=True)
    return made, hashlib.sha256(text.encode()).hexdigest()


def _entry(spec: type[Spec], needs: str = "", **more: Any) -> Entry:
    return Entry(
        kind=spec.model_fields["kind"].default,
        summary=inspect.cleandoc(spec.__doc__ or ""),
        needs=needs,
        json_schema=spec.model_json_schema(),
        **more,
    )


def _needs(method: type[Method_]) -> str:
    besides = ", ".join(sorted(method.needs - {"features"}))
    return _METHOD_NEEDS + (f"; both networks must offer {besides}" if besides else "")


def _format_entry(name: str, format: Format) -> Entry:
    needs = "; ".join(filter(None, (_FORMAT_NEEDS, format.needs)))
    return Entry(kind=name, summary=format.summary, needs=needs, json_schema={})


def _presets(method: type[Spec]) -> dict[str, dict[str, Any]]:
    return {
        family.model_fields["kind"].default: numbers[method].model_dump(mode="json")
        for family, numbers in presets.PRESETS.items()
        if method in numbers
    }
