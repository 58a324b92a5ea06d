"""A training that keeps its teacher's maps ends with the bytes of one that does not, however full the cache gets.

That the bits of an image's maps do not depend on its batch is no promise of any library: it holds for oneDNN's kernels
on some processors, and is tried by the cache itself. Which maps are read is therefore shown on a teacher that runs
image by image, for which it holds by construction; on torch's own batches only that the bits are right, read or not.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fgd.data.loader import Dataset, train_batches
from fgd.data.transforms import Sample, Transform, flip
from fgd.detector_specs import FCOS
from fgd.detectors import build
from fgd.engine.device import to_device
from fgd.engine.distill import Teacher
from fgd.engine.loop import run
from fgd.engine.teacher_answers import FOLDER
from fgd.engine.teacher_cache import TeacherCache, equal, part
from fgd.errors import Stopped
from fgd.events import Event, Finished, Note, Saved, Stepped
from fgd.recipe import Recipe
from fgd.spec import JobSpec
from fgd.text.pointers import faults_of_spec
from fgd.types import Batch

MakeSpec = Callable[..., JobSpec]
PLENTY = 2**30
pytestmark = pytest.mark.numeric


@pytest.fixture
def distilled(make_spec: MakeSpec, teacher: Path) -> Callable[..., JobSpec]:
    def distilled(gib: float | None, **schedule: Any) -> JobSpec:
        return make_spec(
            teacher={"path": str(teacher), "allow_unfit": True},
            methods=[{"kind": "fgd"}],
            schedule={
                "epochs": 3,
                "flip": "horizontal",
                "evaluate_every": 3,
                "checkpoint_steps": 2,
            }
            | schedule,
            resources={"device": "cpu", "threads": 1, "teacher_cache_gib": gib},
        )

    return distilled


def files(run: Any) -> dict[str, str]:
    (finished,) = run.of(Finished)
    return dict(finished.files)


def shares(run: Any) -> list[float]:
    return [event.values["teacher/cache_hits"] for event in run.of(Stepped)]


@pytest.mark.long
def test_with_the_cache_and_interrupted_with_it_the_bytes_are_those_without(
    distilled: Callable[..., JobSpec], train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "known"))  # the teacher is checked once and not three times
    without, kept = (train(distilled(gib)) for gib in (None, 1.0))
    events: list[Event] = []

    def saved() -> bool:
        return any(isinstance(event, Saved) for event in events)

    with pytest.raises(Stopped):
        run(distilled(1.0), tmp_path, resume=None, emit=events.append, stop=saved)
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    resumed = train(distilled(1.0), resume=checkpoint)
    assert files(kept) == files(without) == files(resumed)
    assert losses(kept) == losses(without)
    (told,) = (note for note in kept.of(Note) if note.code == "teacher_cache")
    if not any(note.code == "teacher_cache_inexact" for note in kept.of(Note)):
        assert max(shares(kept)) > 0, "nothing was read: this proves nothing"
        assert max(shares(resumed)) > 0
        assert 0 < told.data["hits"] < 1
    assert told.data["bytes"] > 0
    assert {each.name for each in kept.out.iterdir()} == {"checkpoints", "focus", "result"}, "its file has no name"
    assert not [note for note in without.of(Note) if note.code.startswith("teacher_cache")]
    assert all("teacher/cache_hits" not in event.values for event in without.of(Stepped))


def losses(run: Any) -> dict[int, float]:
    return {e.step: e.values["epoch/loss/total"] for e in run.of(Stepped) if "epoch/loss/total" in e.values}


# --- which maps are read, and which computed ---------------------------------------------------------------------


class OneByOne(Teacher):
    """Runs image by image: no bit of an image's maps depends on the others of its batch."""

    def shared_features(self, batch: Batch) -> dict[str, Tensor]:
        alone = [super(OneByOne, self).shared_features(part(batch, [n])) for n in range(len(batch.image_ids))]
        return {level: torch.cat([maps[level] for maps in alone]) for level in alone[0]}


