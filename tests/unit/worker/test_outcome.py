from __future__ import annotations

import signal

import pytest

from api.core.lifecycle import FailureCode
from fgd.events import Failed, Finished
from worker.outcome import AsAsked, EndCause, Failure, HandedBack, Succeeded, TrainerEnd, verdict

RESULT = Finished(step=10, folder="/out/result", files={}, weights_digest="0" * 64)


def failure(end: TrainerEnd) -> Failure:
    came = verdict(end)
    assert isinstance(came, Failure)
    return came


@pytest.mark.parametrize("ended", list(EndCause))
def test_finished_training_is_a_success_whatever_was_asked_meanwhile(ended: EndCause) -> None:
    assert verdict(TrainerEnd(0, ended, RESULT)) == Succeeded(RESULT)


@pytest.mark.parametrize("code", [75, -signal.SIGKILL, -signal.SIGTERM, 1, None])
@pytest.mark.parametrize("ended", [EndCause.cancelled, EndCause.paused])
def test_trainer_ended_for_a_person_is_as_asked_however_it_went(code: int | None, ended: EndCause) -> None:
    assert verdict(TrainerEnd(code, ended)) == AsAsked()


@pytest.mark.parametrize("code", [75, -signal.SIGKILL])
def test_trainer_ended_for_a_shutdown_is_handed_back(code: int) -> None:
    assert isinstance(verdict(TrainerEnd(code, EndCause.worker_stops)), HandedBack)


def test_exit_75_that_nobody_asked_for_is_handed_back() -> None:
    assert isinstance(verdict(TrainerEnd(75)), HandedBack)


def test_killed_stalled_trainer_is_stalled_and_may_be_tried_again() -> None:
    assert failure(TrainerEnd(-9, EndCause.stalled)).code.retryable


@pytest.mark.parametrize("code", [75, -signal.SIGKILL])
def test_trainer_that_used_up_its_time_is_preempted_for_good(code: int) -> None:
    came = failure(TrainerEnd(code, EndCause.out_of_time))
    assert came.code == FailureCode.preempted
    assert not came.code.retryable
    assert "max_runtime_s" in came.message


def test_what_survives_sigkill_makes_the_host_suspect() -> None:
    assert failure(TrainerEnd(None, EndCause.survived_kill)).code == FailureCode.host_wedged


def test_failed_event_brings_its_code_message_and_data() -> None:
    came = failure(TrainerEnd(1, last=Failed(code="teacher_unfit", message="AP50 is 1.2", data={"ap50": 1.2})))
    assert (came.code, came.message, came.data) == (FailureCode.teacher_unfit, "AP50 is 1.2", {"ap50": 1.2})


def test_code_of_a_newer_trainer_is_a_protocol_failure() -> None:
    assert failure(TrainerEnd(1, last=Failed(code="from_the_future", message="?"))).code == FailureCode.protocol


def test_exit_0_without_a_result_is_a_protocol_failure() -> None:
    assert failure(TrainerEnd(0)).code == FailureCode.protocol


def test_result_of_a_trainer_that_crashed_after_it_is_not_believed() -> None:
    assert failure(TrainerEnd(-signal.SIGSEGV, last=RESULT)).code == FailureCode.trainer_killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, 64])
def test_signal_is_named_and_may_be_tried_again(number: int) -> None:
    came = failure(TrainerEnd(-number))
    assert came.code == FailureCode.trainer_killed
    assert came.code.retryable
    assert came.data == {"signal": number}


def test_sigkill_by_the_kernel_for_memory_is_not_tried_again() -> None:
    came = failure(TrainerEnd(-signal.SIGKILL, oom_kills=1))
    assert came.code == FailureCode.host_out_of_memory
    assert not came.code.retryable


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", FailureCode.gpu_out_of_memory),
        ("RuntimeError: CUDA out of memory.\n", FailureCode.gpu_out_of_memory),
        ("Traceback ...\nMemoryError\n", FailureCode.host_out_of_memory),
        ("terminate called after throwing an instance of 'std::bad_alloc'", FailureCode.host_out_of_memory),
        ("OSError: [Errno 28] No space left on device: '/x'", FailureCode.no_space),
        ("Traceback ...\nKeyError: 'x'", FailureCode.protocol),
        ("", FailureCode.protocol),
    ],
)
def test_log_gives_the_reason_away(tail: str, code: FailureCode) -> None:
    assert failure(TrainerEnd(1, tail=f"before\n{tail}")).code == code


def test_line_that_gave_it_away_is_kept() -> None:
    came = failure(TrainerEnd(1, tail="one\nOSError: [Errno 28] No space left on device: '/x'\nthree"))
    assert came.data == {"log": "OSError: [Errno 28] No space left on device: '/x'"}


def test_log_of_a_run_that_was_warned_and_recovered_is_not_held_against_it() -> None:
    assert verdict(TrainerEnd(0, last=RESULT, tail="CUDA out of memory; retried")) == Succeeded(RESULT)


def test_unknown_exit_tells_its_last_line() -> None:
    assert "KeyError: 'x'" in failure(TrainerEnd(3, tail="Traceback\nKeyError: 'x'\n")).message
