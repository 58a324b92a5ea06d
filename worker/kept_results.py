"""Finished trainings that are not in the store yet, kept on this host's disk while the store is away: whatever ends
their attempt, the next one on this host has only to publish them.

    <home>/finished/<job>/        the files of the result, and finished.json, which is written last

Knows files. Knows no rows: what is kept for a job that has ended elsewhere goes after a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path

from pydantic import ValidationError

from api.core.store.names import sha256_file
from fgd.events import Finished
from worker.staging import link

logger = logging.getLogger(__name__)

TOLD = "finished.json"
KEPT_S = 30 * 86_400.0
"""A job that was not heard of on this host for so long has ended elsewhere."""


def keep(home: Path, job: str, result: Finished) -> bool:
    """Durable when it returns. False: it was kept already. Raises OSError."""
    folder = _folder(home, job)
    if (folder / TOLD).exists():
        return False
    forget(home, job)  # half of one
    folder.mkdir(parents=True)
    for name in result.files:
        link(Path(result.folder) / name, folder / name)
        _sync(folder / name)
    partial = folder / f".{TOLD}"
    partial.write_text(result.model_dump_json())
    _sync(partial)
    partial.rename(folder / TOLD)
    for each in (folder, folder.parent):
        _sync(each)
    return True


def kept(home: Path, job: str) -> Finished | None:
    """What an earlier attempt finished here; None if there is nothing, or not all of it."""
    folder = _folder(home, job)
    try:
        result = Finished.model_validate_json((folder / TOLD).read_bytes())
        if all(sha256_file(folder / Path(name).name) == digest for name, digest in result.files.items()):
            return result.model_copy(update={"folder": str(folder)})
        logger.warning("%s: its kept result is damaged; it is trained again", job)
    except FileNotFoundError:
        pass
    except (OSError, ValidationError) as error:
        logger.warning("%s: its kept result cannot be read; it is trained again: %s", job, error)
    forget(home, job)
    return None


def forget(home: Path, job: str) -> None:
    folder = _folder(home, job)
    with contextlib.suppress(OSError):  # first, so that half of a result is not taken for one
        (folder / TOLD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def forget_old(home: Path) -> None:
    for folder in (home / "finished").glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > KEPT_S:
                forget(home, folder.name)


def _folder(home: Path, job: str) -> Path:
    return home / "finished" / job


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
