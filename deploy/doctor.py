"""`fgd doctor`: whether database and store agree. Deletes only what it is told to."""

from __future__ import annotations

from api.core import inventory
from api.core.errors import Conflict
from api.core.rows import db
from api.core.settings import Settings
from deploy.backup import BackupError, opened


def examine(settings: Settings, older_than_s: float, delete: bool) -> inventory.Inventory:
    """What does not fit. Raises BackupError where that cannot be found out, or a worker forbids to delete."""
    with opened(settings) as (engine, store):
        db.check_schema(engine)
        try:
            look = inventory.delete if delete else inventory.take
            return look(engine, store, older_than_s)
        except Conflict as error:
            raise BackupError(str(error)) from None
