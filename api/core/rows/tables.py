"""The tables. Constraints mirror `lifecycle.py`, so that the database refuses what the code must not write.

Every table carries `project_id`, and what belongs to a thing refers to (project, thing) together: a row cannot point
into another project. Times are aware UTC from the database's clock. Knows nothing of HTTP.

Over 500 lines: the schema is read as a whole, and its tables refer to each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    case,
    false,
    func,
    null,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, deferred, mapped_column

from api.core.lifecycle import TERMINAL, DatasetState, FailureCode, ModelState, PlanState, Requested, State
from api.core.rows.columns import (
    BlobFiles,
    Digest,
    Imported,
    Inputs,
    Leased,
    Noun,
    ProjectId,
    Task,
    import_rules,
    lease_rules,
    one_of,
    task_rules,
)
from api.core.rows.db import UtcDateTime

DEFAULT_PROJECT = "prj_default"
"""The one project until there are users."""

_OPEN = tuple(state for state in State if not state.terminal)
_ATTEMPT_KEY = ["job_attempts.job_id", "job_attempts.attempt"]
_BIG = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER is an autoincrementing key on SQLite


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map: ClassVar = {str: Text(), datetime: UtcDateTime(), dict[str, Any]: JSON(none_as_null=True)}


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str]
    cursor_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    """Signs page cursors, the same on every server."""
    created_at: Mapped[datetime]


class BlobRow(Base):
    """A content that the store holds: the row is what makes the file part of the service."""

    __tablename__ = "blobs"

    project_id: Mapped[ProjectId] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    digest: Mapped[Digest] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes."""
    created_at: Mapped[datetime]
    unused_since: Mapped[datetime | None]
    """When the sweep first found that nothing refers to it; null while something does."""

    __table_args__ = (
        CheckConstraint("length(digest) = 64", "digest"),
        CheckConstraint("size >= 0", "size"),
    )


class Dataset(Imported, Base):
    __tablename__ = "datasets"

    name: Mapped[str]
    format: Mapped[str]
    """As asked: auto, or a name of fgd.data.format_list."""
    path: Mapped[str | None]
    """The folder it was read from; null where it was uploaded."""
    verify: Mapped[str]
    archive_digest: Mapped[Digest | None]
    index_digest: Mapped[Digest | None]
    classes: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    splits: Mapped[dict[str, Any] | None]
    """{"train": {"images": n, "boxes": n}, ...}"""
    report: Mapped[dict[str, Any] | None] = deferred(mapped_column(JSON(none_as_null=True)))
    """fgd.data.index.Report; may be large, so it is loaded only when asked for."""
    val_fraction: Mapped[float | None]
    group_by: Mapped[str] = mapped_column(String(16), default="none", server_default="none")

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(["project_id", "archive_digest"], ["blobs.project_id", "blobs.digest"]),
        ForeignKeyConstraint(["project_id", "index_digest"], ["blobs.project_id", "blobs.digest"]),
        ForeignKeyConstraint(["project_id", "upload_digest"], ["blobs.project_id", "blobs.digest"]),
        CheckConstraint(one_of("state", DatasetState), "state"),
        CheckConstraint("(state = 'ready') = (archive_digest IS NOT NULL)", "ready_has_archive"),
        CheckConstraint("(state = 'ready') = (index_digest IS NOT NULL)", "ready_has_index"),
        CheckConstraint("state <> 'awaiting_upload' OR path IS NULL", "awaiting_has_no_path"),
        CheckConstraint(
            "(state = 'verifying' AND path IS NULL) = (upload_digest IS NOT NULL)", "verifying_upload_has_digest"
        ),
        Index("ix_datasets_page", "project_id", "created_at", "id"),
        *import_rules(__tablename__),
    )


