"""An S3 server of the tests' own (moto), and boto3 as a client that is not ours."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BUCKET = "fgd-tests"
KEY_ID, SECRET = "AKIATESTS", "a-secret/that+must-not-be-seen"
START_S = 60.0

BOTH_STORES = pytest.mark.parametrize("store_settings", ["local", "s3"], indirect=True)
"""A test, or as `pytestmark` a file of tests, that runs on a folder and on an S3 server."""


def why_not() -> str | None:
    """The reason why there is no server here; None: there is one."""
    missing = [name for name in ("obstore", "boto3", "moto", "flask") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@dataclass
class S3:
    """A running server with one bucket."""

    endpoint: str

    def settings(self) -> dict[str, Any]:
        """For Settings: a place in the bucket that nobody has used."""
        return {
            "store_url": f"s3://{BUCKET}/{uuid.uuid4().hex}/kept",
            "store_endpoint": self.endpoint,
            "store_key_id": KEY_ID,
            "store_secret": SECRET,
        }

    def boto(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(signature_version="s3v4", s3={"addressing_style": "path"})
        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
            region_name="us-east-1", config=config,
        )  # fmt: skip


@contextmanager
def running(folder: Path) -> Iterator[S3]:
    """The server on a free port of this host; it ends with us, however we end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lifeline, held = os.pipe()
    command = [sys.executable, "-m", "fgd.process.lifeline", str(lifeline)]
    command += [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lifeline])
    try:
        end = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "moto.log").read_text()
                assert time.monotonic() < end, "moto does not answer"
                time.sleep(0.05)
        s3 = S3(f"http://127.0.0.1:{port}")
        s3.boto().create_bucket(Bucket=BUCKET)
        yield s3
    finally:
        server.kill()
        server.wait()
        os.close(lifeline)
        os.close(held)
