"""What people name by an id, as JSON: the columns that an answer reads of its row, and what they become.

No object is built from a row and no model is filled: JSON that lies in a column goes out as the text it is. `schemas`
has the shapes, for the document and for readers; a test holds every answer against them. Knows rows. Knows nothing of
HTTP but its paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import orjson
from sqlalchemy import Text, bindparam, cast, null, select

from api.core import exports, plans, tasks
from api.core.jobs import waiting
from api.core.lifecycle import DatasetState, FailureCode, ModelState, State, advice
from api.core.rows import lookup
from api.core.rows.columns import Noun, Task
from api.core.rows.db import Columns, Query, Reader
from api.core.rows.tables import Dataset, Evaluation, Export, Job, Model, Plan, Prediction, StudyJob
from api.schemas import MeasuredView
from fgd.recipe import Recipe
from fgd.stored import text_without_retired

JSON = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A thing as JSON, and the version that its ETag names."""

    body: bytes
    version: int
    ended: bool
    """It changes no more by itself."""


def _nothing(_s: Reader, _rows: Sequence[Columns], _lease_s: float) -> Mapping[str, JSON]:
    return {}


@dataclass(frozen=True)
class Resource:
    """A kind of thing."""

    path: str
    """Of the list of them."""
    table: type[Noun]
    columns: Sequence[lookup.Column]
    """By the names of the answer's fields, id, version and finished_at among them; `finish` takes others out."""
    json_columns: Sequence[lookup.Column]
    """Likewise; they hold JSON."""
    finish: Callable[[JSON], None]
    """Fill in the fields that are no columns. JSON is still text here; what stays text goes out as it is."""
    computed: Callable[[Reader, Sequence[Columns], float], Mapping[str, JSON]] = _nothing
    """Fields that are found out at each answer and belong to no version, of these rows, by id."""
    unlisted: Set[str] = frozenset()
    """Of the JSON columns: null in a list, for they may be large."""
    at_once: int = 200
    """How many a list reads before it looks how long the page is."""

    @cached_property
    def all_columns(self) -> Sequence[lookup.Column]:
        texts = [cast(column, Text).label(column.key) for column in self.json_columns]
        return [*self.columns, *texts]

    @cached_property
    def by_id(self) -> Query:
        return lookup.by_id(self.table, *self.all_columns)

    @cached_property
    def by_ids(self) -> Query:
        listed = [null().label(each.key) if each.key in self.unlisted else each for each in self.all_columns]
        return select(*listed).where(self.table.id.in_(bindparam("ids", expanding=True)))

    def these(self, s: Reader, ids: Sequence[str], lease_s: float) -> list[JSON]:
        """In this order; those that are gone are left out."""
        rows = {row.id: row for row in s.execute(self.by_ids, {"ids": list(ids)})}
        return self.all(s, [rows[id] for id in ids if id in rows], lease_s)

    def one(self, s: Reader, project_id: str, id: str, lease_s: float) -> Shown:
        """Raises NotFound."""
        row = lookup.columns_of(s, self.by_id, self.table, project_id, id)
        return Shown(dumps(self.all(s, [row], lease_s)[0]), row.version, row.finished_at is not None)

    def all(self, s: Reader, rows: Sequence[Columns], lease_s: float) -> list[JSON]:
        names = [str(column.key) for column in (*self.columns, *self.json_columns)]
        texts = [str(column.key) for column in self.json_columns]
        computed = self.computed(s, rows, lease_s)
        found = []
        for row in rows:
            thing = dict(zip(names, row, strict=True))
            self.finish(thing)
            for name in texts:
                if isinstance(text := thing.get(name), str):
                    thing[name] = orjson.Fragment(text)
            thing.update(computed.get(row.id, {}))
            found.append(thing)
        return found


def dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)


def _job(job: JSON) -> None:
    job["spec"] = text_without_retired(job["spec"])
    code, message, data = job.pop("failure_code"), job.pop("failure_message"), job.pop("failure_data")
    job["failure"] = _failure(FailureCode(code), message or "", orjson.loads(data or "{}")) if code else None
    job["waiting_reason"] = job["queue_position"] = None


def _failure(code: FailureCode, message: str, data: JSON) -> JSON:
    said = {"code": code, "message": message, "advice": advice(code, data), "data": data}
    return {**said, "retryable": code.retryable}


def _jobs_wait(s: Reader, rows: Sequence[Columns], lease_s: float) -> Mapping[str, JSON]:
    ids = [row.id for row in rows if row.state in (State.queued, State.paused)]
    found = waiting.waits(s, ids, lease_s) if ids else {}
    return {id: {"waiting_reason": wait.reason, "queue_position": wait.position} for id, wait in found.items()}


def _dataset(dataset: JSON) -> None:
    path, state = f"/v1/datasets/{dataset['id']}", dataset["state"]
    dataset["upload_url"] = f"{path}/content" if state == DatasetState.awaiting_upload else None
    dataset["report_url"] = f"{path}/report" if state in (DatasetState.ready, DatasetState.rejected) else None