class Model(Imported, Base):
    """A network of its own: uploaded, or made of a job's weights. Its two files are what a job's references stage."""

    __tablename__ = "models"

    name: Mapped[str]
    recipe: Mapped[dict[str, Any]]
    """fgd.recipe.Recipe: the detector, its classes, sizes, mean and std."""
    source: Mapped[dict[str, Any]]
    """{"kind": "upload"}, {"kind": "job", "job", "which"} or {"kind": "checkpoint", "job", "checkpoint", "step"}"""
    weights_digest: Mapped[Digest | None]
    """student.safetensors."""
    recipe_digest: Mapped[Digest | None]
    """recipe.json."""
    tensors_digest: Mapped[str | None] = mapped_column(String(64))
    """sha256 over the tensors: equal for equal networks, whatever the file."""
    size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of student.safetensors."""

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(["project_id", "upload_digest"], ["blobs.project_id", "blobs.digest"]),
        ForeignKeyConstraint(["project_id", "weights_digest"], ["blobs.project_id", "blobs.digest"]),
        ForeignKeyConstraint(["project_id", "recipe_digest"], ["blobs.project_id", "blobs.digest"]),
        CheckConstraint(one_of("state", ModelState), "state"),
        CheckConstraint("(state = 'verifying') = (upload_digest IS NOT NULL)", "verifying_has_upload"),
        CheckConstraint("(state = 'ready') = (weights_digest IS NOT NULL)", "ready_has_weights"),
        CheckConstraint("(weights_digest IS NULL) = (recipe_digest IS NULL)", "weights_have_recipe"),
        CheckConstraint("(weights_digest IS NULL) = (tensors_digest IS NULL)", "weights_have_tensors"),
        CheckConstraint("(weights_digest IS NULL) = (size IS NULL)", "weights_have_size"),
        Index("ix_models_page", "project_id", "created_at", "id"),
        *import_rules(__tablename__),
    )


class Job(Noun, Base):
    """Its lease has rules of its own: a job runs while it is held, and only then."""

    __tablename__ = "jobs"

    name: Mapped[str]
    state: Mapped[str] = mapped_column(String(16), default=State.queued)
    phase: Mapped[str | None]
    """What the running attempt does just now; a free-growing word."""
    requested: Mapped[str | None] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]]
    """The resolved JobSpec."""
    inputs: Mapped[Inputs]
    """Of the references: dataset, teacher, teachers/<name>, inherit, weights."""
    labels: Mapped[dict[str, Any]] = mapped_column("metadata")
    priority: Mapped[int]
    device: Mapped[str] = mapped_column(String(16))
    limits: Mapped[dict[str, Any]]
    dataset_id: Mapped[str] = mapped_column(String(40))

    attempt: Mapped[int] = mapped_column(default=0)
    """Number of claims so far: the fencing token. Every write of an attempt carries it."""
    retries: Mapped[int] = mapped_column(default=0)
    """Attempts lost to the infrastructure, counted against limits.max_retries."""
    not_before: Mapped[datetime]
    lease_owner: Mapped[str | None]
    lease_expires: Mapped[datetime | None]
    event_seq: Mapped[int] = mapped_column(default=0)
    """Number of the last event; allocated in the transaction of the move, so that a job's events have no gap."""
    progress: Mapped[dict[str, Any] | None]
    """{"step", "total_steps", "epoch", "epochs", "values": {"loss/total": ..., "val/ap": ...}}"""
    twin: Mapped[str] = mapped_column(String(32), default="", server_default="")
    """Equal for jobs that differ in teacher and methods only; see api/core/jobs/controls.py."""
    taught: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It has a teacher. Of jobs with the same twin, those without one are the control of those with one."""
    ap: Mapped[float | None]
    """Of the last evaluation on the validation images, 0-100."""
    ap_step: Mapped[int | None] = mapped_column(BigInteger)
    """When that was."""

    failure_code: Mapped[str | None] = mapped_column(String(32))
    failure_message: Mapped[str | None]
    failure_data: Mapped[dict[str, Any] | None]
    weights_digest: Mapped[str | None] = mapped_column(String(64))
    """Over the tensors of its result."""
    started_at: Mapped[datetime | None]
    batch_size: Mapped[int | None]
    """Images per forward pass since it ran out of memory; null: as the spec says."""

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(["project_id", "dataset_id"], ["datasets.project_id", "datasets.id"]),
        CheckConstraint(one_of("state", State), "state"),
        CheckConstraint(
            f"requested IS NULL OR (state = 'running' AND {one_of('requested', Requested)})"
            " OR (state = 'queued' AND requested = 'stop')",
            "requested",
        ),
        CheckConstraint("batch_size IS NULL OR batch_size > 0", "batch_size"),
        CheckConstraint("(state = 'succeeded') = (weights_digest IS NOT NULL)", "succeeded_has_weights"),
        CheckConstraint("(state = 'failed') = (failure_code IS NOT NULL)", "failed_has_code"),
        CheckConstraint("(failure_code IS NULL) = (failure_message IS NULL)", "failure_whole"),
        CheckConstraint(f"failure_code IS NULL OR {one_of('failure_code', FailureCode)}", "failure_code"),
        CheckConstraint(f"({one_of('state', sorted(TERMINAL))}) = (finished_at IS NOT NULL)", "ended_has_finished_at"),
        CheckConstraint("(state = 'running') = (lease_owner IS NOT NULL)", "running_has_lease"),
        CheckConstraint("(lease_owner IS NULL) = (lease_expires IS NULL)", "lease_whole"),
        CheckConstraint("state = 'running' OR phase IS NULL", "phase_only_running"),
        CheckConstraint("(attempt > 0) = (started_at IS NOT NULL)", "started_has_attempt"),
        CheckConstraint("state NOT IN ('running', 'succeeded') OR attempt > 0", "run_has_attempt"),
        CheckConstraint("device IN ('auto', 'cpu', 'cuda')", "device"),
        CheckConstraint("attempt >= 0 AND retries >= 0 AND event_seq >= 0", "counts"),
        Index("ix_jobs_page", "project_id", "created_at", "id"),
        Index("ix_jobs_page_by_state", "project_id", "state", "created_at", "id"),
        Index("ix_jobs_page_by_name", "project_id", "name", "created_at", "id"),
        Index("ix_jobs_twin", "project_id", "twin", "taught"),
        Index("ix_jobs_queued", text("priority DESC"), "created_at", "id", sqlite_where=text("state = 'queued'"),
              postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_running", "lease_expires", sqlite_where=text("state = 'running'"),
              postgresql_where=text("state = 'running'")),
    )  # fmt: skip


class JobParent(Base):
    """A job refers to another job's weights. It has its own copy of the digests (`inputs`)."""

    __tablename__ = "job_parents"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    role: Mapped[str] = mapped_column(String(64), primary_key=True)
    """See fgd.references."""
    project_id: Mapped[ProjectId]
    parent_id: Mapped[str] = mapped_column(String(40))

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["project_id", "parent_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        Index("ix_job_parents_parent", "parent_id"),
    )


