"""Two processes that share a training's batches, against one that has them all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError

from fgd.data import archive, coco
from fgd.data.digits import compose
from fgd.engine.launch import signal_of
from fgd.events import Evaluated, Event, Failed, Finished, Saved, Started, Stepped, from_line
from fgd.spec import JobSpec
from tests.rounding import of_network

pytestmark = [pytest.mark.slow, pytest.mark.long]
MakeSpec = Callable[..., JobSpec]
ROOT = Path(__file__).parents[3]
LIMIT_S = 240
ROUNDING = of_network(40, 4608)
"""Up to 40 convolutions in a row, at most 4608 products a sum."""


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of one size: a batch is padded alike however it is shared. Validated on what it is trained on, for
    an AP that is not 0."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    counts = {"train": 8, "val": 1, "test": 1}
    compose(folder, counts=counts, size=64, classes=("0", "7"), box_px=(24, 40), per_image=(1, 2))
    index, _, sources = coco.read(folder)
    train = index.splits["train"]
    tar, kept = folder.with_suffix(".tar"), folder.with_name("kept")
    twins = tuple(image.model_copy(update={"id": image.id + 100}) for image in train[:7])
    bare = tuple(
        image.model_copy(update={"id": image.id + 200, "boxes": (), "labels": (), "crowd": ()}) for image in train[:6]
    )
    splits = {"train": train, "val": twins, "unlabelled": bare}
    archive.pack(index.model_copy(update={"splits": splits}), sources, tar)
    archive.unpack(tar, kept)
    return kept


@pytest.fixture(scope="module", params=["retinanet", pytest.param("fcos", marks=pytest.mark.chaos)])
def begun(request: pytest.FixtureRequest, squares: Path, make_spec: MakeSpec, tmp_path_factory: Any) -> JobSpec:
    """A job that goes on with a trained student whose norms are frozen, in float32 and by SGD: with Adam one and two
    processes would part at the first gradient that is nothing but rounding (tests/rounding.py)."""
    out = tmp_path_factory.mktemp(request.param)
    student = {"kind": request.param, "backbone": "resnet18", "fpn_channels": 64}
    schedule = {"epochs": 40, "optimizer": {"kind": "adamw", "lr": 1e-3}, "evaluate_every": 40}
    run(make_spec(dataset={"path": str(squares)}, student=student, schedule=schedule), out)
    return make_spec(
        dataset={"path": str(squares)},
        student={**student, "weights": {"path": str(out / "result")}, "norm": "frozen"},
        schedule={
            "epochs": 10,
            "accumulate": 2,
            "precision": "float32",
            "evaluate_every": 10,
            "optimizer": {"kind": "sgd", "lr": 3e-3},
        },
    )


def shared_by_two(spec: JobSpec) -> JobSpec:
    return spec.but(resources=spec.resources.but(devices=2))


def start(spec: JobSpec, out: Path, *more: str) -> subprocess.Popen[bytes]:
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-P", "-m", "fgd.train", str(out / "spec.json"), "--out", str(out), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (out / "events").open("ab") as lines, (out / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=lines, stderr=log)


def events(out: Path) -> list[Event]:
    return [from_line(line) for line in (out / "events").read_bytes().splitlines()]


def run(spec: JobSpec, out: Path, *more: str) -> list[Event]:
    process = start(spec, out, *more)
    assert process.wait(LIMIT_S) == 0, (out / "log").read_text()
    return events(out)


def of(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.numeric
def test_two_processes_have_the_losses_of_one(begun: JobSpec, tmp_path: Path) -> None:
    """Of each of 10 steps, each of two accumulated batches, within the rounding of a network: half a batch may run
    through other kernels than a whole one. Gradients that are not shared show in the second step, twenty times as
    large."""
    alone, shared = run(begun, tmp_path / "alone"), run(shared_by_two(begun), tmp_path / "shared")
    losses = [[event.values for event in of(each, Stepped)] for each in (alone, shared)]
    assert len(losses[0]) == len(losses[1]) == 10
    for one, two in zip(*losses, strict=True):
        for name in (name for name in one if name.startswith("loss/")):
            assert two[name] == pytest.approx(one[name], rel=ROUNDING, abs=ROUNDING), name
    manifest = json.loads((tmp_path / "shared" / "result" / "manifest.json").read_text())
    assert manifest["machine"]["devices"] == 2


@pytest.mark.numeric
def test_two_processes_share_unlabelled_images_and_count_their_boxes_together(begun: JobSpec, tmp_path: Path) -> None:
    """Three for each in two batches of one and two, whose boxes the trained network finds. Of two steps: a gradient
    that is not shared shows in the second, and later a box may cross the score by rounding. The teacher has learned for
    longer: a student that equals it has its boxes at the very kink of their loss, where rounding turns the gradient."""
    run(begun.but(schedule=begun.schedule.but(epochs=5, evaluate_every=5)), tmp_path / "teacher")
    spec = begun.but(
        teacher={"path": str(tmp_path / "teacher/result")},
        methods=[{"kind": "mimic", "weight": 1e-4}],
        unlabelled={"pseudo_labels": True, "ratio": 0.75, "score": 0.3},
        schedule=begun.schedule.but(epochs=2, evaluate_every=2),
    )
    alone, shared = run(spec, tmp_path / "alone"), run(shared_by_two(spec), tmp_path / "shared")
    losses = [[event.values for event in of(each, Stepped)] for each in (alone, shared)]
    assert losses[0][0]["unlabelled/boxes_per_image"] >= 0.5
    for one, two in zip(*losses, strict=True):
        for name in (name for name in one if name.startswith("loss/")):
            assert two[name] == pytest.approx(one[name], rel=ROUNDING, abs=ROUNDING), name


needs_two_cards = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")


@pytest.fixture
def on_cards(squares: Path, make_spec: MakeSpec) -> JobSpec:
    """From scratch, with norms that are each image's own, by SGD."""
    schedule = {"epochs": 5, "accumulate": 2, "precision": "float32", "evaluate_every": 5}
    return make_spec(
        dataset={"path": str(squares)},
        student={"kind": "retinanet", "backbone": "resnet18", "fpn_channels": 64, "norm": "group"},
        schedule=schedule | {"optimizer": {"kind": "sgd", "lr": 3e-3}},
        resources={"device": "cuda", "threads": 1},
    )


