"""Figures of the device that come with each report of a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fgd.engine.checkpoint import TrainingState
from fgd.engine.device import Machine
from fgd.engine.device_metrics import MIB, DeviceMetrics, busy_s, resident_peak
from fgd.engine.meter import Meter
from fgd.events import Stepped
from fgd.spec import JobSpec

CPU = Machine(torch.device("cpu"), "cpu", threads=2, bf16=False)
FIGURES = {"images_per_s", "device/memory_peak_mb", "device/utilisation", "data/wait_share"}


def test_the_memory_peak_follows_an_allocation_and_stays() -> None:
    blur = 4 * MIB  # the kernel counts pages for each processor and adds them up now and then
    held = psutil.Process().memory_info().rss
    block = torch.ones(80 * MIB // 4)
    assert resident_peak() >= held + block.nbytes - blur
    del block
    assert resident_peak() >= held + 80 * MIB - blur
    assert DeviceMetrics(CPU).memory_peak_mb() == pytest.approx(resident_peak() / MIB, rel=0.05)


def test_utilisation_is_of_the_threads_of_the_training() -> None:
    gauge = DeviceMetrics(CPU)
    assert gauge.utilisation(busy_s=1.0, elapsed_s=1.0) == 50.0
    assert gauge.utilisation(busy_s=0.0, elapsed_s=1.0) == 0.0
    assert gauge.utilisation(busy_s=0.0, elapsed_s=0.0) is None


def meter(events: list[Any]) -> Meter:
    return Meter(TrainingState(), events.append, 4, DeviceMetrics(CPU))


def slow(batches: int, seconds: float) -> Iterator[Any]:
    for number in range(batches):
        time.sleep(seconds)
        yield number


def test_the_share_of_waiting_is_that_of_the_window() -> None:
    events: list[Any] = []
    ours = meter(events)
    assert list(ours.waiting(slow(2, 0.05))) == [0, 1]  # type: ignore[comparison-overlap]
    time.sleep(0.1)
    ours.add({"detection/a": 1.0}, 0.1, 1, last_of_epoch=True)
    ours.add({"detection/a": 1.0}, 0.1, 2, last_of_epoch=True)
    first, second = (event.values["data/wait_share"] for event in events)
    assert 0.1 < first < 0.9
    assert second == 0.0


def test_a_pause_counts_neither_time_nor_work() -> None:
    events: list[Any] = []
    ours = meter(events)
    with ours.pause():
        until = busy_s() + 0.3
        while busy_s() < until:  # hard work that is not the steps'
            torch.ones(100_000).sum()
    time.sleep(0.2)
    ours.add({"detection/a": 1.0}, 0.1, 1, last_of_epoch=True)
    (event,) = events
    assert event.values["device/utilisation"] < 40
    assert 0.5 < event.values["images_per_s"] < 21, "four in 0.2 s, or more on a busy machine"


@pytest.mark.slow
def test_a_training_reports_them(train: Callable[..., Any], make_spec: Callable[..., JobSpec]) -> None:
    for event in train(make_spec(schedule={"epochs": 1})).of(Stepped):
        assert event.values.keys() >= FIGURES
        assert event.values["device/memory_peak_mb"] > 100, "torch alone is larger"
        assert 0 < event.values["device/utilisation"] < 400
        assert 0 <= event.values["data/wait_share"] < 1


@pytest.mark.gpu
def test_a_training_on_a_gpu_reports_the_cards(
    train: Callable[..., Any], make_spec: Callable[..., JobSpec], teacher: Path
) -> None:
    run = train(
        make_spec(
            student={"backbone": "resnet18", "fpn_channels": 64}, schedule={"epochs": 3}, resources={"device": "cuda"}
        )
    )
    events = run.of(Stepped)
    assert events
    for event in events:
        assert 1 < event.values["device/memory_peak_mb"] <= torch.cuda.max_memory_reserved() / MIB
        assert 0 <= event.values.get("device/utilisation", 0.0) <= 100
        assert event.values.keys() >= FIGURES - {"device/utilisation"}