class JobModel(Base):
    """A job refers to a model, as its teacher or to begin with. The job has its own copy of the digests (`inputs`)."""

    __tablename__ = "job_models"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    role: Mapped[str] = mapped_column(String(64), primary_key=True)
    """See fgd.references."""
    project_id: Mapped[ProjectId]
    model_id: Mapped[str] = mapped_column(String(40))

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["project_id", "model_id"], ["models.project_id", "models.id"], ondelete="CASCADE"),
        CheckConstraint("role IN ('teacher', 'inherit', 'weights') OR role LIKE 'teachers/%'", "role"),
        Index("ix_job_models_model", "model_id"),
    )


class Study(Noun, Base):
    """A grid of jobs. What it is doing follows from them, so it has no state of its own, and never a `finished_at`."""

    __tablename__ = "studies"

    name: Mapped[str]
    dataset_id: Mapped[str] = mapped_column(String(40))
    body: Mapped[dict[str, Any]]
    """study_bodies.SubmitStudy, as sent and as extended since."""
    arms: Mapped[list[dict[str, Any]]] = mapped_column(JSON(none_as_null=True))
    """Controls first: [{"name", "methods", "against", ...}]"""
    students: Mapped[list[dict[str, Any]]] = mapped_column(JSON(none_as_null=True))
    """[{"name", "student"}]"""
    seeds: Mapped[list[int]] = mapped_column(JSON(none_as_null=True))
    runs: Mapped[list[dict[str, Any]]] = deferred(mapped_column(JSON(none_as_null=True), nullable=False))
    """[{"arm", "student", "job"}]: the resolved SubmitJob of each arm and student. A seed that is added later differs
    from the others in nothing else."""
    inputs: Mapped[Inputs] = deferred(mapped_column(BlobFiles(), nullable=False))
    """Of its runs, which keeps them: {"0/dataset": ..., "0/teacher": ..., "1/dataset": ...}"""
    jobs: Mapped[int]
    """Arms x students x seeds."""

    __table_args__ = (
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(["project_id", "dataset_id"], ["datasets.project_id", "datasets.id"]),
        CheckConstraint("jobs > 0", "jobs"),
        CheckConstraint("finished_at IS NULL", "ends_with_its_jobs"),
        Index("ix_studies_page", "project_id", "created_at", "id"),
    )

    @classmethod
    def version_shown(cls) -> ColumnElement[int]:
        """It only rises: what a job that is deleted had counted is added to the study's own."""
        return cls.version + func.coalesce(cls._of_jobs(func.sum(Job.version)), 0)

    @classmethod
    def end_shown(cls) -> ColumnElement[Any]:
        last = func.coalesce(cls._of_jobs(func.max(Job.finished_at), StudyJob.current), cls.created_at)
        return case((~cls.has(*_OPEN), last), else_=null())

    @classmethod
    def state_shown(cls) -> ColumnElement[str]:
        begun = [state for state in State if state != State.queued]
        there = cls._of_jobs(func.count(), StudyJob.current)
        return case(
            (cls.has(State.queued) & ~cls.has(*begun), State.queued.value),
            (cls.has(State.queued, State.running), State.running.value),
            (cls.has(State.paused), State.paused.value),
            (cls.has(State.failed), State.failed.value),
            (cls.has(State.cancelled) | (there < cls.jobs), State.cancelled.value),
            else_=State.succeeded.value,
        )

    @classmethod
    def has(cls, *states: State) -> ColumnElement[bool]:
        """Whether one of its jobs is in one of these."""
        theirs = select(StudyJob.job_id).join(Job, Job.id == StudyJob.job_id)
        return (
            theirs.where(StudyJob.study_id == cls.id, StudyJob.current, Job.state.in_(states)).correlate(cls).exists()
        )

    @classmethod
    def _of_jobs(cls, column: ColumnElement[Any], *which: Any) -> ColumnElement[Any]:
        theirs = select(column).select_from(StudyJob).join(Job, Job.id == StudyJob.job_id)
        return theirs.where(StudyJob.study_id == cls.id, *which).correlate(cls).scalar_subquery()


