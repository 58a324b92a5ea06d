"""The command `fgd`: its groups of commands in one, and what becomes of an error. Knows exit codes.

The work is done by the client or by other processes. Everything but typer is imported inside the commands:
`fgd --help` answers at once, and no command loads torch.
"""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from fgd.cli import artifacts, datasets, jobs, library, models, service, workers
from fgd.cli.printing import FAILED, REFUSED, UNREACHABLE, err, print_error
from fgd.text.printable import printable

ENDS = """
Environment: FGD_URL, the address of the service; FGD_API_KEY, its key.

Exit codes:

- 0: done
- 1: what was asked for failed: a job failed or was cancelled, a data set was rejected, a checksum did not match
- 2: the command or the request is wrong
- 3: no service answers, or it is broken
- 130: interrupted
"""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    # A traceback must not print local variables: one may be a key.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil a large detector into a small one: submit a job, watch it, download the student.",
    epilog=ENDS,
)
for commands in (service, library, workers):
    app.add_typer(commands.app)
for name, group in {"dataset": datasets, "job": jobs, "model": models, "artifact": artifacts}.items():
    app.add_typer(group.app, name=name, rich_help_panel="Use a service")


def main() -> None:
    """Entry point of the console script. Errors that were foreseen end in a message, not a traceback."""
    from fgd.errors import FGDError

    try:
        app(prog_name="fgd")
    except (FGDError, OSError) as error:
        sys.exit(_tell(error))


def _tell(error: Exception) -> int:
    print_error(str(error))
    from fgd.client import ApiError, Unreachable

    if isinstance(error, ApiError):
        if error.status == 401:
            err.print("set FGD_API_KEY to the service's key", highlight=False)
        if error.status >= 500:
            err.print(Text(printable(f"request id: {error.request_id or 'none'}; the service's log says more")))
            return UNREACHABLE
        return REFUSED
    return UNREACHABLE if isinstance(error, Unreachable) else FAILED


if __name__ == "__main__":
    main()
