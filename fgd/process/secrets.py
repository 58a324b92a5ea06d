"""What a process keeps to itself once it has read its settings: the secrets among them, and its memory.

A variable that is deleted still stands in the memory that /proc/PID/environ shows; it has to be overwritten there.
"""

from __future__ import annotations

import ctypes
import os
import sys

SECRETS = (
    "FGD_API_KEY", "FGD_STORE_KEY_ID", "FGD_STORE_SECRET", "FGD_DATABASE_URL", "FGD_BROKER_URL",
    "FGD_MLFLOW_PASSWORD", "FGD_MLFLOW_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip
"""Variables that hold a password or a key, or may."""
_PR_SET_DUMPABLE = 4
"""From linux/prctl.h."""


def hide_secrets() -> None:
    """Overwrite and forget the secrets of the environment, and close this process's memory to others of its user.

    Call it after the settings are read, and give children what they need as their own environment.
    """
    for name in SECRETS:
        if name in os.environ:
            _overwrite(name)
            del os.environ[name]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _overwrite(name: str) -> None:
    variables = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    begin = os.fsencode(f"{name}=")
    place = 0
    while address := variables[place]:
        text = ctypes.string_at(address)
        if text.startswith(begin):
            ctypes.memset(address + len(begin), 0, len(text) - len(begin))
        place += 1
