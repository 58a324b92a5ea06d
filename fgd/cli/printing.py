"""What commands print, and how they end. Knows the terminal. Knows no HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from fgd.process.exit_codes import DONE
from fgd.text.printable import printable

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.progress import Progress

out = Console()
err = Console(stderr=True)

Columns = Mapping[str, Literal["right"] | None]
"""Title: the side that its cells stand on; None is the left."""

T = TypeVar("T")
Found = TypeVar("Found", bound="BaseModel | Sequence[BaseModel]")


def answer(found: Found, as_json: bool, show: Callable[[Found], None]) -> None:
    """What a command found: JSON for programs, or as `show` prints it for people."""
    if as_json:
        print_json(found)
    else:
        show(found)


def table(columns: Columns, cells: Callable[[T], list[str]]) -> Callable[[Iterable[T]], None]:
    """Shows a list, an item a row: as a table on a screen, as tab-separated lines, uncut, for the next program."""

    def show(found: Iterable[T]) -> None:
        rows = map(cells, found)
        if not out.is_terminal:
            for row in rows:
                print_line("\t".join(map(printable, row)))
            return
        from rich.table import Table

        drawn = Table(box=None, header_style="bold", pad_edge=False)
        for title, side in columns.items():
            drawn.add_column(title, justify=side or "left", overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(printable(cell)) for cell in row))
        out.print(drawn)

    return show


def show_one(found: Found, as_json: bool, facts: Callable[[Found], Iterable[tuple[str, str]]]) -> None:
    """One thing: its facts on a screen, JSON for programs, which is also what goes into a pipe."""
    if as_json or not out.is_terminal:
        print_json(found)
        return
    for word, text in facts(found):
        if text:
            out.print(Text(f"{word:<9} {printable(text)}"), soft_wrap=True)


def print_line(text: str, keep: str = "\t") -> None:
    """One line as it is: neither wrapped nor coloured, tabs kept."""
    typer.echo(printable(text, keep))


def print_json(value: BaseModel | Sequence[BaseModel]) -> None:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        print_line(value.model_dump_json(indent=2), keep="\n")
        return
    print_line(json.dumps([item.model_dump(mode="json") for item in value], indent=2), keep="\n")


def clock(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def size_text(size: int) -> str:
    """46.94 MB, 3.1 kB"""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def byte_bars() -> Progress:
    """Bars of files on their way, on a screen: how much is there, and how fast it comes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def note(text: str) -> None:
    """A line for people beside the answer."""
    err.print(Text(printable(text)), soft_wrap=True)


def print_error(message: str) -> None:
    err.print("error:", style="bold red", end=" ")
    err.print(Text(printable(message, keep="\n")), soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    print_error(message)
    raise typer.Exit(code)


def leave(code: int | None) -> NoReturn:
    raise typer.Exit(code or DONE)
