"""What the command line downloads from the hub goes to a real service, as a folder or file of this machine does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from api.core import datasets, models
from api.core.rows import db
from api.core.rows.tables import DEFAULT_PROJECT
from fgd.cli import hub
from fgd.data import formats, zips
from tests.unit.api import upload_parts
from tests.unit.data.test_huggingface import Folder
from tests.unit.hub_server import COMMIT, Hub

address = upload_parts.address
ROOT = Path(hub.__file__).parents[2]


def fgd(server: Hub, address: tuple[str, int], home: Path, *arguments: str) -> Any:
    """In a process of its own, with the variables that users set."""
    settings = {
        "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HF_ENDPOINT": server.url, "HF_HOME": str(home),
        "HF_TOKEN": "hf_let_me_in", "FGD_URL": f"http://127.0.0.1:{address[1]}", "COLUMNS": "200",
    }  # fmt: skip
    command = [sys.executable, "-m", "fgd.cli", *arguments, "--no-wait", "--json"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_data_set_and_weights_of_the_hub_are_uploaded(given: Any, address: tuple[str, int], tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set").write()
    (tmp_path / "net/weights").mkdir(parents=True)
    save_file({"a": numpy.zeros(3, dtype=numpy.float32)}, tmp_path / "net/weights/net.safetensors")
    with closing(Hub()) as server:
        server.put("datasets/ada/cells", folder).gated = True
        server.put("models/ada/net", tmp_path / "net")
        dataset, told = fgd(server, address, tmp_path / "home", "dataset", "add", "cells", "hf://ada/cells@v1")
        weights = "hf://ada/net/weights/net.safetensors"
        model, told_too = fgd(server, address, tmp_path / "home", "model", "add", weights, "--classes", "a")
    assert f"it is hf://ada/cells@{COMMIT}" in told
    assert f"it is {weights}@{COMMIT}" in told_too
    with db.reading(given.engine) as s:
        row = datasets.get(s, DEFAULT_PROJECT, dataset["id"])
        made = models.get(s, DEFAULT_PROJECT, model["id"])
    assert (row.state, row.path) == ("verifying", None)
    assert (made.name, made.state) == ("net", "verifying")
    zips.unpack(given.store.path(row.upload_digest), tmp_path / "out")
    assert formats.read(tmp_path / "out")[:2] == formats.read(folder)[:2]
