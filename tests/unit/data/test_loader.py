"""Batches follow from (seed, epoch, step) and from nothing else; threads come and go with their consumer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from fgd.data import loader
from fgd.data.formats import open_index
from fgd.data.index import Index
from fgd.data.loader import Dataset, Split, epoch_order, eval_batches, ground_truth_coco, train_batches
from fgd.data.transforms import Transform, drawn_flips, flip
from fgd.errors import DatasetError, SpecError
from fgd.outline import whole_steps
from fgd.spec import Schedule
from fgd.types import Batch

TRANSFORM = Transform(32, 64)
SCHEDULE = Schedule(batch_size=2, flip="both", min_size=32, max_size=64)


@pytest.fixture
def folder(coco: Any) -> Path:
    """Seven training images of four shapes, one without boxes, one with a crowd region besides its box."""
    for number, (width, height) in enumerate([(60, 30), (30, 60), (40, 30), (33, 31)]):
        image_id = coco.add_image("train", f"more-{number}.png", width, height)
        coco.add_box("train", image_id, [2, 3, 11 + number, 9], 7)
    coco.add_box("train", image_id, [0, 0, 20, 20], 0, iscrowd=1)
    coco.add_image("train", "empty.jpg", 50, 50)
    path: Path = coco.write()
    return path


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    index, root = open_index(folder)
    return Dataset(index, "train", root)


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.images_NCHW, b.images_NCHW)
        and (a.image_sizes, a.original_sizes, a.image_ids) == (b.image_sizes, b.original_sizes, b.image_ids)
        and all(
            torch.equal(x.boxes_K4, y.boxes_K4) and torch.equal(x.labels_K, y.labels_K)
            for x, y in zip(a.targets, b.targets, strict=True)
        )
    )


def batches(dataset: Dataset, seed: int = 0, epoch: int = 0, first_step: int = 0) -> list[Batch]:
    return list(train_batches(dataset, TRANSFORM, SCHEDULE, seed, epoch, first_step))


def no_loader_threads() -> bool:
    return not any(thread.name == "fgd-batches" for thread in threading.enumerate())


# --- training batches -----------------------------------------------------------------------------------------


def test_same_seed_and_epoch_give_the_same_bytes(dataset: Dataset, folder: Path) -> None:
    index, root = open_index(folder)
    uncached = Dataset(index, "train", root, cache_bytes=0)
    first = batches(dataset)
    assert len(first) == 3
    assert all(same(a, b) for a, b in zip(first, batches(dataset), strict=True))
    assert all(same(a, b) for a, b in zip(first, batches(uncached), strict=True))


@pytest.mark.parametrize("first_step", [0, 1, 2, 3])
def test_resuming_inside_an_epoch_goes_on_with_the_same_batches(dataset: Dataset, first_step: int) -> None:
    whole, rest = batches(dataset, 3, 5), batches(dataset, 3, 5, first_step)
    assert len(rest) == 3 - first_step
    assert all(same(a, b) for a, b in zip(whole[first_step:], rest, strict=True))


def test_slow_and_fast_consumers_see_the_same(dataset: Dataset) -> None:
    slow = []
    for batch in train_batches(dataset, TRANSFORM, SCHEDULE, 0, 0):
        time.sleep(0.05)
        slow.append(batch)
    assert all(same(a, b) for a, b in zip(slow, batches(dataset), strict=True))


def test_each_epoch_and_seed_has_its_own_order_over_all_images(dataset: Dataset) -> None:
    orders = {tuple(epoch_order(dataset, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(7)) for order in orders)


def test_order_depends_on_image_ids_and_on_no_library(dataset: Dataset) -> None:
    assert epoch_order(dataset, 0, 0) == [1, 0, 6, 5, 3, 2, 4], "runs of older versions stay repeatable"


def test_last_smaller_batch_is_left_out(dataset: Dataset) -> None:
    seen = [image_id for batch in batches(dataset) for image_id in batch.image_ids]
    assert len(seen) == len(set(seen)) == 6
    order = epoch_order(dataset, 0, 0)
    assert seen == [dataset.images[position].id for position in order[:6]]


def test_images_are_flipped_as_drawn(dataset: Dataset) -> None:
    positions = {image.id: position for position, image in enumerate(dataset.images)}
    for batch in batches(dataset, 1, 2):
        samples = []
        for image_id in batch.image_ids:
            horizontal, vertical = drawn_flips("both", 1, 2, image_id)
            samples.append(flip(dataset.sample(positions[image_id]), horizontal=horizontal, vertical=vertical))
        assert same(batch, TRANSFORM(samples))


def test_crowd_regions_are_not_trained_on_but_kept_for_evaluation(dataset: Dataset) -> None:
    position = next(p for p, image in enumerate(dataset.images) if True in image.crowd)
    assert dataset.sample(position).boxes_K4.tolist() == [[2, 3, 16, 12]]
    assert [a["iscrowd"] for a in ground_truth_coco(dataset)["annotations"]].count(1) == 1


def test_batch_larger_than_the_set_is_refused_at_once_with_both_numbers(dataset: Dataset) -> None:
    with pytest.raises(SpecError, match=r"batch size 8 .* 7 images") as refused:
        train_batches(dataset, TRANSFORM, SCHEDULE.but(batch_size=8), 0, 0)
    assert refused.value.pointer == "/schedule/batch_size"


@pytest.mark.parametrize(("images", "batch_size", "steps"), [(8, 8, 1), (15, 8, 1), (16, 8, 2), (7, 1, 7)])
def test_steps_per_epoch_counts_whole_batches(images: int, batch_size: int, steps: int) -> None:
    assert whole_steps(images, batch_size) == steps


def test_global_generators_are_left_alone(dataset: Dataset) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches(dataset)
    list(eval_batches(dataset, TRANSFORM, 2))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


# --- failures and threads -------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    """A header that reads well, and pixels that end too early."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_image_that_does_not_decode_is_replaced_in_training_and_told_once(dataset: Dataset, folder: Path) -> None:
    whole = [image_id for batch in batches(dataset) for image_id in batch.image_ids]
    place = next(place for place, image in enumerate(dataset.images) if image.id == whole[0])
    broken, heir = dataset.images[place], dataset.images[(place + 1) % len(dataset)]
    cut(folder / "train2017" / broken.name)
    for _ in range(2):  # another run over the same files sees the same
        torn = Dataset(*_index_and_split(dataset), folder)
        made = batches(torn)
        assert [len(batch.image_ids) for batch in made] == [SCHEDULE.batch_size] * len(made)
        seen = [image_id for batch in made for image_id in batch.image_ids]
        assert seen == [heir.id if image_id == broken.id else image_id for image_id in whole]
        assert [told.file for told in torn.undecodable()] == [broken.name]
        batches(torn, epoch=1)
        assert torn.undecodable() == []
        assert torn.broken == {broken.id}