@pytest.mark.gpu
@needs_two_cards
def test_two_cards_have_the_losses_of_one(on_cards: JobSpec, tmp_path: Path) -> None:
    """Over NCCL, within the rounding of a network."""
    alone, shared = run(on_cards, tmp_path / "alone"), run(shared_by_two(on_cards), tmp_path / "shared")
    losses = [[event.values for event in of(each, Stepped)] for each in (alone, shared)]
    assert len(losses[0]) == len(losses[1]) == 5
    for one, two in zip(*losses, strict=True):
        for name in (name for name in one if name.startswith("loss/")):
            assert two[name] == pytest.approx(one[name], rel=ROUNDING, abs=ROUNDING), name
    assert of(shared, Evaluated)


@pytest.mark.gpu
@needs_two_cards
def test_two_cards_told_to_end_save_and_leave(on_cards: JobSpec, tmp_path: Path) -> None:
    process = start(shared_by_two(on_cards.but(schedule=on_cards.schedule.but(epochs=10_000))), tmp_path)
    wait_for(tmp_path, Stepped, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, (tmp_path / "log").read_text()
    assert of(events(tmp_path), Saved)


def test_an_evaluation_shared_out_has_the_figures_of_one_process(begun: JobSpec, tmp_path: Path) -> None:
    still = begun.but(schedule=begun.schedule.but(epochs=1, optimizer=begun.schedule.optimizer.but(lr=1e-30)))
    alone, shared = run(still, tmp_path / "alone"), run(shared_by_two(still), tmp_path / "shared")
    (one,), (two,) = of(alone, Evaluated), of(shared, Evaluated)
    assert one.values == two.values, "the same batches, each whole in one of the processes"
    assert one.values["ap50"] > 5.0


SCORE = """
import sys
from pathlib import Path
import torch
from torch import distributed
from fgd.data.formats import open_index
from fgd.data.transforms import Transform
from fgd.detectors import build
from fgd.recipe import Recipe
from fgd.engine.distributed import Ranks, leave
from fgd.engine.evaluate import evaluate
from fgd.engine.prepare import open_split
from fgd.errors import Stopped
from fgd.spec import JobSpec

rank, file, meet = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
spec = JobSpec.model_validate_json(file.read_text())
distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
index, root = open_index(Path(spec.dataset.path))
recipe = Recipe(detector=spec.student, classes=index.classes, min_size=64, max_size=64)
transform = Transform(64, 64, recipe.image_mean, recipe.image_std)

def check() -> None:
    if rank == 1:
        raise Stopped("asked to stop")

try:
    val, device = open_split(index, root, "val"), torch.device("cpu")
    evaluate(build(recipe), val, transform, batch_size=2, device=device, check_stop=check, ranks=Ranks(rank, 2))
except Stopped:
    distributed.barrier()  # as the loop does when it has saved
    leave()
    sys.exit(75)
"""


def test_an_evaluation_that_one_process_is_stopped_in_ends_for_both(
    squares: Path, make_spec: MakeSpec, tmp_path: Path
) -> None:
    """One that ended alone would leave the other waiting for its share, and it could not save."""
    student = {"kind": "fcos", "backbone": "mobilenet_v3_small", "fpn_channels": 64}
    (tmp_path / "spec.json").write_text(make_spec(dataset={"path": str(squares)}, student=student).model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-P", "-c", SCORE]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "spec.json"), str(tmp_path / "meet")], env=environment)
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(60) for process in both] == [75, 75]
    finally:
        for process in both:
            process.kill()


LAUNCH = """
import os, signal, sys
from fgd.engine.launch import launch
told = {"before": lambda: True, "now": lambda: bool(os.kill(os.getpid(), signal.SIGTERM))}[sys.argv[1]]
sys.exit(launch(["spec.json"], 2, print, told))
"""


@pytest.mark.parametrize("when", ["before", "now"])
def test_an_end_asked_for_before_torchrun_listens_is_heard(when: str, tmp_path: Path) -> None:
    """It was lost, and the training went on until it was killed."""
    command = [sys.executable, "-P", "-c", LAUNCH, when]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=environment, cwd=tmp_path, timeout=60).returncode == 75


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "fgd.train" in child.cmdline()]


