"""The import of a model: a confined child checks and converts, this side stores. See imports.py. Loads no torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from api.core import models
from api.core.rows.tables import Model
from worker.host import Host
from worker.leased_child import MAX_ERROR, Broken, Rejected
from worker.reader_ending import ended_badly
from worker.staging import fetched

WEIGHTS, RECIPE, REPORT = "student.safetensors", "recipe.json", "report.json"
"""What the child leaves in its folder."""


@dataclass(frozen=True)
class ModelImport:
    claim: models.ModelClaim
    kind = Model

    @property
    def id(self) -> str:
        return self.claim.model_id

    @property
    def attempt(self) -> int:
        return self.claim.attempt

    @contextmanager
    def command(self, host: Host, folder: Path) -> Iterator[list[str]]:
        wanted = folder / "wanted.json"
        wanted.write_text(json.dumps(self.claim.recipe))
        which = ["--checkpoint", self.claim.which] if self.claim.which else []
        with fetched(host.store, self.claim.upload, folder) as upload:
            yield [sys.executable, "-m", "worker.model_importer", str(upload), str(wanted), str(folder), *which]

    def refusal(self, code: int, folder: Path) -> Rejected | Broken | None:
        bad = ended_badly(code, folder, "the file")
        if isinstance(bad, Rejected) and (folder / REPORT).exists():
            return Rejected(bad.error, _json(folder / REPORT))
        return bad

    def stored(self, host: Host, folder: Path) -> Callable[[Session], None]:
        report, recipe = _json(folder / REPORT), _json(folder / RECIPE)
        made = models.Finished(
            weights=host.store.take_file(folder / WEIGHTS),
            recipe=host.store.take_file(folder / RECIPE),
            tensors_digest=report.pop("weights_digest"),
        )
        return lambda s: models.finish_import(s, self.id, self.attempt, recipe, made, report)

    def reject(self, s: Session, refused: Rejected) -> None:
        models.reject(s, self.id, self.attempt, refused.report, refused.error[:MAX_ERROR])


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found
