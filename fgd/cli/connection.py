"""The service that a command speaks to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgd.client import Client

URL = "http://127.0.0.1:8000"
"""`fgd.client.DEFAULT_URL`, which would cost the help its speed."""


def client_of(url: str) -> Client:
    from fgd.client import Client

    return Client(url, api_key())


def api_key() -> str | None:
    """Only from the environment: every user of a machine can read what stands on a command line."""
    return os.environ.get("FGD_API_KEY") or None
