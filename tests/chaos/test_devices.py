"""F16: a job on two devices of one host, through the whole service, and a rank or its worker killed in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.e2e.parts import processes_of, until
from tests.e2e.test_real_training import PATIENT_S, SCHEDULE, Real, real_in

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
PAIR = {"threads": 1, "devices": 2}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with real_in(tmp_path_factory.mktemp("devices"), FGD_SLOTS="2") as real:
        yield real


def submit(real: Real, **more: Any) -> str:
    return real.submit(resources=PAIR, schedule=SCHEDULE | {"epochs": 8}, **more)


@pytest.fixture(scope="module")
def unbroken(real: Real) -> str:
    return str(real.done(submit(real))["weights_digest"])


def ranks(real: Real) -> list[int]:
    found = []
    for pid, command in processes_of(real.service.home).items():
        if "fgd.train" in command and "RANK" in psutil.Process(pid).environ():
            found.append(pid)
    return found


@pytest.mark.parametrize("part", ["a rank", "the worker"])
def test_f16_a_job_of_two_devices_survives_the_death_of(real: Real, unbroken: str, part: str) -> None:
    job = submit(real)
    until(lambda: (real.service.job(job)["progress"] or {}).get("step", 0) >= 3, PATIENT_S, "step 3")
    first = ranks(real)
    assert len(first) == 2
    os.kill(first[1] if part == "a rank" else real.service.pid("-m worker"), signal.SIGKILL)
    until(lambda: not any(psutil.pid_exists(pid) for pid in first), 60, "the end of every rank")
    view = real.done(job)
    assert view["attempt"] == 2
    assert view["weights_digest"] == unbroken
    attempts = real.get(f"/v1/jobs/{job}/events?limit=200")["items"]
    story = [event["type"] for event in attempts]
    assert story.count("succeeded") == 1
    assert story.count("attempt_lost") == 1
    if part == "a rank":
        assert "SIGKILL" in str(attempts[story.index("attempt_lost")])
    assert not ranks(real)


def test_jobs_of_one_and_two_devices_share_a_host(real: Real, unbroken: str) -> None:
    small = [real.submit(seed=n, resources={"threads": 1}) for n in (1, 2)]
    pair = submit(real)
    assert "slots in use" in str(real.service.job(pair)["waiting_reason"])
    for job in small:
        real.done(job)
    assert real.done(pair)["weights_digest"] == unbroken
