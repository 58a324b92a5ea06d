"""The files of a finished training, on their way into the store."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from api.core.jobs import attempts
from api.core.store.names import Blob, blob_name
from fgd.events import Finished
from fgd.process.failpoints import reach
from fgd.result_files import WEIGHTS
from worker import kept_results
from worker.running_attempt import RunningAttempt

logger = logging.getLogger(__name__)

MEDIA_TYPES = {".json": "application/json", ".py": "text/x-python", ".md": "text/markdown; charset=utf-8"}


def publish(attempt: RunningAttempt, result: Finished, out: Path) -> list[attempts.ArtifactIn]:
    """The files of the result, in the store under their digests, as soon as it answers; all of them again where the
    collector took one for unused while another was waited for.

    Raises DigestMismatch, OSError, ValueError; Lost or Fenced if the attempt is not ours any more, Interrupted where
    the store stays away for too long.
    """
    host, claim = attempt.host, attempt.claim
    folder = Path(result.folder).resolve()
    if not folder.is_relative_to(out.resolve()) or WEIGHTS not in result.files:
        raise ValueError(f"the trainer's result is incomplete: {sorted(result.files)} in {folder}")
    files = [file_of_result(folder, name, digest) for name, digest in result.files.items()]
    digests = {file.digest for file in files}
    expected = functools.partial(attempts.expected, job_id=claim.job_id, attempt=claim.attempt, digests=digests)

    def keep() -> None:
        if keep_result(attempt, result):
            attempt.report("result_kept", f"the finished training is kept on {host.name} until the store has it")

    if host.stopping.is_set():  # who asked it to stop may not wait for the store
        keep()
    while True:
        for file in files:
            put = functools.partial(put_expected, attempt, folder / file.name, file)
            attempt.with_store(f"result {file.name}", put, at_first=keep, drains=True)
        if attempt.insist(expected):
            return files
        logger.warning("%s: files of the result disappeared while waiting for the store; trying again", claim.job_id)


def file_of_result(folder: Path, name: str, digest: str) -> attempts.ArtifactIn:
    """Raises ValueError for what is no plain file of the folder, or no digest."""
    path = folder / name
    if path.name != name or path.is_symlink() or not path.is_file():
        raise ValueError(f"the trainer's result contains {name!r}, which is not a plain file")
    blob_name(digest)
    media_type = MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return attempts.ArtifactIn(path.name, digest, path.stat().st_size, media_type)


def keep_result(attempt: RunningAttempt, result: Finished) -> bool:
    """Hours of training must not hang on a store that is away: the next attempt on this host only publishes them.
    True: it is kept since now."""
    try:
        return kept_results.keep(attempt.host.settings.home, attempt.claim.job_id, result)
    except OSError as error:
        logger.warning("%s: its result could not be kept on this host: %s", attempt.claim.job_id, error)
        return False


def put_expected(attempt: RunningAttempt, path: Path, file: attempts.ArtifactIn) -> None:
    """Its row first, every time: while the store was away the collector may have taken it."""
    claim, blob = attempt.claim, Blob(file.digest, file.size)
    attempt.insist(functools.partial(attempts.expect, job_id=claim.job_id, attempt=claim.attempt, blob=blob))
    reach("before_artifact_blob")
    attempt.host.store.take_file(path, expected=file.digest)
    reach("after_artifact_blob")