class StudyJob(Base):
    """A job is one of a study's. Of one arm, student and seed the latest counts."""

    __tablename__ = "study_jobs"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[ProjectId]
    study_id: Mapped[str] = mapped_column(String(40))
    arm: Mapped[str]
    student: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    current: Mapped[bool] = mapped_column(default=True)
    """False: it failed or was cancelled, and another takes its place."""

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["project_id", "study_id"], ["studies.project_id", "studies.id"], ondelete="CASCADE"),
        Index("ix_study_jobs_study", "study_id"),
        Index("uq_study_jobs_current", "study_id", "arm", "student", "seed", unique=True,
              sqlite_where=text("current"), postgresql_where=text("current")),
    )  # fmt: skip


class Attempt(Base):
    """One claim of a job by a worker."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[ProjectId]
    worker_id: Mapped[str]
    host: Mapped[str]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None]
    """Why it ended, in words."""
    exit: Mapped[int | None]
    """The trainer's exit status; negative: the signal that killed it."""
    log_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    code: Mapped[str | None] = mapped_column(String(32))
    """FailureCode, if it failed or was lost."""
    device: Mapped[str | None]
    """As the trainer names it; null until it stands."""
    spec: Mapped[dict[str, Any] | None]
    """The JobSpec it ran with; null: the job's own."""
    first_step: Mapped[int | None] = mapped_column(BigInteger)
    """Where it began."""
    last_step: Mapped[int | None] = mapped_column(BigInteger)
    """The last step it told of."""
    lost_steps: Mapped[int | None] = mapped_column(BigInteger)
    """Of its steps those that no checkpoint or result has."""

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        CheckConstraint("attempt > 0", "attempt"),
        CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", "ended_whole"),
        CheckConstraint(
            "outcome IS NULL OR outcome IN ('succeeded', 'failed', 'cancelled', 'lost', 'handed_back', 'paused')",
            "outcome",
        ),
        Index("uq_job_attempts_live", "job_id", unique=True, sqlite_where=text("finished_at IS NULL"),
              postgresql_where=text("finished_at IS NULL")),
    )  # fmt: skip


class JobEvent(Base):
    """What happened to a job, numbered from 1 without gaps."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[ProjectId]
    type: Mapped[str]
    at: Mapped[datetime]
    attempt: Mapped[int]
    """0: before the first claim."""
    data: Mapped[dict[str, Any]]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        CheckConstraint("seq > 0", "seq"),
        Index("uq_job_events_terminal", "job_id", unique=True,
              sqlite_where=text("type IN ('succeeded', 'failed', 'cancelled')"),
              postgresql_where=text("type IN ('succeeded', 'failed', 'cancelled')")),
    )  # fmt: skip


class Series(Base):
    """A metric's name, interned; with its latest point, so that a dashboard reads no history."""

    __tablename__ = "series"

    id: Mapped[int] = mapped_column(_BIG, primary_key=True, autoincrement=True)
    project_id: Mapped[ProjectId]
    job_id: Mapped[str] = mapped_column(String(40))
    name: Mapped[str]
    split: Mapped[str]
    latest_step: Mapped[int | None] = mapped_column(BigInteger)
    latest_value: Mapped[float | None]
    latest_at: Mapped[datetime | None]
    covered: Mapped[int | None] = mapped_column(BigInteger)
    """Last step of its last block."""
    loose: Mapped[int] = mapped_column(default=0, server_default="0")
    """Points behind that, in no block yet."""

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        UniqueConstraint("job_id", "name", "split"),
        UniqueConstraint("job_id", "id"),
    )