def _model(model: JSON) -> None:
    awaits = model["state"] == ModelState.awaiting_upload
    model["content_url"] = f"/v1/models/{model['id']}/content" if awaits else None
    model["recipe"] = text_without_retired(model["recipe"], Recipe)
    model["classes"] = orjson.loads(model["recipe"])["classes"]


def _plan(plan: JSON) -> None:
    plan["phase"] = plan["phase"] if plan["lease_owner"] is not None else None
    del plan["lease_owner"], plan["device"]
    plan["students"] = None
    if plan["question"] is not None:
        plan["spec"] = plan["outline"] = None
        plan["students"], plan["measured"] = plan["measured"], None
        if plan["students"] is not None:
            plan["students"] = orjson.Fragment(plan["students"])
        return
    plan["spec"] = text_without_retired(plan["spec"])
    if plan["measured"] is not None:  # an earlier version may have stored fewer figures
        plan["measured"] = MeasuredView.model_validate_json(plan["measured"]).model_dump_json()


def _plans_wait(s: Reader, rows: Sequence[Columns], lease_s: float) -> Mapping[str, JSON]:
    return {row.id: {"waiting_reason": plans.waiting_reason(s, row, lease_s)} for row in rows}


def _task(task: JSON, path: str) -> None:
    """The request's fields are the answer's own."""
    del task["lease_owner"]
    task |= orjson.loads(task.pop("request"))
    files = orjson.loads(task["files"] or "[]")
    task["files"] = [{**file, "url": f"{path}/{task['id']}/{file['role']}"} for file in files]


def _tasks_wait(s: Reader, rows: Sequence[Columns], lease_s: float) -> Mapping[str, JSON]:
    return {row.id: {"waiting_reason": tasks.waiting_reason(s, row, lease_s)} for row in rows}


def _exports_wait(s: Reader, rows: Sequence[Columns], lease_s: float) -> Mapping[str, JSON]:
    return {row.id: {"waiting_reason": exports.waiting_reason(s, row, lease_s)} for row in rows}


def _of_tasks(
    path: str,
    table: type[Task],
    wait: Callable[[Reader, Sequence[Columns], float], Mapping[str, JSON]] = _tasks_wait,
) -> Resource:
    return Resource(
        path,
        table,
        [
            *(table.id, table.state, table.created_at, table.finished_at, table.version),
            *(table.lease_owner, table.device),  # for the reason why it waits
        ],
        [table.request, table.result, table.files, table.error],
        partial(_task, path=path),
        wait,
        at_once=20,
    )


JOBS = Resource(
    "/v1/jobs",
    Job,
    [
        *(Job.id, Job.name, Job.state, Job.phase, Job.requested, Job.priority, Job.attempt, Job.weights_digest),
        *(Job.created_at, Job.started_at, Job.finished_at, Job.version, Job.failure_code, Job.failure_message),
        select(StudyJob.study_id).where(StudyJob.job_id == Job.id).scalar_subquery().label("study"),
    ],
    [Job.spec, Job.labels.label("metadata"), Job.limits, Job.progress, Job.failure_data, Job.inputs],
    _job,
    _jobs_wait,
    unlisted={"inputs"},
)
DATASETS = Resource(
    "/v1/datasets",
    Dataset,
    [
        *(
            Dataset.id,
            Dataset.name,
            Dataset.state,
            Dataset.format,
            Dataset.path,
            Dataset.val_fraction,
            Dataset.group_by,
        ),
        *(Dataset.error, Dataset.created_at, Dataset.finished_at, Dataset.version),
    ],
    [Dataset.classes, Dataset.splits],
    _dataset,
    at_once=20,
)
MODELS = Resource(
    "/v1/models",
    Model,
    [
        *(Model.id, Model.name, Model.state, Model.size, Model.upload_sha256, Model.error),
        *(Model.weights_digest.label("sha256"), Model.tensors_digest.label("weights_digest")),
        *(Model.created_at, Model.finished_at, Model.version),
    ],
    [Model.source, Model.recipe, Model.report],
    _model,
    unlisted={"report"},
    at_once=20,
)
PLANS = Resource(
    "/v1/plans",
    Plan,
    [
        *(Plan.id, Plan.name, Plan.state, Plan.created_at, Plan.finished_at, Plan.version),
        *(Plan.lease_owner, Plan.device, Plan.phase),  # for the reason why it waits
    ],
    [Plan.spec, Plan.outline, Plan.measured, Plan.question, Plan.error],
    _plan,
    _plans_wait,
)
EVALUATIONS = _of_tasks("/v1/evaluations", Evaluation)
EXPORTS = _of_tasks("/v1/exports", Export, _exports_wait)
PREDICTIONS = _of_tasks("/v1/predictions", Prediction)
