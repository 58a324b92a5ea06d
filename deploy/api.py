"""The API as one process under `deploy.local`: `python -m deploy.api --fd N --parent-fd M`.

The listening socket is inherited, so a restart of the API refuses nobody: callers wait in its queue.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys

from sqlalchemy.exc import OperationalError

from fgd.lifeline import die_with_parent

GOODBYE_S = 3
"""Open streams get so long to end."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.api", description=__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent-fd", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent_fd)

    import uvicorn

    refuse_unfit_database()
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    logging.getLogger("api").setLevel(logging.INFO)
    config = uvicorn.Config(
        "api.main:create_app",
        factory=True,
        timeout_graceful_shutdown=GOODBYE_S,
        log_level="info",
        access_log=False,  # clients poll; api.border logs what changes something or goes wrong
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=arguments.fd)])


def refuse_unfit_database() -> None:
    """Exit with one line where the application would start with a traceback. One that is away may come back."""
    from api.core import db
    from api.core.errors import Unfit
    from api.core.settings import Settings

    engine = db.make_engine(Settings().database_url)
    try:
        db.check_schema(engine)
    except Unfit as error:
        sys.exit(f"fgd api: {error}")
    except OperationalError:
        pass  # the application says so, and is started again
    finally:
        engine.dispose()


if __name__ == "__main__":
    main()
