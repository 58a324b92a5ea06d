"""What a training shows of its methods: which images, when, in how many bytes; and that nothing is changed by it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow

from fgd.data.index import Image
from fgd.engine.focus import Shown, chosen_images, file_of, how_many, in_eval_mode, is_shown, quantised
from fgd.events import Evaluated, Finished, Focused, Note, Saved
from fgd.focus_files import MAX_BYTES, unpacked, values
from fgd.methods.fgd import FGDLoss
from fgd.methods.focus import Focus
from fgd.spec import JobSpec

Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]
METHODS = [{"kind": "fgd"}, {"kind": "frs"}, {"kind": "fgfi"}, {"kind": "pkd"}]
FILE = {
    "photos.json.gz": {"format": "fgd-photos/1", "split": "val"},
    "step": {"format": "fgd-focus/1", "strides": {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}},
}


def distilled(make_spec: MakeSpec, teacher: Path, images: int | None = None, **changes: Any) -> JobSpec:
    resources = {"device": "cpu", "threads": 1} | ({} if images is None else {"focus_images": images})
    made = {"methods": METHODS, "resources": resources} | changes
    return make_spec(teacher={"path": str(teacher), "allow_unfit": True}, **made)


@pytest.fixture(scope="module")
def shown(train: Train, make_spec: MakeSpec, teacher: Path) -> Any:
    return train(distilled(make_spec, teacher))


@pytest.mark.slow
@pytest.mark.numeric
def test_a_training_that_shows_nothing_has_the_same_bytes(
    shown: Any, train: Train, make_spec: MakeSpec, teacher: Path
) -> None:
    silent = train(distilled(make_spec, teacher, 0))
    assert not silent.of(Focused)
    assert not (silent.out / "focus").exists()
    assert [each.values for each in silent.of(Evaluated)] == [each.values for each in shown.of(Evaluated)]
    assert silent.of(Finished)[0].files == shown.of(Finished)[0].files
    for mine, theirs in zip(silent.of(Saved), shown.of(Saved), strict=True):
        states = [torch.load(each.path, weights_only=True)["model"] for each in (mine, theirs)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
def test_photos_come_first_and_maps_before_the_first_step_and_at_each_evaluation(shown: Any) -> None:
    events = shown.of(Focused)
    assert [(each.step, each.epoch) for each in events] == [(None, None), (0, 0), (3, 1), (6, 2)]
    for each in events:
        content = Path(each.path).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (each.sha256, each.size)
        told = unpacked(content)
        expected = (
            FILE["step"] | {"step": each.step, "epoch": each.epoch}
            if each.step is not None
            else FILE[Path(each.path).name]
        )
        assert told | expected == told
    photos = unpacked(Path(events[0].path).read_bytes())["photos"]
    assert [each["position"] for each in photos] == list(range(6))
    for each in photos:
        picture = Pillow.open(io.BytesIO(base64.b64decode(each["jpeg"])))
        assert picture.size == (each["width"], each["height"]) == (64, 64)
        assert len(each["boxes"]) == len(each["labels"]) > 0


@pytest.mark.slow
def test_each_method_shows_its_own_of_both_networks(shown: Any) -> None:
    first, *_, last = (unpacked(Path(each.path).read_bytes()) for each in shown.of(Focused)[1:])
    assert {each["photo"] for each in last["images"]} == set(range(6))
    image = next(each for each in last["images"] if each["photo"] == 0)
    assert {each["method"] for each in image["shown"]} == {"fgd", "frs", "fgfi"}
    attention = {
        (each["network"], each["level"]): each for each in image["shown"] if each["name"] == "spatial attention"
    }
    assert attention.keys() == {(network, level) for network in ("teacher", "student") for level in first["strides"]}
    p3 = attention["teacher", "p3"]
    assert p3["shape"] == p3["of"] == [8, 8]
    assert sum(values(p3)) / 64 == pytest.approx(1.0, abs=0.01)

    before = next(each for each in first["images"] if each["photo"] == 0)["shown"]
    for then, now in zip(before, image["shown"], strict=True):
        if then["network"] == "teacher" and then["name"] != "global context":  # whose block is trained along
            assert then == now, "the teacher is frozen"
    assert [each for each in before if each["network"] == "student"] != [
        each for each in image["shown"] if each["network"] == "student"
    ]


@pytest.mark.slow
def test_a_method_that_cannot_be_shown_ends_the_showing_and_not_the_training(
    train: Train, make_spec: MakeSpec, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("no such level")

    monkeypatch.setattr(FGDLoss, "focus", fails)
    run = train(distilled(make_spec, teacher, methods=[{"kind": "fgd"}], schedule={"epochs": 1}))
    assert run.of(Finished)
    (note,) = [each for each in run.of(Note) if each.code == "focus_failed"]
    assert "no such level" in note.message
    assert [each.step for each in run.of(Focused)] == [None]


def image(number: int, boxes: int) -> Image:
    return Image.model_validate(
        {
            "id": number,
            "file": f"{number:064x}.png",
            "name": f"{number}.png",
            "width": 8,
            "height": 8,
            "boxes": [[0, 0, 4, 4]] * boxes,
            "labels": [1] * boxes,
            "crowd": [False] * boxes,
        }
    )


def test_images_with_boxes_are_chosen_first_evenly_over_the_split() -> None:
    images = [image(n, n % 2) for n in range(20)]
    assert [each.id for each in chosen_images(images, 5)] == [1, 5, 9, 13, 17]
    few = [image(n, n == 7) for n in range(20)]
    assert [each.id for each in chosen_images(few, 3)] == [7, 0, 10]
    assert chosen_images(images, 0) == ()
    assert len(chosen_images(images, 24)) == 20


@pytest.mark.parametrize(("total", "most"), [(1, 8), (8, 8), (20, 8), (300, 60), (7, 60)])
def test_evaluations_that_are_shown_are_few_even_and_end_with_the_last(total: int, most: int) -> None:
    numbers = [number for number in range(1, total + 1) if is_shown(number, total, most)]
    assert len(numbers) == min(total, most)
    assert numbers[-1] == total
    gaps = {after - before for before, after in zip([0, *numbers], numbers, strict=False)}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("trained_on", "expected"), [(100, 8), (4800, 8), (12_000, 20), (10**7, 60)])
def test_how_many_evaluations_are_shown_follows_from_how_long_the_training_is(trained_on: int, expected: int) -> None:
    assert how_many(trained_on, 6) == expected


def values_of(made: torch.Tensor, *, by_magnitude: bool) -> torch.Tensor:
    """As a reader of the file sees them."""
    low, high, coded = quantised(made, by_magnitude=by_magnitude)
    told = {"low": low, "high": high, "by_magnitude": by_magnitude, "values": base64.b64encode(coded)}
    return torch.tensor(values(told)).view(made.shape)


def test_a_map_comes_back_within_half_a_step_of_its_range() -> None:
    made = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    step = float(made.max() - made.min()) / 255
    assert (values_of(made, by_magnitude=False) - made).abs().max() <= step / 2 + 1e-6


def test_by_magnitude_small_values_are_told_from_large_ones_and_from_nothing() -> None:
    made = torch.tensor([0.0, 1e-4, 1e-2, 0.3, 1.0])
    torch.testing.assert_close(values_of(made, by_magnitude=True), made, rtol=0.02, atol=0)


@pytest.mark.parametrize("by_magnitude", [False, True])
def test_a_map_of_one_value_and_one_of_zeros_have_a_range(by_magnitude: bool) -> None:
    for value in (0.0, 3.0):
        made = torch.full((2, 2), value)
        assert torch.equal(values_of(made, by_magnitude=by_magnitude), made)


def test_large_maps_of_many_methods_are_made_smaller_until_the_file_is_small() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [Focus("spatial attention", "p2", torch.rand(1, 200, 336, generator=generator)) for _ in range(12)]
    images = [Shown(n, (800, 1333), (800, 1344), tuple(("fgd", each) for each in maps)) for n in range(6)]
    file = file_of(10, 1, {"p2": 4}, images)
    assert len(file) <= MAX_BYTES
    (height, width) = unpacked(file)["images"][0]["shown"][0]["shape"]
    assert width > height >= 8
    assert unpacked(file)["images"][0]["shown"][0]["of"] == [200, 336]


def test_a_map_that_is_not_finite_is_left_out() -> None:
    bad = Focus("spatial attention", "p3", torch.full((1, 2, 2), float("nan")), "student")
    good = Focus("foreground", "p3", torch.ones(1, 2, 2))
    file = file_of(1, 1, {"p3": 8}, [Shown(0, (16, 16), (32, 32), (("fgd", bad), ("fgd", good)))])
    assert [each["name"] for each in unpacked(file)["images"][0]["shown"]] == ["foreground"]
    json.dumps(unpacked(file), allow_nan=False)


def test_each_module_gets_its_own_mode_back() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Dropout())
    module.train()
    module[0].eval()
    with in_eval_mode(module):
        assert not any(each.training for each in module.modules())
    assert [each.training for each in module.modules()] == [True, False, True]
