"""Which version of ours this is."""

from __future__ import annotations

from importlib import metadata


def ours() -> str:
    """ "unknown": it runs from a checkout that was never installed."""
    try:
        return metadata.version("fgd-service")
    except metadata.PackageNotFoundError:
        return "unknown"
