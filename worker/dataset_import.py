"""The import of a data set: a child reads what a user brought, this side stores it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import datasets
from api.core.rows.tables import Dataset
from fgd.data.index import Report
from worker.host import Host
from worker.leased_child import MAX_ERROR, Broken, Rejected
from worker.reader_ending import ended_badly
from worker.staging import fetched


@dataclass(frozen=True)
class DatasetImport:
    claim: datasets.DatasetClaim
    kind = Dataset

    @property
    def id(self) -> str:
        return self.claim.dataset_id

    @property
    def attempt(self) -> int:
        return self.claim.attempt

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        claim = self.claim
        with source_of(host, claim, folder) as source:
            argv = [sys.executable, "-m", "worker.importer", str(source), str(folder)]
            argv += ["--verify", claim.verify, "--format", claim.format, "--group-by", claim.group_by]
            yield argv if claim.val_fraction is None else [*argv, "--val-fraction", str(claim.val_fraction)]

    def refusal(self, code: int, folder: Path) -> Rejected | Broken | None:
        return refusal(code, folder)

    def stored(self, host: Host, folder: Path) -> Callable[[Session], None]:
        report = Report.model_validate_json((folder / "report.json").read_bytes())
        archive = host.store.take_file(folder / "archive.tar")
        index = host.store.take_file(folder / "index.json")
        return lambda s: datasets.finish_import(s, self.id, self.attempt, archive, index, report)

    def reject(self, s: Session, refused: Rejected) -> None:
        datasets.reject(s, self.id, self.attempt, refused.report, refused.error)


@contextmanager
def source_of(host: Host, claim: datasets.DatasetClaim, scratch: Path) -> Iterator[Path]:
    """The folder or zip to read. Raises InputGone if the zip is."""
    if claim.upload_digest is None:
        assert claim.path is not None, "a data set has a path or an upload"
        yield Path(claim.path)
        return
    with fetched(host.store, claim.upload_digest, scratch) as zip:
        yield zip


def refusal(code: int, folder: Path) -> Rejected | Broken | None:
    """Why the data set is refused, or this try was in vain; None: it is good."""
    if bad := ended_badly(code, folder, "the data set"):
        return bad
    report = Report.model_validate_json((folder / "report.json").read_bytes())
    if report.ok:
        return None
    reasons = [
        f"{defect.file}: {defect.message}" if defect.file else defect.message
        for defect in report.defects
        if defect.action == "rejected"
    ]
    return Rejected("; ".join(reasons)[:MAX_ERROR] or "nothing can be trained from it; see the report", report)
