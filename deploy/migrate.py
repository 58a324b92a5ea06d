"""`python -m deploy.migrate`: bring the database of FGD_DATABASE_URL to this version's tables, and end.

Several at once do it once: on PostgreSQL they wait for one another at an advisory lock, on SQLite at its write lock.
"""

from __future__ import annotations

import sys

from sqlalchemy.exc import OperationalError

from api.core.errors import DriverMissing, Unfit
from api.core.rows import db
from api.core.settings import Settings
from fgd.process.private import keep_private


def main() -> None:
    keep_private()
    try:
        db.upgrade(Settings().database_url)
    except (Unfit, DriverMissing) as error:
        sys.exit(f"fgd migrate: {error}")
    except OperationalError as error:
        sys.exit(f"fgd migrate: the database does not answer: {error.orig}")
    print("the database is at this version's tables")


if __name__ == "__main__":
    main()