class MetricPoint(Base):
    """One number. `value` null: it was not finite, or does not exist (AP of a class without boxes)."""

    __tablename__ = "metric_points"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    series_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    project_id: Mapped[ProjectId]
    attempt: Mapped[int]
    value: Mapped[float | None]
    finite: Mapped[bool]
    at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["job_id", "series_id"], ["series.job_id", "series.id"], ondelete="CASCADE"),
        CheckConstraint("finite = (value IS NOT NULL)", "finite_has_value"),
    )


class MetricBlock(Base):
    """The least and the greatest of some dozens of neighbouring points of a series, so that a plot reads few rows."""

    __tablename__ = "metric_blocks"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    series_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    last_step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    project_id: Mapped[ProjectId]
    first_step: Mapped[int] = mapped_column(BigInteger)
    least: Mapped[float | None]
    """Null, as the other three: none of the points has a value."""
    least_step: Mapped[int | None] = mapped_column(BigInteger)
    greatest: Mapped[float | None]
    greatest_step: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["job_id", "series_id"], ["series.job_id", "series.id"], ondelete="CASCADE"),
        CheckConstraint("first_step <= last_step", "steps"),
    )


class LogChunk(Base):
    """A piece of an attempt's log at a byte offset."""

    __tablename__ = "log_chunks"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    project_id: Mapped[ProjectId]
    data: Mapped[bytes]
    at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["job_id", "attempt"], _ATTEMPT_KEY, ondelete="CASCADE"),
    )  # fmt: skip


class Checkpoint(Base):
    """A checkpoint that was committed; a file that no row names does not exist. The last two are kept, the best one
    and those that somebody pinned."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[ProjectId]
    job_id: Mapped[str] = mapped_column(String(40))
    attempt: Mapped[int]
    step: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str]
    """Of a private object in the store, which is no blob."""
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    best: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Of its job's checkpoints the one with the best validation AP; of one at most."""
    pinned: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Somebody wants it kept, also after the job's end."""

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["job_id", "attempt"], _ATTEMPT_KEY, ondelete="CASCADE"),
        UniqueConstraint("key"),
        UniqueConstraint("job_id", "attempt", "step"),
    )  # fmt: skip


class Artifact(Base):
    """A named file of a job's result."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[ProjectId]
    job_id: Mapped[str] = mapped_column(String(40))
    name: Mapped[str]
    digest: Mapped[Digest]
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str]
    created_at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["project_id", "digest"], ["blobs.project_id", "blobs.digest"]),
        UniqueConstraint("job_id", "name"),
        Index("ix_artifacts_blob", "digest", "project_id"),
    )


class JobFocus(Base):
    """What a job's methods looked at after a step, or the images on which that is shown: fgd/focus_files.py."""

    __tablename__ = "job_focus"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the file."""
    project_id: Mapped[ProjectId]
    step: Mapped[int | None] = mapped_column(BigInteger)
    """Null, as `epoch`: the images."""
    epoch: Mapped[int | None]
    digest: Mapped[Digest]
    size: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(["project_id", "digest"], ["blobs.project_id", "blobs.digest"]),
        CheckConstraint("(step IS NULL) = (epoch IS NULL)", "step_has_epoch"),
        Index("ix_job_focus_blob", "digest", "project_id"),
    )


class MlflowRun(Base):
    """How far a job has been brought to an MLflow server (api/core/mlflow_runs.py)."""

    __tablename__ = "mlflow_runs"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[ProjectId]
    run_id: Mapped[str | None]
    """As MLflow names it; null: it is not there yet."""
    logged_step: Mapped[int | None] = mapped_column(BigInteger)
    """Points before this step are there."""
    seen_version: Mapped[int | None]
    """The job's, when it was last brought."""
    done: Mapped[bool] = mapped_column(default=False, server_default=false())
    """It has ended, and all of it is there; or it was given up."""
    failures: Mapped[int] = mapped_column(default=0, server_default="0")
    """In a row."""
    error: Mapped[str | None]
    """Of the last."""
    not_before: Mapped[datetime]
    taken_by: Mapped[str | None]
    """The process that is at it."""
    taken_until: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        CheckConstraint("(taken_by IS NULL) = (taken_until IS NULL)", "taken_whole"),
        CheckConstraint("failures >= 0", "failures"),
        Index("ix_mlflow_runs_open", "not_before", sqlite_where=text("NOT done"), postgresql_where=text("NOT done")),
    )


