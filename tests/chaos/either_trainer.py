"""The real trainer for jobs whose name begins with `real`, the scripted one for all others."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

name = json.loads(Path(sys.argv[1]).read_bytes())["name"]
real = ["-m", "fgd.train"]
scripted = [str(Path(__file__).parents[1] / "scripted_trainer.py")]
os.execv(sys.executable, [sys.executable, *(real if name.startswith("real") else scripted), *sys.argv[1:]])