def test_image_that_does_not_decode_is_not_scored(dataset: Dataset, folder: Path) -> None:
    cut(folder / "train2017/more-1.png")
    broken = next(image.id for image in dataset.images if image.name == "more-1.png")
    seen = {image_id for batch in eval_batches(dataset, TRANSFORM, 2) for image_id in batch.image_ids}
    assert seen == {image.id for image in dataset.images} - {broken}
    truth = ground_truth_coco(dataset)
    assert {image["id"] for image in truth["images"]} == seen
    assert broken not in {annotation["image_id"] for annotation in truth["annotations"]}


def test_images_none_of_which_decodes_end_the_training(dataset: Dataset, folder: Path) -> None:
    for image in dataset.images:
        cut(folder / "train2017" / image.name)
    with pytest.raises(DatasetError, match="none of the 7 train images"):
        batches(dataset)


def _index_and_split(dataset: Dataset) -> tuple[Index, Split]:
    return Index(classes=dataset.classes, splits={"train": dataset.images}), "train"


def test_image_that_is_gone_since_its_import_ends_it_and_is_named(dataset: Dataset, folder: Path) -> None:
    (folder / "train2017/empty.jpg").unlink()
    with pytest.raises(DatasetError, match=r"empty\.jpg: cannot be read"):
        list(eval_batches(dataset, TRANSFORM, 1))
    assert no_loader_threads()


def test_image_of_another_size_than_at_its_import_is_refused(dataset: Dataset, folder: Path) -> None:
    (folder / "train2017/a.png").write_bytes((folder / "train2017/more-0.png").read_bytes())
    with pytest.raises(DatasetError, match=r"a\.png is 60x30, but was 40x30"):
        list(eval_batches(dataset, TRANSFORM, 1))


