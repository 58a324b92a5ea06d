"""One thing as lines for people: what `show` prints on a screen. Knows the client's answers. Knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fgd.cli.printing import clock

if TYPE_CHECKING:
    from fgd.client import Dataset, Job, Model

Facts = Iterable[tuple[str, str]]
"""A word, and what it is of this thing; an empty text is left out."""

MOST_NAMES = 12
"""Classes named in a line; the JSON has all of them."""


def of_job(job: Job) -> Facts:
    from fgd.cli.watch import figures

    now, spec = figures(job), job.spec
    failure = job.failure
    yield "id", job.id
    yield "name", job.name
    yield "state", f"{job.state}, {now.status}" if now.status != job.state else job.state
    yield "so far", "  ".join(part for part in (now.epoch, now.loss, now.ap) if part)
    yield "failure", f"{failure.code}: {failure.message}" if failure else ""
    yield "advice", failure.advice if failure else ""
    yield "student", network(spec.get("student") or {})
    yield "teacher", reference(spec.get("teacher") or {})
    for name, each in (spec.get("teachers") or {}).items():
        yield "teacher", f"{name}: {reference(each)}"
    yield "methods", ", ".join("@".join(filter(None, titled(each))) for each in spec.get("methods") or ())
    yield "data set", str(spec.get("dataset", ""))
    yield "unlabelled", ", ".join(f"{key} {json.dumps(value)}" for key, value in (spec.get("unlabelled") or {}).items())
    yield "metadata", labels(job.metadata)
    yield "priority", str(job.priority)
    yield "attempts", str(job.attempt)
    yield "weights", job.weights_digest or ""
    yield "created", moment(job.created_at)
    yield "started", moment(job.started_at)
    yield "finished", moment(job.finished_at)


def of_dataset(dataset: Dataset) -> Facts:
    yield "id", dataset.id
    yield "name", dataset.name
    yield "state", dataset.state
    yield "error", dataset.error or ""
    yield "classes", names(dataset.classes or ())
    for name, split in (dataset.splits or {}).items():
        yield name, f"{split.images} images" + (f", {split.boxes} boxes" if name != "unlabelled" else "")
    yield "created", moment(dataset.created_at)


def of_model(model: Model) -> Facts:
    yield "id", model.id
    yield "name", model.name
    yield "state", model.state
    yield "error", model.error or ""
    yield "from", " ".join(str(value) for value in model.source.values())
    yield "detector", network(model.recipe.get("detector") or {})
    yield "classes", names(model.classes)
    yield "size", f"{model.size / 1e6:.1f} MB" if model.size else ""
    for note in (model.report or {}).get("notes") or ():
        yield "note", str(note)
    yield "sha256", model.sha256 or ""
    yield "created", moment(model.created_at)


def reference(ref: Mapping[str, Any]) -> str:
    return " ".join(f"{key} {value}" for key, value in ref.items() if value)


def titled(method: Mapping[str, Any]) -> tuple[str, str | None]:
    """A method's kind, and the name of its teacher where it has one."""
    return str(method.get("kind")), method.get("teacher")


def network(detector: Mapping[str, Any]) -> str:
    width = detector.get("fpn_channels")
    named = [str(detector[key]) for key in ("kind", "backbone") if detector.get(key)]
    named += [f"version {version}"] if (version := detector.get("version", 1)) != 1 else []
    return " ".join([*named, *([f"pyramid of {width} channels"] if width else [])])


def names(classes: Iterable[str]) -> str:
    found = list(classes)
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return f"{len(found)}: {', '.join(found[:MOST_NAMES])}{more}" if found else ""


def labels(metadata: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in metadata.items())


def moment(at: datetime | None) -> str:
    return clock(at) if at is not None else ""
