"""The supervisor: claim -> stage -> launch -> finish | fail | hand back | cancelled. Never imports torch.

Knows the verbs of api.core; what a training is, the trainer knows.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sqlalchemy.orm import Session

from api.core.errors import Fenced
from api.core.jobs import attempts
from api.core.lifecycle import FailureCode, Requested, State
from api.core.queue import ring
from api.core.store.names import DigestMismatch
from fgd.event_log import without_events
from fgd.events import Failed, Finished, Note
from fgd.process.failpoints import reach
from fgd.process.finish_file import ask_to_finish
from worker import kept_results
from worker.event_writer import EventWriter
from worker.host import DISK_FULL, Host, Lost, os_error_behind
from worker.launcher import Trainer
from worker.lease import Lease
from worker.memory import oom_kills
from worker.outcome import AsAsked, EndCause, Failure, HandedBack, Succeeded, TrainerEnd, Verdict, verdict
from worker.publish import keep_result, publish
from worker.running_attempt import Interrupted, RunningAttempt
from worker.slots import Slot
from worker.staging import InputGone, stage_checkpoint, staged, work_folder
from worker.stop_policy import StopPolicy

logger = logging.getLogger(__name__)

FLUSH_S = 0.5
"""Between two batches into the database."""
KEEPING_S = 0.05
"""Between two looks whether the last checkpoint is in the store."""
SHOWING_S = 10.0
"""How long, at most, the last files of what the methods look at are waited for."""


def supervise(host: Host, claim: attempts.Claim, slot: Slot, claimed_at: float) -> None:
    """One attempt, from claim to its last write. claimed_at: time.monotonic() before the claim."""
    name = f"{claim.job_id} attempt {claim.attempt}"
    logger.info("%s: taken, on %s", name, slot.gpu or "the processor")

    def beat(s: Session) -> Requested | None:
        return attempts.beat(s, claim.job_id, claim.attempt, host.id, host.settings.lease_s)

    try:
        with (
            Lease(lambda: host.beat(beat), host.times(), claimed_at, claim.requested) as lease,
            work_folder(host.settings.home, claim.job_id, claim.attempt) as folder,
        ):
            attempt = RunningAttempt(host, lease, claim)
            try:
                if result := kept_results.kept(host.settings.home, claim.job_id):
                    end, out = end_of_kept(attempt, result), Path(result.folder)
                else:
                    end, out = staged_and_trained(attempt, slot, folder, claimed_at), folder / "out"
                came = verdict(end)
                files = publish(attempt, came.result, out) if isinstance(came, Succeeded) else []
            except Interrupted:
                came = AsAsked() if attempt.cancelled else HandedBack("the worker is shutting down")
                files, end = [], TrainerEnd(None)
            except (OSError, InputGone, DigestMismatch, ValueError) as error:
                came, files, end = blame(error), [], TrainerEnd(None)
            if isinstance(came, Failure) and came.code == FailureCode.no_space:
                host.found_full()  # before the job is queued again: it is to go elsewhere
            state = settle(attempt, came, files, end.returncode)
            if State(state).terminal:
                kept_results.forget(host.settings.home, claim.job_id)
            logger.info("%s: %s", name, state)
    except (Fenced, Lost):
        logger.warning("%s: no longer ours, nothing more is written", name)


def staged_and_trained(attempt: RunningAttempt, slot: Slot, folder: Path, claimed_at: float) -> TrainerEnd:
    claim = attempt.claim
    reach("before_staging")
    with ExitStack() as held:
        stage = functools.partial(staged, claim.spec, claim.inputs, folder, attempt.host.cache)
        spec_file = attempt.with_store("inputs", lambda: held.enter_context(stage()))
        reach("after_staging")
        return train_from_newest(attempt, slot, spec_file, claimed_at)


def end_of_kept(attempt: RunningAttempt, result: Finished) -> TrainerEnd:
    """An earlier attempt came to its end on this host, and not into the store."""
    attempt.report("result_found", "an earlier attempt finished the training on this host; its result is published")
    return TrainerEnd(0, last=result)


def train_from_newest(attempt: RunningAttempt, slot: Slot, spec_file: Path, claimed_at: float) -> TrainerEnd:
    """`train`; and where the trainer cannot read a checkpoint whose bytes are whole (another version's, say), again
    from the one before it, at last from the start: no attempt meets the same one twice.

    Not from the start where all that it looked into are of another spec: they are whole, so it is the job that is not
    what it was, and to throw away what was trained is not ours to decide."""
    writer = EventWriter(attempt.host, attempt.claim, spec_file.parent / "out")
    refused: list[TrainerEnd] = []
    try:
        while True:
            file, older = newest_whole(attempt, spec_file.parent, writer)
            if file is None and refused and all(map(of_another_spec, refused)):
                writer.write()
                return foreign(refused)
            end = train(attempt, slot, spec_file, claimed_at, writer, file)
            if file is None or not (isinstance(end.last, Failed) and end.last.data.get("checkpoint") == "unreadable"):
                return end
            if (
                end.ended != EndCause.by_itself
            ):  # told to end; or it lives on, and a second one must not begin beside it
                return end
            refused.append(end)
            if not of_another_spec(end):
                writer.pass_over(attempt.claim.checkpoints[-1 - len(older)].key, torn=False)
            what = "an older one is tried" if older else "no other is left"
            message = f"the trainer cannot continue from it, {what}: {end.last.message}"
            writer.add([Note(code="checkpoint_corrupt", message=message, level="warning")])
            writer.last = None
            attempt = replace(attempt, claim=replace(attempt.claim, checkpoints=older))
    finally:
        writer.close()


def of_another_spec(end: TrainerEnd) -> bool:
    return isinstance(end.last, Failed) and end.last.data.get("why") == "another_spec"


def foreign(refused: Sequence[TrainerEnd]) -> TrainerEnd:
    last = refused[-1].last
    assert isinstance(last, Failed), "it refused the checkpoint"
    message = (
        f"the checkpoints are intact but belong to another spec ({len(refused)} tried); the job cannot continue from "
        f"them, and does not start over by itself. {last.message}"
    )
    return replace(refused[-1], last=Failed(code=last.code, message=message, data={"checkpoint": "another_spec"}))


def train(
    attempt: RunningAttempt,
    slot: Slot,
    spec_file: Path,
    claimed_at: float,
    writer: EventWriter,
    checkpoint: Path | None,
) -> TrainerEnd:
    """Run the trainer to its end and report what it says. Raises Lost or Fenced, and then it is dead."""
    host, lease, claim, settings = attempt.host, attempt.lease, attempt.claim, attempt.host.settings
    folder = spec_file.parent
    resume = ["--resume", str(checkpoint)] if checkpoint else []
    named = [f"--dataset-name={claim.dataset_name}"] if claim.dataset_name else []
    argv = [*trainer_command(host), str(spec_file), "--out", str(folder / "out"), *resume, *named]
    oom_before = oom_kills()
    threads = claim.spec.resources.threads or host.threads
    run_file = host.run_folder() / f"{claim.job_id}.a{claim.attempt}.json"
    if lease.requested == Requested.stop:  # before it starts, so that it makes no step
        ask_to_finish(folder / "out")
    trainer = Trainer(
        argv,
        folder,
        run_file,
        threads=threads,
        gpu=slot.gpu,
        until=lease.ends_at(),
        weights=settings.weights_dir,
        teachers=host.cache.folder / "teachers",
    )
    left_s = time_left_s(claim, staged_s=time.monotonic() - claimed_at)
    policy = StopPolicy(trainer, grace_s=settings.grace_s, drain_s=host.drain_s, stall_s=settings.stall_s, run_s=left_s)
    try:
        lease.guard(trainer)
        while not trainer.over() and not lease.lost.is_set():
            if writer.full:
                time.sleep(FLUSH_S)
            else:
                events, log = trainer.read(FLUSH_S)
                policy.heard(events)
                writer.add(events, log)
            writer.write()
            policy.check(lease.requested, host.stopping.is_set())
    finally:
        lease.guard(None)
        gone = trainer.close()
    writer.add(*trainer.read(0.0))
    ended = policy.ended if gone else EndCause.survived_kill
    needless = ended == EndCause.cancelled or isinstance(writer.last, Finished)  # nobody goes on from there
    ended_at = time.monotonic()
    while True:
        in_time = not host.stopping.is_set() or time.monotonic() < ended_at + host.drain_s
        keeping = writer.keeping and not needless and in_time and lease.requested != Requested.cancel_now
        showing = writer.showing and in_time and time.monotonic() < ended_at + SHOWING_S
        if writer.write() and not (keeping or showing):
            break
        if lease.lost.wait(KEEPING_S if keeping or showing else FLUSH_S):
            raise Lost
    if lease.lost.is_set():
        raise Lost
    if not gone:
        host.undead.add(trainer.mark)
    return TrainerEnd(
        trainer.returncode(), ended, writer.last, without_events(trainer.tail()), oom_kills() - oom_before
    )


def time_left_s(claim: attempts.Claim, staged_s: float) -> float | None:
    """What is left of limits.max_runtime_s once this attempt has staged for so long. None: as long as it takes.

    Never under 0: from the moment it is told to end the trainer has its grace, however long the staging took.
    """
    return None if claim.max_runtime_s is None else max(0.0, claim.max_runtime_s - claim.ran_s - staged_s)


def trainer_command(host: Host) -> list[str]:
    return list(host.settings.trainer or (sys.executable, "-m", "fgd.train"))


def newest_whole(
    attempt: RunningAttempt, folder: Path, writer: EventWriter
) -> tuple[Path | None, tuple[attempts.SavedCheckpoint, ...]]:
    """The newest checkpoint whose bytes are whole, as a file, and those that are older; None: from the start."""
    older = list(attempt.claim.checkpoints)
    while older:
        saved = older.pop(0)
        stage = functools.partial(stage_checkpoint, attempt.host.store, saved.key, saved.sha256, folder)
        if file := attempt.with_store(f"checkpoint of step {saved.step}", stage):
            return file, tuple(older)
        writer.pass_over(saved.key, torn=True)
        what = "an older one is tried" if older else "no other is left, training starts from scratch"
        message = f"the checkpoint of step {saved.step} is damaged or missing; {what}"
        writer.add([Note(code="checkpoint_corrupt", message=message, data={"step": saved.step}, level="warning")])
    return None, ()


def settle(attempt: RunningAttempt, came: Verdict, files: list[attempts.ArtifactIn], exit: int | None) -> str:
    """The attempt's last write; the state the job is in then."""
    job, number = attempt.claim.job_id, attempt.claim.attempt

    def write(s: Session) -> str:
        reach("before_final_state" if isinstance(came, Succeeded) else "before_requeue")
        state = put(s)
        reach("requeue_uncommitted" if state == "queued" else "final_state_uncommitted")
        return state

    def put(s: Session) -> str:
        match came:
            case Succeeded(result):
                attempts.finish(s, job, number, files, result.weights_digest, exit=exit)
                return "succeeded"
            case AsAsked():
                return attempts.ended_as_requested(s, job, number, exit=exit)
            case HandedBack(reason):
                return attempts.requeue(s, job, number, reason, exit=exit)
            case Failure(code, message, data):
                return attempts.fail(s, job, number, code, message, data, exit=exit)

    attempt.lease.closing()
    try:
        state = attempt.insist(write)
    except Lost:
        if isinstance(came, Succeeded):
            keep_result(attempt, came.result)
        raise
    reach("after_requeue" if state == "queued" else "after_final_state")
    if state == "queued":
        ring(attempt.host.app, job)
    return state


def blame(error: Exception) -> Failure:
    """For what goes wrong around the trainer: the host's trouble may pass, anything else will come again."""
    logger.error("around the trainer: %s: %s", type(error).__name__, error)
    trouble = os_error_behind(error)
    if trouble is None:
        return Failure(FailureCode.protocol, f"{type(error).__name__}: {error}")
    if trouble.errno in DISK_FULL:
        return Failure(FailureCode.no_space, f"the worker's disk is full: {trouble}")
    return Failure(FailureCode.host_wedged, f"the worker's host failed: {type(trouble).__name__}: {trouble}")
