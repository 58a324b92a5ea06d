"""What the engine promises of a training, on a CUDA device: the same bytes, the processor's numbers, an honest end."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fgd.detector_specs import FCOS, DetectorSpec, FasterRCNN, RetinaNet
from fgd.detectors import Detector, build
from fgd.engine import device, weights
from fgd.engine.device import to_device
from fgd.engine.device_metrics import MIB
from fgd.engine.distill import Teacher
from fgd.engine.loop import run
from fgd.engine.rehearsal import rehearse
from fgd.errors import Stopped
from fgd.events import Event, Failed, Finished, Note, Saved, Started
from fgd.recipe import Recipe
from fgd.spec import JobSpec
from fgd.train import report
from fgd.types import Batch, Target
from tests.rounding import BF16, of_network

pytestmark = pytest.mark.gpu
Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
DEVICE = "cuda"
ON_IT = {"device": DEVICE, "threads": 1}
LAYERS, TERMS = 40, 4608
"""Convolutions in a row, and products a sum, of the networks here."""

FAMILIES: dict[str, DetectorSpec] = {
    "fcos": FCOS(fpn_channels=64, norm="group"),
    "retinanet": RetinaNet(fpn_channels=64, norm="group"),
    "faster_rcnn": FasterRCNN(fpn_channels=64, norm="group"),
}
"""Group norms do not magnify the rounding of coarse maps, as those of a small batch would."""


# --- trainings ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spec(make_spec: MakeSpec, teacher: Path) -> JobSpec:
    """A distillation with everything that has a state."""
    return make_spec(
        student={"backbone": "resnet18", "fpn_channels": 64},
        teacher={"path": str(teacher), "allow_unfit": True},
        methods=[{"kind": "fgd"}, {"kind": "mimic"}],
        schedule={"ema": {"decay": 0.9}, "batch_size": 2, "accumulate": 2, "checkpoint_steps": 2},
        resources=ON_IT,
    )


@pytest.fixture(scope="module")
def whole(train: Train, spec: JobSpec) -> Any:
    return train(spec)


@pytest.fixture(scope="module")
def cut(spec: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training that was stopped."""
    out, events = tmp_path_factory.mktemp("cut"), list[Event]()
    with pytest.raises(Stopped):
        run(spec, out, resume=None, emit=events.append, stop=lambda: any(isinstance(each, Saved) for each in events))
    return sorted((out / "checkpoints").iterdir())[-1]


def files(run: Any) -> dict[str, str]:
    (finished,) = run.of(Finished)
    return dict(finished.files)


def test_the_same_spec_gives_the_same_bytes(whole: Any, train: Train, spec: JobSpec) -> None:
    assert files(train(spec)) == files(whole)


def test_a_training_goes_on_from_its_checkpoint_to_the_same_bytes(
    whole: Any, train: Train, spec: JobSpec, cut: Path
) -> None:
    resumed = train(spec, resume=cut)
    assert 0 < resumed.of(Started)[0].step < whole.of(Finished)[0].step
    assert files(resumed) == files(whole)


def test_it_goes_on_on_a_host_without_a_gpu(whole: Any, train: Train, spec: JobSpec, cut: Path) -> None:
    resumed = train(spec.but(resources=spec.resources.but(device="cpu")), resume=cut)
    assert resumed.of(Finished)[0].step == whole.of(Finished)[0].step


def test_the_result_lies_on_no_device(whole: Any) -> None:
    detector = weights.load_detector(whole.result)
    assert {tensor.device.type for tensor in detector.module.state_dict().values()} == {"cpu"}


def test_with_the_teachers_cache_the_bytes_are_those_without(train: Train, make_spec: MakeSpec, teacher: Path) -> None:
    def trained(gib: float | None) -> Any:
        return train(
            make_spec(
                student={"backbone": "resnet18", "fpn_channels": 64},
                teacher={"path": str(teacher), "allow_unfit": True},
                methods=[{"kind": "fgd"}],
                schedule={"epochs": 3, "flip": "none", "evaluate_every": 3},
                resources={**ON_IT, "teacher_cache_gib": gib},
            )
        )

    without, kept = trained(None), trained(1.0)
    assert files(kept) == files(without)
    (told,) = (note for note in kept.of(Note) if note.code == "teacher_cache")
    assert told.data["hits"] > 0 or any(note.code == "teacher_cache_inexact" for note in kept.of(Note))