def wait_for(out: Path, kind: type[Any], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + LIMIT_S
    while not of(events(out), kind):
        assert process.poll() is None, (out / "log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def long_job(squares: Path, make_spec: MakeSpec) -> JobSpec:
    return shared_by_two(
        make_spec(
            dataset={"path": str(squares)},
            student={"kind": "fcos", "backbone": "mobilenet_v3_small", "fpn_channels": 64},
            schedule={"epochs": 12, "evaluate_every": 6, "ema": {"decay": 0.9}},
        )
    )


def test_a_rank_that_dies_takes_all_along(long_job: JobSpec, tmp_path: Path) -> None:
    process = start(long_job.but(schedule=long_job.schedule.but(epochs=10_000)), tmp_path)
    wait_for(tmp_path, Stepped, process)
    first, second = ranks_of(process)
    second.kill()
    assert process.wait(60) == -signal.SIGKILL, "told as what it was"
    assert not first.is_running()
    assert not second.is_running()
    assert not of(events(tmp_path), Failed), "what the others say of a lost neighbour is not the reason"


def test_a_leader_that_dies_leaves_no_rank(long_job: JobSpec, tmp_path: Path) -> None:
    process = start(long_job.but(schedule=long_job.schedule.but(epochs=10_000)), tmp_path)
    wait_for(tmp_path, Started, process)
    ranks = ranks_of(process)
    process.kill()
    process.wait()
    psutil.wait_procs(ranks, timeout=20)
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)


def test_two_processes_told_to_end_go_on_to_the_same_bytes(long_job: JobSpec, tmp_path: Path) -> None:
    whole = run(long_job, tmp_path / "whole")
    out = tmp_path / "cut"
    process = start(long_job, out)
    wait_for(out, Stepped, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, (out / "log").read_text()
    saved = of(events(out), Saved)[-1]
    assert saved.step < 24, "it was told in time"
    resumed = run(long_job, out, "--resume", saved.path)
    # The same steps of the same values, and two processes add their gradients in one order.
    assert of(resumed, Finished)[0].weights_digest == of(whole, Finished)[0].weights_digest


def test_what_one_rank_refuses_is_told_once(long_job: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    process = start(long_job.but(dataset={"path": str(tmp_path / "nothing")}), tmp_path / "out")
    assert process.wait(LIMIT_S) == 1
    (failed,) = of(events(tmp_path / "out"), Failed)
    assert failed.code == "user_error"
    assert "nothing" in failed.message


@pytest.mark.parametrize(
    ("codes", "number"), [([1, -15], None), ([-9, 1], 9), ([-15, -11], 11), ([-15, -15], 15), ([1, 1], None)]
)
def test_the_neighbour_that_torchrun_ends_is_not_taken_for_the_one_that_failed(
    codes: list[int], number: int | None
) -> None:
    assert signal_of(codes) == number


def test_devices_must_share_a_batch_equally(make_spec: MakeSpec) -> None:
    with pytest.raises(ValidationError, match=r"schedule\.batch_size 4 cannot be shared equally by 3 devices"):
        make_spec(resources={"devices": 3})
