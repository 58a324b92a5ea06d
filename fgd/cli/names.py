"""Names in place of ids: what a person typed stands for the one thing of the service that has this name.

The service knows ids alone, because names may repeat. Knows the client; imports it late, as all commands do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import typer

from fgd.cli.connection import URL, client_of
from fgd.cli.printing import fail
from fgd.process.exit_codes import REFUSED

if TYPE_CHECKING:
    from fgd.client import Client, Dataset, Job, Model, Study

Noun = Literal["job", "model", "dataset", "study"]
PREFIXES: Mapping[Noun, str] = {"job": "job_", "model": "mdl_", "dataset": "ds_", "study": "std_"}
NOT_USABLE = ("rejected", "failed", "cancelled")
WORDS: Mapping[Noun, str] = {"job": "job", "model": "model", "dataset": "data set", "study": "study"}


def id_of(client: Client, text: str, *nouns: Noun, to_use: bool = False) -> str:
    """An id stands for itself; a name for the one thing that has it. Leaves with a message if none or several have.

    to_use: of several the only one that can be used, as after a failed try.
    """
    if text.startswith(tuple(PREFIXES[noun] for noun in nouns)):
        return text
    words = " or ".join(WORDS[noun] for noun in nouns)
    if other := next((noun for noun, prefix in PREFIXES.items() if text.startswith(prefix)), None):
        fail(f"{text} is the id of a {WORDS[other]}; a {words} belongs here", REFUSED)
    found = [each for noun in nouns for each in _named(client, noun, text)]
    if not found:
        lists = " and ".join(f"fgd {noun} list" for noun in nouns)
        show = "show" if len(nouns) > 1 else "shows"
        fail(f"no {words} has the id or the name {text!r}; {lists} {show} what there is", REFUSED)
    if to_use and len(usable := [each for each in found if each.state not in NOT_USABLE]) == 1:
        found = usable
    if len(found) > 1:
        listed = "".join(f"\n  {each.id}  {each.state}{_made(each.created_at)}" for each in found)
        fail(f"{text!r} is the name of several; give the id:{listed}", REFUSED)
    return found[0].id


def _made(at: datetime | None) -> str:
    return f", made {at.astimezone():%Y-%m-%d %H:%M}" if at is not None else ""


def _named(client: Client, noun: Noun, name: str) -> Sequence[Job | Model | Dataset | Study]:
    if not name.strip():
        return ()
    if noun == "job":
        return client.jobs(10, name=name)
    if noun == "model":
        return client.models(10, name=name)
    if noun == "dataset":
        return client.datasets(10, name=name)
    return client.studies(10, name=name)


def named(*nouns: Noun) -> Callable[[typer.Context, Any], Any]:
    """For an option or argument: each name becomes an id before the command begins."""

    def ids(context: typer.Context, typed: Any) -> Any:
        if not typed or context.resilient_parsing:
            return typed
        texts = [typed] if isinstance(typed, str) else list(typed)
        if not all(text.startswith(tuple(PREFIXES[noun] for noun in nouns)) for text in texts):
            with client_of(context.params.get("url") or URL) as client:
                texts = [id_of(client, text, *nouns) for text in texts]
        return texts[0] if isinstance(typed, str) else texts

    return ids


def with_ids(client: Client, body: Mapping[str, Any]) -> dict[str, Any]:
    """A spec whose data set, teachers and starting points may be named, as the service takes it."""
    return {key: value if key == "metadata" else _with_ids(client, key, value) for key, value in body.items()}


def _with_ids(client: Client, key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {inner: _with_ids(client, inner, each) for inner, each in value.items()}
    if isinstance(value, list):
        return [_with_ids(client, "", each) for each in value]
    if isinstance(value, str):
        if key == "job":
            return id_of(client, value, "job", to_use=True)
        if key == "model":
            return id_of(client, value, "model", to_use=True)
        if key == "dataset":
            return id_of(client, value, "dataset", to_use=True)
    return value
