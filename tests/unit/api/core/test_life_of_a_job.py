"""Any order of what people, workers and sweepers do, against a model on one page."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import Session

from api.core.errors import Conflict, Fenced
from api.core.jobs import attempts, requests
from api.core.lifecycle import FailureCode, Requested
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT, Attempt
from tests.postgres import emptied

MAX_RETRIES = 2
ENDED = {"succeeded", "failed", "cancelled"}


class Life(RuleBasedStateMachine):
    """One job. The model: its state, who holds it, what was asked, how often it was lost."""

    begin: ClassVar[Callable[[Path], Any]]

    @initialize()
    def submit(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.given = type(self).begin(self.folder)
        self.id = self.given.job(limits={"max_retries": MAX_RETRIES})
        self.state, self.attempt, self.asked, self.losses, self.wait = "queued", 0, None, 0, False
        self.saved = self.resumed = False
        self.end: str | None = None

    def teardown(self) -> None:
        if hasattr(self, "given"):
            self.given.engine.dispose()
            shutil.rmtree(self.folder)

    # --- the model's moves

    def _free(self, state: str) -> None:
        keeps = state == "queued" and self.asked == Requested.stop
        self.state, self.asked = state, Requested.stop if keeps else None
        if state in ENDED:
            self.end = state

    def _as_asked(self) -> bool:
        if self.asked in (None, Requested.stop):
            return False
        self._free("paused" if self.asked == Requested.pause else "cancelled")
        return True

    def _lose(self) -> None:
        if self._as_asked():
            pass
        elif self.losses >= MAX_RETRIES:
            self._free("failed")
        else:
            self.losses += 1
            self.wait = self.losses > 1
            self._free("queued")

    # --- what may happen

    @rule(worker=st.sampled_from(["wrk_a", "wrk_b"]))
    def claim(self, worker: str) -> None:
        claim = self.given.claim(worker)

        assert (claim is not None) is (self.state == "queued" and not self.wait)
        if claim:
            self.attempt += 1
            self.state, self.worker = "running", worker
            assert claim.attempt == self.attempt

    def _refused(self, act: Callable[[Session], Any]) -> str | None:
        try:
            with db.transaction(self.given.engine) as s:
                act(s)
        except Conflict as conflict:
            return conflict.code
        return None

    def _refusal(self, wish: Requested) -> str | None:
        """Why this may not be asked now."""
        cancels = wish in (Requested.cancel, Requested.cancel_now)
        if self.state in ENDED:
            return None if cancels and self.state == "cancelled" else "job_finished"
        if self.asked in (Requested.cancel, Requested.cancel_now) and not cancels:
            return "cancel_requested"
        if wish == Requested.stop and self.state != "running" and self.asked != wish and not self.saved:
            return "nothing_to_keep"
        return None

    @rule(wish=st.sampled_from(Requested))
    def ask(self, wish: Requested) -> None:
        refusal = self._refusal(wish)
        assert self._refused(lambda s: requests.request(s, DEFAULT_PROJECT, self.id, wish)) == refusal
        if refusal:
            return
        if wish == Requested.pause and self.state != "paused" and self.asked != wish:
            self.resumed = False
        if self.state == "running":
            self.asked = self.asked if self.asked == Requested.cancel_now else wish
        elif self.state not in ENDED and wish == Requested.stop:
            self.wait = self.wait and self.asked == wish  # it need not wait for its next retry any more
            self.state, self.asked = "queued", wish
        elif self.state not in ENDED:
            self._free("paused" if wish == Requested.pause else "cancelled")

    @rule()
    def resume(self) -> None:
        refusal = None
        if self.state in ENDED:
            refusal = "job_finished"
        elif self.asked in (Requested.cancel, Requested.cancel_now):
            refusal = "cancel_requested"
        elif self.state != "paused" and self.asked != Requested.pause and not self.resumed:
            refusal = "not_paused"
        assert self._refused(lambda s: requests.resume(s, DEFAULT_PROJECT, self.id)) == refusal
        if self.state == "paused":
            self.state, self.wait, self.resumed = "queued", False, True
        elif self.asked == Requested.pause:
            self.asked, self.resumed = None, True

    @rule(behind=st.integers(0, 1))
    def save(self, behind: int) -> None:
        attempt = self.attempt - behind
        key = f"{self.id}-{attempt}"
        self.saved |= self._write(attempt, lambda s: attempts.checkpoint(s, self.id, attempt, 5, key, "c" * 64, 1))

    @rule(behind=st.integers(0, 1))
    def end_as_asked(self, behind: int) -> None:
        attempt = self.attempt - behind
        if self._write(attempt, lambda s: attempts.ended_as_requested(s, self.id, attempt)) and not self._as_asked():
            self.wait = False
            self._free("queued")

    def _write(self, attempt: int, write: Callable[[Session], Any]) -> bool:
        """Whether the write went through; the model says whether it had to."""
        try:
            with db.transaction(self.given.engine) as s:
                write(s)
        except Fenced:
            assert not (self.state == "running" and attempt == self.attempt)
            return False
        assert self.state == "running"
        assert attempt == self.attempt
        return True

    @rule(behind=st.integers(0, 1))
    def beat(self, behind: int) -> None:
        attempt, heard = self.attempt - behind, []
        if self._write(
            attempt, lambda s: heard.append(attempts.beat(s, self.id, attempt, getattr(self, "worker", ""), 20.0))
        ):
            assert heard == [self.asked]

    @rule(behind=st.integers(0, 1))
    def finish(self, behind: int) -> None:
        attempt = self.attempt - behind
        if self._write(attempt, lambda s: attempts.finish(s, self.id, attempt, [], "e" * 64)):
            self._free("succeeded")

    @rule(behind=st.integers(0, 1), code=st.sampled_from([FailureCode.user_error, FailureCode.trainer_killed]))
    def fail(self, behind: int, code: FailureCode) -> None:
        attempt = self.attempt - behind
        if self._write(attempt, lambda s: attempts.fail(s, self.id, attempt, code, "x")):
            self._lose() if code.retryable else self._free("failed")

    @rule(behind=st.integers(0, 1))
    def hand_back(self, behind: int) -> None:
        attempt = self.attempt - behind
        if self._write(attempt, lambda s: attempts.requeue(s, self.id, attempt, "x")):
            self.wait = False
            if not self._as_asked():
                self._free("queued")

    @rule()
    def sweep(self) -> None:
        self.given.worker("wrk_c")  # for whom the bell rings
        swept = self.given.sweep()

        assert swept.lost == []
        assert (self.id in swept.ring) is (self.state == "queued" and not self.wait)

    @precondition(lambda self: self.state == "running")
    @rule()
    def lose_the_worker(self) -> None:
        self.given.later(25)  # past the lease, short of any back-off

        assert self.given.sweep().lost == [self.id]
        self._lose()

    @rule()
    def wait_an_hour(self) -> None:
        if self.state == "queued":
            self.given.later(3601)
            self.wait = False

    # --- what must always hold

    @invariant()
    def the_row_is_what_the_model_says(self) -> None:
        if not hasattr(self, "id"):
            return
        job = self.given.look(self.id)
        assert (job.state, job.attempt, job.requested, job.retries) == (
            self.state, self.attempt, self.asked, self.losses,
        )  # fmt: skip

    @invariant()
    def the_story_has_no_gap_and_one_end_at_most(self) -> None:
        if not hasattr(self, "id"):
            return
        types = self.given.events(self.id)
        assert [type for type in types if type in ENDED] == ([self.end] if self.end else [])
        assert types.count("job_claimed") == self.attempt

    @invariant()
    def an_attempt_is_open_exactly_while_the_job_runs(self) -> None:
        if not hasattr(self, "id"):
            return
        with db.reading(self.given.engine) as s:
            open_attempts = [row.attempt for row in s.query(Attempt) if row.finished_at is None]
        assert open_attempts == ([self.attempt] if self.state == "running" else [])


@pytest.mark.parametrize(
    ("database", "lives", "steps"),
    [
        ("sqlite", 12, 20),
        ("postgresql", 8, 20),
        pytest.param("sqlite", 40, 40, marks=pytest.mark.slow),
        pytest.param("postgresql", 15, 40, marks=pytest.mark.slow),
    ],
    indirect=["database"],
)
def test_a_job_lives_as_the_model_says(
    given: Any, database: str, request: pytest.FixtureRequest, lives: int, steps: int
) -> None:
    def begin(folder: Path) -> Any:
        url = database
        if database.startswith("sqlite"):
            shutil.copyfile(request.getfixturevalue("migrated"), folder / "fgd.db")
            url = f"sqlite:///{folder}/fgd.db"
        else:
            assert emptied(database)
        return type(given)(db.make_engine(url), given.store, given.roots)

    machine = type("Life", (Life,), {"begin": staticmethod(begin)})
    how = settings(
        max_examples=lives,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=how)
