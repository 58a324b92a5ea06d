from __future__ import annotations

import time
import uuid

import pytest

from api.core.rows.ids import is_id, new_id


def test_ids_are_uuid7_and_rise() -> None:
    ids = [new_id("job") for _ in range(10_000)]

    assert ids == sorted(set(ids))
    made = uuid.UUID(ids[0].removeprefix("job_"))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert abs((made.int >> 80) / 1000 - time.time()) < 5


@pytest.mark.parametrize("text", ["", "job_", "job_" + "g" * 32, "ds_" + "0" * 32, "job_" + "0" * 32 + "\n"])
def test_what_is_no_job_id_is_told_apart(text: str) -> None:
    assert is_id("job", new_id("job"))
    assert not is_id("job", text)
