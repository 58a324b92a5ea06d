"""What commands print, and how they end. Knows the terminal. Knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from fgd.text.printable import printable

if TYPE_CHECKING:
    from pydantic import BaseModel

DONE, FAILED, REFUSED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

out = Console()
err = Console(stderr=True)


def print_line(text: str, keep: str = "\t") -> None:
    """One line as it is: neither wrapped nor coloured, tabs kept."""
    typer.echo(printable(text, keep))


def print_json(value: BaseModel | Iterable[BaseModel]) -> None:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        print_line(value.model_dump_json(indent=2), keep="\n")
        return
    print_line(json.dumps([item.model_dump(mode="json") for item in value], indent=2), keep="\n")


def print_table(columns: Mapping[str, Literal["left", "right"] | None], rows: Iterable[list[str]]) -> None:
    """A table on a screen; tab-separated lines, uncut, for the next program."""
    if not out.is_terminal:
        for row in rows:
            print_line("\t".join(map(printable, row)))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, side in columns.items():
        table.add_column(title, justify=side or "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print(table)


def clock(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def print_error(message: str) -> None:
    err.print("error:", style="bold red", end=" ")
    err.print(Text(printable(message, keep="\n")), soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    print_error(message)
    raise typer.Exit(code)


def leave(code: int | None) -> NoReturn:
    raise typer.Exit(code or DONE)
