"""Data sets: formats in, one index, batches out. Importing this package loads no torch, and no reader until one is
asked for: `open_index` is its door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgd.data.formats import open_index

__all__ = ["open_index"]


def __getattr__(name: str) -> Any:
    """PEP 562: `from fgd.data import open_index` imports the readers then, not with every module of the package."""
    if name != "open_index":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fgd.data.formats import open_index

    return open_index
