"""The README's curl walk-through, run as it stands, on small data."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fgd.data.digits import compose
from tests.e2e.conftest import real_services
from tests.e2e.parts import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_walk_through_works_line_by_line(tmp_path: Path) -> None:
    data = compose(
        tmp_path / "data",
        counts={"train": 12, "val": 4, "test": 4}, size=64, classes=("0", "7"), box_px=(16, 40), per_image=(1, 2),
    )  # fmt: skip
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    with real_services(tmp_path / "home", data) as service:
        script = block.replace("/path/to/data", str(data)).replace("http://127.0.0.1:8000", str(service.http.base_url))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("succeeded") == 2
    assert lines[-1] == "the sum is right"
    assert "Traceback" not in done.stderr
