"""Data set imports, in the processor lane: a child reads and packs, this side stores and tells."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import datasets
from api.core.errors import Fenced
from api.core.lifecycle import Requested
from api.core.storage import DigestMismatch
from fgd.data.index import Report
from worker.host import Host, Lost
from worker.importer import NOTHING_THERE, TRY_AGAIN
from worker.launcher import Trainer
from worker.lease import Lease
from worker.outcome import HandedBack
from worker.staging import work_folder

logger = logging.getLogger(__name__)

WAIT_S = 0.2
MAX_ERROR = 2000


@dataclass(frozen=True)
class Rejected:
    error: str
    report: Report | None = None


@dataclass(frozen=True)
class Broken:
    """Perhaps not the data set's fault: it is tried again a few times."""

    reason: str


def run_import(host: Host, claim: datasets.DatasetClaim, claimed_at: float) -> None:
    """One import, from claim to its last write. claimed_at: time.monotonic() before the claim."""
    logger.info("%s: importing %s", claim.dataset_id, claim.path or f"the zip {claim.upload_digest}")

    def beat() -> Requested | None:
        host.write(lambda s: datasets.beat_import(s, claim.dataset_id, claim.attempt, host.id, host.settings.lease_s))
        return None

    try:
        with (
            Lease(beat, host.times(), claimed_at) as lease,
            work_folder(host.settings.home, claim.dataset_id, claim.attempt) as folder,
        ):
            refused = read_and_store(host, lease, claim, folder)
            if refused is not None:
                lease.closing()
                host.insist(lease, lambda s: tell(s, claim, refused))
            logger.info("%s: %s", claim.dataset_id, refused or "ready")
    except (Fenced, Lost):
        logger.warning("%s: the import is no longer ours, nothing more was written", claim.dataset_id)


def read_and_store(
    host: Host, lease: Lease, claim: datasets.DatasetClaim, folder: Path
) -> Rejected | Broken | HandedBack | None:
    """None: it is ready. Raises Lost, Fenced."""
    try:
        source = source_of(host, claim)
        if source is None:
            return Rejected("the uploaded zip is no longer in the store, or changed there; upload it again")
        code = read_in_child(host, lease, claim, source, folder)
        if code is None:
            return HandedBack("the worker is shutting down")
        if refused := refusal(code, folder):
            return refused
        store(host, lease, claim, folder)
    except OSError as error:
        return Broken(f"the worker's host failed: {error}")
    return None


def source_of(host: Host, claim: datasets.DatasetClaim) -> Path | None:
    """The folder or zip to read; None if the zip is gone."""
    if claim.upload_digest is None:
        assert claim.path is not None, "a data set has a path or an upload"
        return Path(claim.path)
    try:
        return host.store.path(claim.upload_digest, verify=True)
    except (KeyError, DigestMismatch):
        return None


def read_in_child(host: Host, lease: Lease, claim: datasets.DatasetClaim, source: Path, folder: Path) -> int | None:
    """Exit status of the importer; None if the worker stops before its end. Raises Lost."""
    argv = [sys.executable, "-m", "worker.importer", str(source), str(folder), "--verify", claim.verify]
    argv += ["--format", claim.format, "--group-by", claim.group_by]
    if claim.val_fraction is not None:
        argv += ["--val-fraction", str(claim.val_fraction)]
    run_file = host.run_folder() / f"{claim.dataset_id}.a{claim.attempt}.json"
    with Trainer(argv, folder, run_file, threads=host.threads) as child:
        lease.guard(child)
        try:
            while not child.over():
                if host.stopping.is_set():
                    return None
                _, log = child.read(WAIT_S)
                if log:
                    logger.info("%s: %s", claim.dataset_id, log.decode(errors="replace").strip()[:MAX_ERROR])
        finally:
            lease.guard(None)
        if lease.lost.is_set():
            raise Lost
        (folder / "tail.txt").write_text(child.tail())
        return child.returncode()


def refusal(code: int, folder: Path) -> Rejected | Broken | None:
    """Why the data set is refused, or this try was in vain; None: it is good."""
    if code == NOTHING_THERE:
        return Rejected((folder / "error.txt").read_text()[:MAX_ERROR])
    last = (folder / "tail.txt").read_text().strip().rpartition("\n")[2][:MAX_ERROR] if code else ""
    if code == TRY_AGAIN:
        return Broken(f"the worker's host failed: {last}")
    if code < 0:  # by the kernel for want of memory, by a person, or by a file that crashes the reader: it will repeat
        return Broken(f"the reader was ended by signal {-code}. {last}".strip())
    if code:
        broken = f"reading the data set failed with exit code {code}; an image or file of it breaks the reader. {last}"
        return Rejected(broken.strip())
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    if report.ok:
        return None
    reasons = [
        f"{defect.file}: {defect.message}" if defect.file else defect.message
        for defect in report.defects
        if defect.action == "rejected"
    ]
    return Rejected("; ".join(reasons)[:MAX_ERROR] or "nothing can be trained from it; see the report", report)


def tell(s: Session, claim: datasets.DatasetClaim, refused: Rejected | Broken | HandedBack) -> None:
    match refused:
        case Rejected(error, report):
            datasets.reject(s, claim.dataset_id, claim.attempt, report, error)
        case Broken(reason):
            datasets.lose(s, claim.dataset_id, claim.attempt, reason)
        case HandedBack():
            datasets.hand_back(s, claim.dataset_id, claim.attempt)


def store(host: Host, lease: Lease, claim: datasets.DatasetClaim, folder: Path) -> None:
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    archive = host.store.put_file(folder / "archive.tar")
    index = host.store.put_file(folder / "index.json")

    def write(s: Session) -> None:
        datasets.finish_import(s, claim.dataset_id, claim.attempt, archive, index, report)

    lease.closing()
    host.insist(lease, write)
