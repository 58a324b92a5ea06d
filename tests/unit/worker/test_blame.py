"""What goes wrong around the trainer: whose fault it is decides whether another attempt makes sense."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from api.core.lifecycle import FailureCode
from api.core.store.local import LocalStore
from fgd.data import archive
from fgd.errors import DatasetError
from worker.staging import InputGone
from worker.supervisor import blame


def refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_full_disk_is_named_also_behind_another_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise refused(errno.ENOSPC)

    monkeypatch.setattr(archive, "_extract", full)
    with pytest.raises(DatasetError) as caught:
        archive.unpack(tmp_path / "a.tar", tmp_path / "out")

    assert blame(caught.value).code == FailureCode.no_space
    assert blame(refused(errno.EDQUOT)).code == FailureCode.no_space


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE, errno.EIO, errno.ENFILE, errno.ESTALE])
def test_trouble_of_the_host_may_be_tried_again(number: int) -> None:
    failure = blame(refused(number))
    assert failure.code.retryable
    assert os.strerror(number) in failure.message


@pytest.mark.parametrize("error", [ValueError("no result"), InputGone("blob x is not in the store any more")])
def test_anything_else_would_come_again(error: Exception) -> None:
    assert blame(error).code == FailureCode.protocol


def test_input_that_is_gone_is_not_taken_for_the_host_s_trouble(tmp_path: Path) -> None:
    from worker.staging import fetched

    with pytest.raises(InputGone) as caught:
        fetched(LocalStore(tmp_path), "0" * 64, tmp_path).__enter__()
    assert blame(caught.value).code == FailureCode.protocol


def test_trouble_that_was_dealt_with_is_not_blamed() -> None:
    def deal_with_it() -> None:
        try:
            raise refused(errno.EIO)
        except OSError:
            raise ValueError("said on purpose") from None

    with pytest.raises(ValueError) as caught:
        deal_with_it()
    assert blame(caught.value).code == FailureCode.protocol