class Plan(Leased, Base):
    """What a job would do and cost, asked for instead of submitting it. Forgotten after some days."""

    __tablename__ = "plans"
    leased_in = PlanState.measuring

    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    """The resolved JobSpec; where a student is looked for, one with the question's references and any student."""
    question: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """fgd.budget.FindStudent, where a student is looked for."""
    phase: Mapped[str | None]
    """How far that is."""
    inputs: Mapped[Inputs]
    """As a job's."""
    device: Mapped[str] = mapped_column(String(16))
    outline: Mapped[dict[str, Any]]
    """fgd.outline.Outline: what is known without trying."""
    measured: Mapped[dict[str, Any] | None]
    """fgd.outline.Measurement, and `trainings_beside`; where a student was looked for, fgd.budget.BudgetTable."""
    error: Mapped[dict[str, Any] | None]
    """{"code", "message", "pointer"}"""

    __table_args__ = (
        CheckConstraint(one_of("state", PlanState), "state"),
        CheckConstraint("(state = 'measured') = (measured IS NOT NULL)", "measured_has_figures"),
        CheckConstraint("(state = 'failed') = (error IS NOT NULL)", "failed_has_error"),
        CheckConstraint("(state <> 'measuring') = (finished_at IS NOT NULL)", "ended_has_finished_at"),
        CheckConstraint("device IN ('auto', 'cpu', 'cuda')", "device"),
        *lease_rules(__tablename__, leased_in),
    )


class Evaluation(Task, Base):
    """How well a network finds the objects of a split."""

    __tablename__ = "evaluations"

    __table_args__ = task_rules(__tablename__)


class Export(Task, Base):
    """A file that runs without torch."""

    __tablename__ = "exports"

    __table_args__ = task_rules(__tablename__)


class Prediction(Task, Base):
    """What networks find in one picture. Forgotten after a day."""

    __tablename__ = "predictions"

    __table_args__ = task_rules(__tablename__)


class Inspection(Task, Base):
    """What the report of a job shows of its networks beside AP: operations, times, pictures. One a job and split; it
    goes with the job."""

    __tablename__ = "inspections"

    job_id: Mapped[str] = mapped_column(String(40))
    split: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(64))
    """Digest over what is looked at: another control is another subject."""

    __table_args__ = (
        *task_rules(__tablename__),
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"], ondelete="CASCADE"),
        UniqueConstraint("job_id", "split"),
    )


class WorkerRow(Base):
    """A worker process and what its host has. It serves every project; `project_id` names who runs it."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[ProjectId] = mapped_column(ForeignKey("projects.id"))
    host: Mapped[str]
    pid: Mapped[int]
    slots: Mapped[int]
    devices: Mapped[list[dict[str, Any]]] = mapped_column(JSON(none_as_null=True))
    """GPUs; [] where the processor is all there is."""
    facts: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    last_beat: Mapped[datetime]
    complaint: Mapped[str | None]
    """Why it takes nothing just now; null: it does."""

    __table_args__ = (CheckConstraint("slots > 0", "slots"),)


class Restore(Base):
    """The database was brought back from a backup. What lies in the store since before may be its lost future's."""

    __tablename__ = "restores"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[ProjectId] = mapped_column(ForeignKey("projects.id"))
    at: Mapped[datetime]
    taken_at: Mapped[datetime]
    """When the backup was made."""


class IdempotencyKey(Base):
    """A request that was answered: the same key with the same body gets the same thing, as long as that is there."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[ProjectId] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    operation: Mapped[str]
    """Method and path."""
    body_sha256: Mapped[str] = mapped_column(String(64))
    made_kind: Mapped[str] = mapped_column(String(32))
    """Noun.noun() of what the request made: job, dataset, ..."""
    made_id: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime]


class TicketRow(Base):
    """A download that needs no key, once."""

    __tablename__ = "tickets"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the token, which is kept nowhere."""
    project_id: Mapped[ProjectId] = mapped_column(ForeignKey("projects.id"))
    path: Mapped[str]
    """With its query, as the request will have it."""
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_tickets_expires_at", "expires_at"),)
