"""A service goes on with the folder of version 13949c9: what was paused, waited or ran there comes to its end here."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fgd.data.digits import compose
from tests import earlier
from tests.e2e.conftest import services
from tests.e2e.parts import Api, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

TRAINER = json.dumps([sys.executable, "-m", "fgd.train"])
PATIENT_S = 240.0


def test_the_jobs_of_an_earlier_version_come_to_their_end(tmp_path: Path) -> None:
    told = earlier.told("requests.json")
    made = {request["key"]: request["id"] for request in told["requests"]}
    home = earlier.unpack("home.tar.xz", tmp_path)
    compose(tmp_path / "data" / "digits", counts={"train": 7, "val": 4, "test": 2}, size=64, classes=("0", "7"))
    move_data_set(home, made["data-4"], tmp_path / "data" / "digits")
    with services("") as start:
        api = Api(start(home, FGD_TRAINER=TRAINER, FGD_STALL_S="200", FGD_GRACE_S="60"))
        assert api.http.post(f"/v1/jobs/{made['job-paused']}/resume").status_code == 202

        paused = ended(api, f"/v1/jobs/{made['job-paused']}")
        for address in (
            f"/v1/datasets/{made['data-4']}", f"/v1/models/{made['model-next']}", told["plans"][1],
            f"/v1/jobs/{made['job-running']}", f"/v1/jobs/{made['job-waits']}",
        ):  # fmt: skip
            ended(api, address)

        began = [event["data"]["step"] for event in events(api, paused["id"]) if event["type"] == "started"]
        assert len(began) == 3
        assert 0 < began[1] < began[2], "each attempt went on from where the one before ended"
        steps = [point["step"] for point in points(api, paused["id"])]
        assert steps == sorted(set(steps))
        assert steps[-1] == paused["progress"]["total_steps"]


def move_data_set(home: Path, key: str, folder: Path) -> None:
    """The folder it was to be read from lay on the machine that made the fixture."""
    with closing(sqlite3.connect(home / "fgd.db")) as database:
        database.execute("UPDATE datasets SET path = ? WHERE id = ?", (str(folder), key))
        database.commit()


def ended(api: Api, address: str) -> Any:
    """Well."""
    until(lambda: api.get(address)["state"] not in ("queued", "running", "verifying", "measuring"), PATIENT_S, address)
    view = api.get(address)
    assert view["state"] in ("succeeded", "ready", "measured"), json.dumps(view)
    return view


def events(api: Api, job: str) -> list[Any]:
    return list(api.get(f"/v1/jobs/{job}/events?limit=1000")["items"])


def points(api: Api, job: str) -> list[Any]:
    return list(api.get(f"/v1/jobs/{job}/metrics?name=loss/total")["items"])
