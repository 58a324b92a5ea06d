"""The import of a model: a confined child checks and converts, this side stores it. Loads no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from api.core import imports, models
from api.core.rows.tables import Model
from fgd.result_files import RECIPE, WEIGHTS
from worker.child_answer import MAX_ANSWER
from worker.host import Host
from worker.leased_child import MAX_MESSAGE, ChildBroken, ChildEnd, LeasedChild
from worker.reader_ending import Rejected, ended_badly, took_too_long, upload_gone
from worker.slots import Slot
from worker.staging import fetched

REPORT = "report.json"
"""What the child leaves in its folder, beside a result's WEIGHTS and RECIPE."""


@dataclass(frozen=True)
class ModelImport(LeasedChild):
    claim: models.ModelClaim
    kind = Model

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        wanted = folder / "wanted.json"
        wanted.write_text(json.dumps(self.claim.recipe))
        more = ["--minutes", str(host.settings.import_minutes)]
        more += ["--checkpoint", self.claim.which] if self.claim.which else ["--take", self.claim.take]
        with fetched(host.store, self.claim.upload, folder) as upload:
            yield [sys.executable, "-m", "worker.model_importer", str(upload), str(wanted), str(folder), *more]

    def ended(self, host: Host, slot: Slot, folder: Path, code: int) -> ChildEnd | ChildBroken:  # noqa: ARG002
        match ended_badly(code, folder, "the file"):
            case ChildBroken() as broken:
                return broken
            case Rejected(error):
                report = _json(folder / REPORT) if (folder / REPORT).exists() else None
                return self._rejected(Rejected(error, report))
        report, recipe = _json(folder / REPORT), _json(folder / RECIPE)
        made = models.FinishedImport(
            weights=host.store.take_file(folder / WEIGHTS),
            recipe=host.store.take_file(folder / RECIPE),
            tensors_digest=report.pop("weights_digest"),
        )
        id, attempt = self.claim.id, self.claim.attempt
        return ChildEnd("ready", lambda s: models.finish_import(s, id, attempt, recipe, made, report))

    def most_s(self, host: Host) -> float:
        return host.settings.import_minutes * 60

    def late(self, most_s: float) -> ChildEnd:
        return self._rejected(took_too_long(most_s, "the file"))

    def inputs_gone(self, error: str) -> ChildEnd:
        return self._rejected(upload_gone(error))

    def lose(self, s: Session, reason: str) -> None:
        imports.lose(s, Model, self.claim.id, self.claim.attempt, reason)

    def _rejected(self, why: Rejected) -> ChildEnd:
        id, attempt, error = self.claim.id, self.claim.attempt, why.error[:MAX_MESSAGE]
        return ChildEnd(f"rejected: {error}", lambda s: models.reject(s, id, attempt, why.report, error))


def claim(s: Session, worker_id: str, lease_s: float, devices: Sequence[str]) -> ModelImport | None:  # noqa: ARG001
    claimed = models.claim_import(s, worker_id, lease_s)
    return ModelImport(claimed) if claimed is not None else None


def _json(path: Path) -> dict[str, Any]:
    assert path.stat().st_size <= MAX_ANSWER, "a report names a hundred keys, a recipe 10 000 classes"
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found