def drawn(kind: type[Teacher], dtype: torch.dtype, device: str = "cpu") -> Teacher:
    """Random weights: what of a map's bits depends on a batch shows with them as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        recipe = Recipe(detector=FCOS(backbone="resnet18", fpn_channels=64), classes=("0",), min_size=64, max_size=96)
        teacher = kind(build(recipe).to(device), recipe)
    if dtype == torch.bfloat16:
        teacher.quicken()
    return teacher


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def shown(request: pytest.FixtureRequest) -> Teacher:
    return drawn(OneByOne, request.param)


class Ran:
    """How many images the teacher ran on, call by call."""

    def __init__(self, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[int] = []
        whole = teacher.shared_features

        def counting(batch: Batch) -> dict[str, Tensor]:
            self.images.append(len(batch.image_ids))
            return whole(batch)

        monkeypatch.setattr(teacher, "shared_features", counting)

    def since(self) -> list[int]:
        images, self.images = self.images, []
        return images


def batch_of(*ids: int, horizontal: bool = False, sizes: tuple[tuple[int, int], ...] = ((64, 96),)) -> Batch:
    samples = []
    for n, image_id in enumerate(ids):
        pixels_CHW = torch.empty((3, *sizes[n % len(sizes)]), dtype=torch.uint8)
        pixels_CHW.random_(generator=torch.Generator().manual_seed(image_id))
        sample = Sample(image_id, pixels_CHW, torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64))
        samples.append(flip(sample, horizontal=horizontal, vertical=False))
    return Transform(64, 96)(samples)


def same_as(teacher: Teacher, maps: dict[str, Tensor], batch: Batch) -> bool:
    computed = type(teacher).shared_features(teacher, batch)
    return list(maps) == list(computed) and all(equal(maps[level], each) for level, each in computed.items())


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def cached(shown: Teacher, tmp_path: Path, events: list[Event]) -> Iterator[Callable[..., TeacherCache]]:
    with contextlib.ExitStack() as opened:

        def cached(max_bytes: int = PLENTY, keep_free: int = 0) -> TeacherCache:
            cache = TeacherCache(shown, tmp_path, max_bytes=max_bytes, keep_free=keep_free, emit=events.append)
            opened.callback(cache.close)
            return cache

        yield cached


@pytest.fixture
def cache(cached: Callable[..., TeacherCache]) -> TeacherCache:
    return cached()


def test_what_is_not_kept_is_computed_alone_once_that_was_tried(
    shown: Teacher, cache: TeacherCache, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    ran = Ran(shown, monkeypatch)
    for number, (ids, expected) in enumerate(
        [
            ((1, 2, 3, 4), [4]),
            ((4, 1, 5, 3), [4, 4, 2]),  # three are kept: tried on a turned batch, and on two images
            ((6, 5, 1, 2), [2]),  # one of them is there, and keeps the other company
            ((2, 3, 6, 1), [4]),  # nothing lacks, and turning was tried
            ((6, 4, 3, 5), []),
            ((7, 2, 8, 5), [2]),
            ((9, 5, 11, 10), [4, 3]),
            ((12, 5, 13, 14), [3]),
        ]
    ):
        maps = cache.shared_features(batch_of(*ids))
        assert ran.since() == expected, number
        assert same_as(shown, maps, batch_of(*ids)), number
    assert events == []
    assert cache.figures()["teacher/cache_hits"] == pytest.approx((2 + 4 + 2 + 1) / 32)
    assert cache.figures()["teacher/cache_hits"] == 0, "nothing since"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_whatever_the_library_makes_of_a_batch_the_bits_are_its_own(
    dtype: torch.dtype, device: str, tmp_path: Path, events: list[Event]
) -> None:
    teacher = drawn(Teacher, dtype, device)
    cache = TeacherCache(teacher, tmp_path, max_bytes=PLENTY, keep_free=0, emit=events.append)
    for ids in ((1, 2, 3, 4), (4, 1, 5, 3), (6, 5, 1, 2), (2, 3, 6, 1), (6, 4, 3, 5), (7, 2, 8, 5), (5, 2)):
        batch = to_device(batch_of(*ids), torch.device(device))
        assert same_as(teacher, cache.shared_features(batch), batch)
    cache.close()
    assert cache.read > 0 or [each.code for each in events if isinstance(each, Note)] == ["teacher_cache_inexact"]


def test_flips_and_paddings_are_entries_of_their_own(
    shown: Teacher, cache: TeacherCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [
        batch_of(1, 2),
        batch_of(1, 2, horizontal=True),
        batch_of(1, 2, sizes=((64, 64), (64, 96))),  # 1 is padded to the width of 2
        batch_of(1, 2, sizes=((64, 64),)),
    ]
    assert len({batch.padded_size for batch in batches}) == 2
    for batch in batches[:2] + batches[3:]:
        cache.shared_features(batch)
    assert len(cache.entries) == 6
    cache.shared_features(batches[2])
    assert len(cache.entries) == 7, "image 2 was there"
    for batch in batches * 2:
        assert same_as(shown, cache.shared_features(batch), batch)
    assert len(cache.entries) == 7
    ran = Ran(shown, monkeypatch)
    for batch in batches:
        cache.shared_features(batch)
    assert ran.since() == []


def test_bf16_maps_take_half_the_room(shown: Teacher, cache: TeacherCache) -> None:
    maps = cache.shared_features(batch_of(1))
    of = {level: map_NCHW.nbytes for level, map_NCHW in maps.items()}
    whole, coarse = sum(of.values()), of["p6"] + of["p7"]
    expected = whole if shown.dtype == torch.float32 else (whole - coarse) / 2 + coarse
    assert cache.file.end == pytest.approx(expected, abs=8 * len(of))


def test_a_full_cache_forgets_nothing_and_takes_no_more(
    shown: Teacher, cached: Callable[..., TeacherCache], events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = cached()
    probe.shared_features(batch_of(1))
    cache = cached(max_bytes=2 * probe.file.end + 9)
    for ids in ((1, 2), (3, 4), (2, 1), (4, 3), (2, 1)):
        assert same_as(shown, cache.shared_features(batch_of(*ids)), batch_of(*ids))
    ran = Ran(shown, monkeypatch)
    cache.shared_features(batch_of(2, 1))
    cache.shared_features(batch_of(3, 4))
    assert ran.since() == [2]
    assert cache.file.end <= cache.file.max_bytes
    (note,) = events
    assert isinstance(note, Note)
    assert (note.code, note.level, note.data["images"]) == ("teacher_cache_full", "info", 2)


def test_the_disk_keeps_room_for_checkpoints(
    shown: Teacher, cached: Callable[..., TeacherCache], events: list[Event]
) -> None:
    cache = cached(keep_free=2**60)
    for _ in range(2):
        assert same_as(shown, cache.shared_features(batch_of(1, 2)), batch_of(1, 2))
    assert [(note.code, "left" in note.message) for note in events if isinstance(note, Note)] == [
        ("teacher_cache_full", True)
    ]


def test_a_disk_that_fills_up_ends_the_growth_and_not_the_training(
    shown: Teacher, cache: TeacherCache, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.shared_features(batch_of(1, 2))
    size, real = cache.file.end, os.pwrite

    def full_after_a_part(fd: int, data: memoryview, place: int) -> int:
        if place > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:100], place)

    monkeypatch.setattr(os, "pwrite", full_after_a_part)
    for ids in ((1, 3), (2, 1), (2, 1), (3, 2)):
        assert same_as(shown, cache.shared_features(batch_of(*ids)), batch_of(*ids))
    assert [note.code for note in events if isinstance(note, Note)] == ["teacher_cache_stopped"]
    assert os.fstat(cache.file.file.fileno()).st_size == size, "what was half written is given back"
    assert cache.read > 0


def test_a_file_that_cannot_be_read_any_more_is_left_alone(
    shown: Teacher, cache: TeacherCache, events: list[Event]
) -> None:
    for ids in ((1, 2), (2, 1), (1, 2)):
        cache.shared_features(batch_of(*ids))
    os.ftruncate(cache.file.file.fileno(), 10)
    for ids in ((1, 2), (2, 1)):
        assert same_as(shown, cache.shared_features(batch_of(*ids)), batch_of(*ids))
    assert [(note.code, note.level) for note in events if isinstance(note, Note)] == [
        ("teacher_cache_stopped", "warning")
    ]


@pytest.mark.parametrize("depends_on", ["place", "number"])
def test_a_library_whose_bits_depend_on_the_batch_is_found_out(
    shown: Teacher, cache: TeacherCache, monkeypatch: pytest.MonkeyPatch, events: list[Event], depends_on: str
) -> None:
    whole = shown.shared_features

    def depending(batch: Batch) -> dict[str, Tensor]:
        maps = whole(batch)
        if depends_on == "place":
            maps["p5"][0, 0, 0, 0] += 2**-10
        else:
            maps["p5"][:, 0, 0, 0] += len(batch.image_ids) * 2**-10
        return maps

    monkeypatch.setattr(shown, "shared_features", depending)
    for ids in ((1, 2, 3), (3, 1, 2), (2, 3, 1), (4, 1, 2), (5, 4, 3), (1, 6, 5)):
        maps, computed = cache.shared_features(batch_of(*ids)), depending(batch_of(*ids))
        assert all(equal(maps[level], each) for level, each in computed.items())
    codes = {note.code for note in events if isinstance(note, Note)}
    assert codes == {"teacher_cache_inexact"}
    assert cache.read == (0 if depends_on == "place" else 3), "the batch of which nothing lacked is exact"


def test_the_training_batches_tell_how_they_were_flipped(make_spec: MakeSpec) -> None:
    spec = make_spec(schedule={"flip": "both", "batch_size": 12})
    for batch, plain in zip(
        one_epoch(spec), one_epoch(make_spec(schedule={"flip": "none", "batch_size": 12})), strict=True
    ):
        assert len(set(batch.flips)) == 4
        assert set(plain.flips) == {(False, False)}
        for n, (horizontal, vertical) in enumerate(batch.flips):
            dims = [dim for dim, flipped in ((2, horizontal), (1, vertical)) if flipped]
            assert torch.equal(batch.images_NCHW[n], plain.images_NCHW[n].flip(dims))
        assert part(batch, [3, 1]).flips == (batch.flips[3], batch.flips[1])


def one_epoch(spec: JobSpec) -> Iterator[Batch]:
    from fgd.data.formats import open_index
    from fgd.spec_fields import FromPath

    assert isinstance(spec.dataset, FromPath)
    index, root = open_index(Path(spec.dataset.path))
    return train_batches(Dataset(index, "train", root), Transform(64, 64), spec.schedule, 3, 0)


# --- what can be asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        ({"augment": {"crop": {}}}, "schedule.augment.crop"),
        ({"augment": {"photometric": {"hue": 0.1}}}, "schedule.augment.photometric"),
        ({"scales": [64, 96]}, "schedule.scales"),
    ],
)
def test_pixels_that_never_come_back_are_refused(
    distilled: Callable[..., JobSpec], schedule: dict[str, Any], named: str
) -> None:
    body = distilled(None, **schedule).model_dump(mode="json")
    body["resources"]["teacher_cache_gib"] = 2.0
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    (fault,) = faults_of_spec(caught.value.errors(), body)
    assert (fault.pointer, fault.code) == ("/resources/teacher_cache_gib", "cannot_be_cached")
    assert named in fault.detail


@pytest.mark.parametrize("gib", [0, -1, 10**6, "8", True])
def test_its_bound_is_some_gib(distilled: Callable[..., JobSpec], gib: object) -> None:
    body = distilled(None).model_dump(mode="json")
    body["resources"]["teacher_cache_gib"] = gib
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    assert [fault.pointer for fault in faults_of_spec(caught.value.errors(), body)] == ["/resources/teacher_cache_gib"]
