"""The import of a data set: a child reads what a user brought, this side stores it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from api.core import datasets, imports
from api.core.rows.tables import Dataset
from fgd.data.index import Report
from worker.host import Host
from worker.leased_child import MAX_MESSAGE, ChildBroken, ChildEnd, LeasedChild
from worker.reader_ending import Rejected, ended_badly, took_too_long, upload_gone
from worker.slots import Slot
from worker.staging import fetched


@dataclass(frozen=True)
class DatasetImport(LeasedChild):
    claim: datasets.DatasetClaim
    kind = Dataset

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        claim = self.claim
        with source_of(host, claim, folder) as source:
            argv = [sys.executable, "-m", "worker.importer", str(source), str(folder)]
            if claim.path is not None:
                argv += [f"--below={root}" for root in host.settings.data_roots or (Path("/"),)]
            argv += ["--minutes", str(host.settings.import_minutes)]
            argv += ["--verify", claim.verify, "--format", claim.format, "--group-by", claim.group_by]
            yield argv if claim.val_fraction is None else [*argv, "--val-fraction", str(claim.val_fraction)]

    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:  # noqa: ARG002
        refused = refusal(code, folder)
        if refused is not None:
            return refused if isinstance(refused, ChildBroken) else self._rejected(refused)
        report = Report.model_validate_json((folder / "report.json").read_bytes())
        archive = host.store.take_file(folder / "archive.tar")
        index = host.store.take_file(folder / "index.json")
        id, attempt = self.claim.id, self.claim.attempt
        return ChildEnd("ready", lambda s: datasets.finish_import(s, id, attempt, archive, index, report))

    def most_s(self, host: Host) -> float:
        return host.settings.import_minutes * 60

    def late(self, most_s: float) -> ChildEnd:
        return self._rejected(took_too_long(most_s, "the data set"))

    def inputs_gone(self, error: str) -> ChildEnd:
        return self._rejected(upload_gone(error))

    def lose(self, s: Session, reason: str) -> None:
        imports.lose(s, Dataset, self.claim.id, self.claim.attempt, reason)

    def _rejected(self, why: Rejected) -> ChildEnd:
        id, attempt = self.claim.id, self.claim.attempt
        return ChildEnd(f"rejected: {why.error}", lambda s: datasets.reject(s, id, attempt, why.report, why.error))


def claim(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> DatasetImport | None:  # noqa: ARG001
    claimed = datasets.claim_import(s, worker_id, lease_s)
    return DatasetImport(claimed) if claimed is not None else None


@contextmanager
def source_of(host: Host, claim: datasets.DatasetClaim, scratch: Path) -> Iterator[Path]:
    """The folder or zip to read. Raises InputGone if the zip is."""
    if claim.upload_digest is None:
        assert claim.path is not None, "a data set has a path or an upload"
        yield Path(claim.path)
        return
    with fetched(host.store, claim.upload_digest, scratch) as zip:
        yield zip


def refusal(code: int, folder: Path) -> Rejected | ChildBroken | None:
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
    return Rejected("; ".join(reasons)[:MAX_MESSAGE] or "it cannot be used for training; see the report", report)