def test_batches_before_a_failure_still_come(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    order = epoch_order(dataset, 0, 0)
    sample = dataset.sample

    def failing(position: int) -> Any:
        if position == order[5]:
            raise DatasetError("the sixth")
        return sample(position)

    monkeypatch.setattr(dataset, "sample", failing)
    iterator = train_batches(dataset, TRANSFORM, SCHEDULE, 0, 0)
    assert len([next(iterator), next(iterator)]) == 2
    with pytest.raises(DatasetError, match="the sixth"):
        next(iterator)
    assert no_loader_threads()


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_thread_ends_when_the_consumer_stops(dataset: Dataset, taken: int) -> None:
    iterator = train_batches(dataset, TRANSFORM, SCHEDULE.but(batch_size=1), 0, 0)
    for _ in range(taken):
        next(iterator)
    time.sleep(0.05)
    iterator.close()  # type: ignore[attr-defined]
    assert no_loader_threads()


def test_thread_ends_when_the_loop_is_left_by_an_exception(dataset: Dataset) -> None:
    def step() -> None:
        for _ in train_batches(dataset, TRANSFORM, SCHEDULE.but(batch_size=1), 0, 0):
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        step()
    assert no_loader_threads()


def test_no_more_than_two_batches_wait(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    sample = dataset.sample
    monkeypatch.setattr(dataset, "sample", lambda position: made.append(position) or sample(position))
    iterator = train_batches(dataset, TRANSFORM, SCHEDULE.but(batch_size=1), 0, 0)
    next(iterator)
    time.sleep(0.2)
    assert len(made) <= 4, "one taken, two waiting, one in the hand"
    iterator.close()  # type: ignore[attr-defined]


def test_image_too_elongated_for_the_sizes_is_refused_by_name(make_coco: Callable[..., Any]) -> None:
    coco = make_coco()
    coco.add_image("train", "sliver.png", 2000, 1)
    index, root = open_index(coco.write())
    with pytest.raises(DatasetError, match=r"sliver\.png: 2000x1 is too elongated"):
        train_batches(Dataset(index, "train", root), TRANSFORM, SCHEDULE, 0, 0)


def test_absent_split_is_refused(folder: Path) -> None:
    index, root = open_index(folder)
    with pytest.raises(DatasetError, match="no test images, only train, val"):
        Dataset(index, "test", root)


def test_cache_stays_within_its_budget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, root = open_index(folder)
    dataset = Dataset(index, "train", root, cache_bytes=2 * 3 * 40 * 30)
    decoded: list[str] = []
    decode = loader.decode
    monkeypatch.setattr(loader, "decode", lambda path: decoded.append(path.name) or decode(path))
    for _ in range(2):
        for position in range(len(dataset)):
            dataset.sample(position)
    assert decoded.count("a.png") == decoded.count("b.png") == 1
    assert decoded.count("more-2.png") == 2


# --- evaluation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_evaluation_covers_every_image_once_padded_as_if_alone(dataset: Dataset, batch_size: int) -> None:
    alone = {batch.image_ids[0]: batch for batch in eval_batches(dataset, TRANSFORM, 1)}
    seen = []
    for batch in eval_batches(dataset, TRANSFORM, batch_size):
        assert len(batch.image_ids) <= batch_size
        for row, image_id in enumerate(batch.image_ids):
            seen.append(image_id)
            assert torch.equal(batch.images_NCHW[row], alone[image_id].images_NCHW[0])
    assert sorted(seen) == [image.id for image in dataset.images]


def test_ground_truth_is_coco_in_stored_pixels(dataset: Dataset) -> None:
    truth = ground_truth_coco(dataset)
    assert truth["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [image["file_name"] for image in truth["images"]][:2] == ["a.png", "b.png"]
    assert truth["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 2, 10, 12],
        "area": 120,
        "iscrowd": 0,
    }
    api = COCO()
    api.dataset = truth
    api.createIndex()
    assert len(api.getAnnIds(iscrowd=False)) == 6


def test_real_images_pass_through(shared_data: Path) -> None:
    index, root = open_index(shared_data / "rbc")
    val = Dataset(index, "val", root)
    seen = [image_id for batch in eval_batches(val, Transform(240, 320), 8) for image_id in batch.image_ids]
    assert len(seen) == 20