def test_a_rehearsal_measures_the_card(spec: JobSpec) -> None:
    measured = rehearse(spec, lambda _: None)
    assert measured.device == torch.cuda.get_device_name()
    assert measured.memory_peak_mb <= torch.cuda.max_memory_reserved() / MIB
    assert measured.s_per_step > 0


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Less of the card than a student, its gradients and the optimiser's moments take: about 180 MiB."""
    gc.collect()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 100 * MIB) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_a_card_that_is_too_small_ends_a_training_and_is_told_as_such(train: Train, make_spec: MakeSpec) -> None:
    told: list[Event] = []
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(make_spec(student={"backbone": "resnet18", "fpn_channels": 64}, resources=ON_IT))
    assert report(caught.value, told.append) == 1
    (event,) = told
    assert isinstance(event, Failed)
    assert event.code == "gpu_out_of_memory"


# --- the processor's numbers ----------------------------------------------------------------------------------


def apart(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().cpu(), wanted.detach().cpu()
    return float((found - wanted).norm() / wanted.norm())


def detector_of(family: str) -> Detector:
    torch.manual_seed(0)
    return build(Recipe(detector=FAMILIES[family], classes=("a", "b"), min_size=64, max_size=96))


@pytest.fixture
def batch() -> Batch:
    device.make_repeatable(torch.device(DEVICE))  # no TF32
    images_NCHW = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    boxes = ([[5.0, 8.0, 50.0, 60.0], [40.0, 20.0, 75.0, 62.0]], [[2.0, 2.0, 30.0, 40.0]])
    targets = tuple(Target(torch.tensor(each), torch.ones(len(each), dtype=torch.int64)) for each in boxes)
    sizes = ((64, 96),) * 2
    return Batch(images_NCHW, sizes, sizes, targets, (0, 1), ((False, False),) * 2)


def test_a_batch_arrives_as_it_was(batch: Batch) -> None:
    there = to_device(batch, torch.device(DEVICE))
    assert there.images_NCHW.device.type == DEVICE
    assert torch.equal(there.images_NCHW.cpu(), batch.images_NCHW)
    for ours, theirs in zip(there.targets, batch.targets, strict=True):
        assert torch.equal(ours.boxes_K4.cpu(), theirs.boxes_K4)
        assert torch.equal(ours.labels_K.cpu(), theirs.labels_K)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_maps_are_those_of_the_processor_within_rounding(family: str, batch: Batch) -> None:
    detector = detector_of(family).eval()
    with torch.no_grad():
        expected = detector.features(batch.images_NCHW)
        found = detector.to(DEVICE).features(batch.images_NCHW.to(DEVICE))
    for level, map_NCHW in expected.items():
        assert apart(found[level], map_NCHW) < of_network(LAYERS, TERMS)


@pytest.mark.parametrize("family", ["fcos", "retinanet"])  # Faster R-CNN draws the places of its losses at random
def test_losses_are_those_of_the_processor_within_rounding(family: str, batch: Batch) -> None:
    detector = detector_of(family).train()

    def losses(batch: Batch) -> dict[str, float]:
        found = detector.losses(detector.predict(detector.features(batch.images_NCHW), batch), batch)
        return {name: loss.item() for name, loss in found.items()}

    expected = losses(batch)
    detector.to(DEVICE)
    assert losses(to_device(batch, torch.device(DEVICE))) == pytest.approx(expected, rel=2 * of_network(LAYERS, TERMS))


needs_bf16 = pytest.mark.skipif(
    not (torch.cuda.is_available() and device.native_bf16(torch.device("cuda"))),
    reason="this card converts bf16 and does not multiply it",
)


@needs_bf16
@pytest.mark.parametrize("family", list(FAMILIES))
def test_in_bf16_maps_are_float32_and_near_and_gradients_are_finite(family: str, batch: Batch) -> None:
    detector = detector_of(family).to(DEVICE).train()
    there = to_device(batch, torch.device(DEVICE))
    exact = detector.features(there.images_NCHW)
    detector.bf16 = True
    found = detector.features(there.images_NCHW)
    for level, map_NCHW in found.items():
        assert map_NCHW.dtype == torch.float32
        assert not torch.equal(map_NCHW, exact[level]), "that was not bf16"
        assert apart(map_NCHW, exact[level]) < math.sqrt(3 * LAYERS) * BF16
    losses = detector.losses(detector.predict(found, there), there)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@needs_bf16
def test_a_teacher_in_bf16_shows_nearly_the_same(batch: Batch) -> None:
    detector = detector_of("fcos")
    teacher = Teacher(detector.to(DEVICE), detector.recipe)
    there = to_device(batch, torch.device(DEVICE))
    exact = teacher.shared_features(there)
    teacher.quicken()
    for level, map_NCHW in teacher.shared_features(there).items():
        assert map_NCHW.dtype == torch.float32
        assert 0 < apart(map_NCHW, exact[level]) < math.sqrt(3 * LAYERS) * BF16
