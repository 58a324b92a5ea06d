"""The API as one process: `python -m deploy.api` binds FGD_HOST and FGD_PORT.

Under `deploy.local` it is `--fd N --parent-fd M`: the listening socket is inherited, so a restart of the API refuses
nobody: callers wait in its queue.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys

from sqlalchemy.exc import OperationalError

from fgd.process.lifeline import die_with_parent
from fgd.process.private import keep_private, private_folder
from fgd.process.secrets import hide_secrets

GOODBYE_S = 3
"""Open streams get so long to end."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.api", description=__doc__)
    parser.add_argument("--fd", type=int, help="a listening socket, instead of FGD_HOST and FGD_PORT")
    parser.add_argument("--parent-fd", type=int, help="end when the other end of this pipe closes")
    arguments = parser.parse_args()
    keep_private()
    if arguments.parent_fd is not None:
        die_with_parent(arguments.parent_fd)

    from api.core.settings import Settings, UnsafeBind, check_bind
    from api.main import create_app
    from deploy import http_server

    settings = Settings()
    hide_secrets()
    private_folder(settings.home)
    try:
        check_bind(settings)
    except UnsafeBind as error:
        sys.exit(f"fgd api: {error}")
    refuse_unfit_database(settings.database_url)
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr)
    logging.getLogger("api").setLevel(logging.INFO)
    config = http_server.config(
        lambda: create_app(settings),
        factory=True,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=GOODBYE_S,
    )
    inherited = None if arguments.fd is None else [socket.socket(fileno=arguments.fd)]
    http_server.Server(config).run(sockets=inherited)


def refuse_unfit_database(url: str) -> None:
    """Exit with one line where the application would start with a traceback. One that is away may come back."""
    from api.core.errors import Unfit
    from api.core.rows import db

    engine = db.make_engine(url)
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
