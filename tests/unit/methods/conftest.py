"""Batches of nothing but geometry: distillation looks at sizes and boxes, not at pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from fgd.types import Batch, Target

Boxes = Sequence[Sequence[float]]
MakeBatch = Callable[[tuple[int, int], Sequence[tuple[int, int]], Sequence[Boxes]], Batch]


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """(padded height and width, each image's height and width, each image's boxes) -> Batch."""

    def make(padded: tuple[int, int], sizes: Sequence[tuple[int, int]], boxes: Sequence[Boxes]) -> Batch:
        return Batch(
            images_NCHW=torch.zeros(()).expand(len(sizes), 3, *padded),
            image_sizes=tuple(sizes),
            original_sizes=tuple(sizes),
            targets=tuple(
                Target(torch.tensor(each, dtype=torch.float32).reshape(-1, 4), torch.ones(len(each), dtype=torch.int64))
                for each in boxes
            ),
            image_ids=tuple(range(len(sizes))),
        )

    return make
