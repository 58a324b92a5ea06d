"""Rows by name and state: what the lists of data sets, models and studies let through. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.orm import InstrumentedAttribute

from api.core.rows.db import Query


def is_called(column: InstrumentedAttribute[str], name: str) -> ColumnElement[bool]:
    """The whole name; with "*" at the end how it begins, at the beginning how it ends, at both what is in it. Letter
    case counts."""
    # Not LIKE: on SQLite it ignores case.
    begins, ends = name.endswith("*"), name.startswith("*")
    stem = name.removesuffix("*").removeprefix("*")
    if not stem:
        return column == name if not begins else column.is_not(None)
    if begins and ends:
        return func.length(func.replace(column, stem, "")) < func.length(column)
    if begins:
        return func.substr(column, 1, len(stem)) == stem
    if ends:
        at = func.length(column) - len(stem)
        return (at >= 0) & (func.substr(column, at + 1, len(stem)) == stem)
    return column == stem


@dataclass(frozen=True)
class NameAndState:
    """Everything given must hold; of several states one."""

    table: Any
    """With a column `name`, and `state_shown`."""
    name: str | None
    states: frozenset[str]

    def of(self, query: Query) -> Query:
        if self.name is not None:
            query = query.where(is_called(self.table.name, self.name))
        if self.states:
            query = query.where(self.table.state_shown().in_(sorted(self.states)))
        return query

    @property
    def bounded(self) -> bool:
        """No more rows are read than are shown."""
        return self.name is None and not self.states

    def digest(self) -> str:
        """Equal for equal selections, "" for no filter at all; goes into the cursor."""
        if self.bounded:
            return ""
        return hashlib.sha256(json.dumps([self.name, sorted(self.states)]).encode()).hexdigest()[:16]
