"""`python -m deploy.health api|worker`: is it well, as its own environment says where it is? Exit code 0, or 1 and why.

The API is well when it is ready. A worker is well when the database has heard from one of this host lately: that its
process lives says nothing. For health checks of containers; it starts in a second and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import urllib.error
import urllib.request

from sqlalchemy.exc import SQLAlchemyError

from api.core import workers
from api.core.errors import DriverMissing
from api.core.rows import db
from api.core.settings import Settings

ANSWER_S = 8.0


def complaint_about_api(settings: Settings) -> str | None:
    """None: it is ready."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)
    address = f"[{host}]" if ":" in host else host
    key = settings.api_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    question = urllib.request.Request(f"http://{address}:{settings.port}/readyz", headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the host's is not for this
    try:
        direct.open(question, timeout=ANSWER_S).close()
    except urllib.error.HTTPError as answer:
        return f"the API answers {answer.code}: {', '.join(_not_ok(answer.read())) or answer.reason}"
    except OSError as error:
        return f"the API does not answer: {error}"
    return None


def _not_ok(body: bytes) -> list[str]:
    """The parts that /readyz complains about."""
    try:
        checks = json.loads(body)
    except ValueError:
        return []
    return [
        f"{name} {check['detail']}" for name, check in checks.items() if isinstance(check, dict) and not check["ok"]
    ]


def complaint_about_worker(settings: Settings) -> str | None:
    """None: a worker of this host beats."""
    host = socket.gethostname()
    try:
        engine = db.make_engine(settings.database_url)
        with db.reading(engine) as session:
            beating = [worker.id for worker in workers.live(session, settings.lease_s) if worker.host == host]
    except DriverMissing as error:
        return str(error)
    except SQLAlchemyError as error:
        return f"the database does not answer: {type(error).__name__}"  # its text may hold the URL
    return None if beating else f"no worker on {host} has sent a heartbeat in the last {settings.lease_s:g} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.health", description=__doc__)
    parser.add_argument("part", choices=("api", "worker"))
    ask = {"api": complaint_about_api, "worker": complaint_about_worker}[parser.parse_args().part]
    if complaint := ask(Settings()):
        sys.exit(complaint)


if __name__ == "__main__":
    main()
