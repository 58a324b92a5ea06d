"""`python -m worker`: one worker process, with a broker (FGD_BROKER_URL) or without."""

from __future__ import annotations

import argparse
import signal
from types import FrameType

from fgd.process.lifeline import die_with_parent

CELERY = ["worker", "--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel=WARNING"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--drain-s", type=float, help="seconds that trainers have to save when the worker ends")
    parser.add_argument("--parent-fd", type=int, help="end with whoever holds the other end of this pipe")
    arguments = parser.parse_args()
    if arguments.parent_fd is not None:
        die_with_parent(arguments.parent_fd)

    from worker import app  # reads the settings

    app.drain_s = arguments.drain_s
    if app.settings.broker_url is not None:
        app.app.worker_main(CELERY)
    else:
        run_without_broker()


def run_without_broker() -> None:
    """The poller alone: jobs start up to poll_s later than with a bell."""
    from worker import app

    app.log_plainly()
    poller = app.open_poller()

    def stop(_number: int, _frame: FrameType | None) -> None:
        poller.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    poller.join()


if __name__ == "__main__":
    main()
