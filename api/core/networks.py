"""The network that a request names: a model, or the student or the teacher of a job; and the data set that it is to
look at. Knows rows and the store."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.core import references
from api.core.errors import Conflict, Fault, Invalid
from api.core.references import Findings, ReferencedWeights
from api.core.request_bodies import OfNetwork
from api.core.rows.tables import Dataset, Job
from api.core.store.names import BlobStore
from fgd.class_names import ClassMatch, match_classes

MOST_NAMES = 8
"""Classes that a refusal names."""


def named(s: Session, store: BlobStore, project_id: str, body: OfNetwork, found: Findings) -> ReferencedWeights | None:
    """None if it cannot be used, and `found` says why."""
    try:
        if body.model is not None:
            return references.of_model(s, store, project_id, body.model, "model", "/model")
        assert body.job is not None, "a request names a model or a job"
        if body.network == "teacher":
            return references.of_jobs_teacher(s, store, project_id, body.job, "/job")
        return references.of_job(s, store, project_id, body.job, "job", "/job", body.which)
    except Invalid as error:
        found.faults += error.errors
    except Conflict as error:
        found.conflicts.append(error)
    return None


def dataset_of_job(s: Session, project_id: str, body: OfNetwork) -> str | None:
    """The data set that the job was trained on; None for a model, or a job that is not there."""
    return s.scalar(select(Job.dataset_id).where(Job.project_id == project_id, Job.id == body.job))


def matched(dataset: Dataset, network: ReferencedWeights) -> ClassMatch:
    """Their classes. Raises Invalid where none is the same."""
    match = match_classes(dataset.classes or (), network.recipe.classes)
    if match.shared:
        return match
    detail = (
        f"the network knows none of the classes of {dataset.id} by name: it knows {_some(match.only_network)}; the "
        f"data set has {_some(match.only_dataset)}"
    )
    raise Invalid(Fault("/dataset", "no_common_class", detail))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more
