"""`python -m worker`: one worker process, with a broker (FGD_BROKER_URL) or without."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType

from pydantic import ValidationError

from api.core.settings import complaint
from fgd.process.exit_codes import DONE, REFUSED, exit_code, message_of
from fgd.process.lifeline import die_with_parent
from fgd.process.private import keep_private
from fgd.text.printable import printable

SIGNALS = (signal.SIGTERM, signal.SIGINT)

CELERY = ["worker", "--without-mingle", "--without-gossip", "--without-heartbeat", "--loglevel=WARNING"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--drain-s", type=float, help="seconds that trainers have to save when the worker shuts down")
    parser.add_argument("--parent-fd", type=int, help="end when the other end of this pipe closes")
    arguments = parser.parse_args()
    keep_private()
    if arguments.parent_fd is not None:
        die_with_parent(arguments.parent_fd)
    asked = Asked()  # before anything slow: a worker that is told to end while it starts has nothing to put away

    try:
        from worker import app  # reads the settings
    except ValidationError as error:
        print(printable(f"fgd worker: {complaint(error)}", keep="\n"), file=sys.stderr)
        sys.exit(REFUSED)
    app.drain_s = arguments.drain_s
    if app.settings.broker_url is None:
        sys.exit(run_without_broker(asked))
    if not asked.to_end:
        asked.hand_over()
        app.app.worker_main(CELERY)


def run_without_broker(asked: Asked) -> int:
    """The poller alone: jobs start up to poll_s later than with a bell. Returns the exit code."""
    from worker import app

    app.log_plainly()
    if asked.to_end:
        return DONE
    try:
        poller = app.open_poller()
    except OSError as error:  # of the home; a database that is away is waited for
        print(printable(f"fgd worker: {message_of(error)}"), file=sys.stderr)
        return exit_code(error)
    asked.then(poller.stop)
    poller.join()
    return DONE


class Asked:
    """Was this process told to end, by SIGTERM or SIGINT? Listens from its making on."""

    def __init__(self) -> None:
        self.to_end = False
        self._stop: Callable[[], None] | None = None
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def then(self, stop: Callable[[], None]) -> None:
        """Call this when it is told to; at once, if it has been."""
        self._stop = stop
        if self.to_end:
            stop()

    def hand_over(self) -> None:
        """Others listen from here on."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self.to_end = True
        if self._stop is not None:
            self._stop()


if __name__ == "__main__":
    main()
