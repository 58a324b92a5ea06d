"""Brings jobs to an MLflow server, in a thread of the API's process. Knows rows, the store, and how reports are made.

It looks for work in the database, so nothing is lost with a process, and jobs know nothing of it: a server that is
away, slow or wrong costs them nothing. Of several processes one has a job at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from api.core import mlflow_runs, report, report_rows
from api.core.errors import Fenced
from api.core.jobs import curves, history
from api.core.mlflow_runs import Taken
from api.core.report_views import JobReport
from api.core.resampling import Resampler
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import Artifact
from api.core.store.names import BlobStore
from api.http import report_page
from fgd.tracking import runs
from fgd.tracking.mlflow import Account, MlflowServer, Run, TrackingAway, TrackingRefused
from fgd.tracking.runs import TrackedFile, TrackedJob

logger = logging.getLogger(__name__)

LOOK_S = 5.0
GOODBYE_S = 2.0
KEEP_S = mlflow_runs.TAKEN_S / 10
FIGURES_S = 5.0
"""Between two looks whether a report's figures are worked out."""
PATIENCE = timedelta(minutes=15)
"""After a job's end its report is not waited for any longer; then it goes as it is."""


@dataclass(frozen=True)
class Target:
    """Where jobs go."""

    url: str
    experiment: str
    account: Account
    service_url: str | None = None
    """Of our own pages, for links."""


@dataclass
class Tracker:
    engine: Engine
    store: BlobStore
    resampler: Resampler
    target: Target
    lease_s: float
    """A worker that was silent for longer is none."""
    _owner: str = field(default_factory=lambda: new_id("trk"))

    def work(self, stop: threading.Event) -> None:
        """Everything that is due; ends early where the server is away, for the next job would find it so too."""
        with db.reading(self.engine) as s:
            if not mlflow_runs.wanted(s):
                return
        with db.transaction(self.engine) as s:
            mlflow_runs.note(s)
        with MlflowServer(self.target.url, self.target.account) as server:
            while not stop.is_set() and (taken := self._take()) is not None:
                try:
                    self._bring(server, taken)
                except Fenced:
                    logger.info("%s: was taken over or deleted", taken.job.id)
                except TrackingAway as error:
                    self._failed(taken, str(error))
                    return
                except Exception as error:
                    known = isinstance(error, TrackingRefused | OSError)
                    self._failed(taken, str(error) if known else f"{type(error).__name__}; the server's log says more")
                    if not known:
                        logger.exception("%s could not be brought to MLflow", taken.job.id)

    def _take(self) -> Taken | None:
        with db.transaction(self.engine) as s:
            return mlflow_runs.take(s, self._owner)

    def _failed(self, taken: Taken, error: str) -> None:
        try:
            with db.transaction(self.engine) as s:
                known = mlflow_runs.failed(s, taken, error)
        except Fenced:
            return
        if not known:
            logger.warning("%s is not in MLflow: %s", taken.job.id, error)

    def _bring(self, server: MlflowServer, taken: Taken) -> None:
        """Raises Fenced, TrackingAway, TrackingRefused, OSError."""

        kept_at = time.monotonic()

        def keep() -> None:
            nonlocal kept_at
            if time.monotonic() - kept_at > KEEP_S:
                with db.transaction(self.engine) as s:
                    mlflow_runs.keep(s, taken)
                kept_at = time.monotonic()

        job = tracked(taken, self.target)
        run = runs.open_run(server, server.experiment(self.target.experiment), job)
        if run.created:
            self._tell_of(run, taken)
        runs.describe(server, run, job)
        keep()
        first = None if run.created else taken.logged_step
        reached = self._add_points(server, run, taken, first, keep) if taken.begun() else first
        runs.set_state(server, run, job)
        again_s = self._add_result(server, run, taken, job, keep) if taken.ended else None
        with db.transaction(self.engine) as s:
            mlflow_runs.logged(s, taken, run.id, reached, again_s=again_s)

    def _add_points(
        self, server: MlflowServer, run: Run, taken: Taken, first: int | None, keep: runs.Keep
    ) -> int | None:
        """Up to the last checkpoint: what comes after it may be done again, otherwise. The step of the last is brought
        again the next time, for an evaluation after it may be of the same step. Returns that step."""
        window = curves.Window(first=first, last=taken.final_step)
        with db.reading(self.engine) as s:
            found = curves.curves(s, taken.job.id, window)
        runs.add_points(server, run, curves.points(self.engine, found, window), keep)
        return first if taken.final_step is None else taken.final_step

    def _add_result(
        self, server: MlflowServer, run: Run, taken: Taken, job: TrackedJob, keep: runs.Keep
    ) -> float | None:
        """What is known once a job has ended. Returns when to come again for its report; None: it is there."""
        made = self._report(taken)
        keep()
        told = made.model_dump(mode="json")
        runs.describe_result(server, run, told)
        if not server.takes_files(run):
            said = f"it keeps files at {run.files_at}, not at the server itself (--serve-artifacts), so ours stay here"
            with db.transaction(self.engine) as s:
                mlflow_runs.tell(s, taken, "mlflow_without_files", said)
            return None
        with db.reading(self.engine) as s:
            artifacts = history.artifacts(s, taken.job)
        runs.add_files(server, run, [self._file(artifact) for artifact in artifacts], keep)
        with db.reading(self.engine) as s:
            waited = db.now(s) - (taken.job.finished_at or taken.job.created_at)
        if made.pending and waited < PATIENCE:
            return FIGURES_S
        runs.add_files(server, run, runs.made_files(job, told, report_page.page(made)), keep)
        return None

    def _report(self, taken: Taken) -> JobReport:
        """Asks for its figures, which are worked out beside the server."""
        with db.reading(self.engine) as s:
            found = report_rows.read(s, taken.job.project_id, taken.job.id, "val", self.lease_s)
        resampled = self.resampler.ask(found.compared(), "val")
        figures = self.resampler.figures(found.shown(), "val")
        return report.report(found, self.store, resampled, figures)

    def _file(self, artifact: Artifact) -> TrackedFile:
        return TrackedFile(artifact.name, artifact.size, lambda: self.store.read(artifact.digest))

    def _tell_of(self, run: Run, taken: Taken) -> None:
        url = run.url(self.target.url.rstrip("/"))
        with db.transaction(self.engine) as s:
            mlflow_runs.tell(s, taken, "mlflow_run", f"its run in MLflow: {url}", "info", run=run.id, url=url)


def tracked(taken: Taken, target: Target) -> TrackedJob:
    job = taken.job
    base = target.service_url.rstrip("/") if target.service_url else None
    return TrackedJob(
        id=job.id,
        name=job.name,
        state=job.state,
        spec=job.spec,
        labels={key: str(value) for key, value in job.labels.items()},
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        failure=f"{job.failure_code}: {job.failure_message}" if job.failure_code else None,
        url=f"{base}/#/jobs/{job.id}" if base else None,
    )


@contextmanager
def tracking(tracker: Tracker | None) -> Iterator[None]:
    """Works every few seconds, in a daemon thread. None: there is nothing to do."""
    if tracker is None:
        yield
        return
    left = threading.Event()

    def run() -> None:
        while not left.wait(LOOK_S):
            try:
                tracker.work(left)
            except (SQLAlchemyError, OSError) as error:
                logger.warning("MLflow is tried again in %g s: %s", LOOK_S, str(error).partition("\n")[0])
            except Exception:
                logger.exception("MLflow is tried again in %g s", LOOK_S)

    thread = threading.Thread(target=run, name="tracker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(GOODBYE_S)
